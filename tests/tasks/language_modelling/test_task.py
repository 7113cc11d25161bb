"""The task: what a batch becomes, which logits are made, and what they cost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tasks.language_modelling.tiny import EOS, PAD, VOCABULARY, batch_of, llama, task
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig, fit
from congener.errors import DataError, RecipeError
from congener.losses import GKDLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.tasks.language_modelling import LanguageModelling
from congener.types import Batch, Term

KINDS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "intermediate_size": 16, "head_dim": 4},
    "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gemma2": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "num_key_value_heads": 1, "intermediate_size": 16, "head_dim": 4,
               "final_logit_softcapping": 0.5},
    "bert": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "hidden_dropout_prob": 0.0,
             "attention_probs_dropout_prob": 0.0},
}  # fmt: skip


def spread(network: nn.Module) -> nn.Module:
    """Weights so large that every token's logits are its own."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(
                    0, 0.5, generator=torch.Generator().manual_seed(parameter.numel())
                )
    return network


def by_hand(network: nn.Module, batch: Batch) -> tuple[list[Tensor], list[int]]:
    """Row by row, without padding: the logits before each token of a response, and the token."""
    logits, tokens = [], []
    for row in range(len(batch["length"])):
        length, prompt = int(batch["length"][row]), int(batch["prompt"][row])
        said = network(input_ids=batch["tokens"][row : row + 1, :length]).logits[0]
        for place in range(prompt, length):
            logits.append(said[place - 1])
            tokens.append(int(batch["tokens"][row, place]))
    return logits, tokens


def test_a_batch_is_as_wide_as_its_longest_text() -> None:
    found = task(unanswered=[1])
    raw = found.collate(found.texts("train").__getitems__(range(8)))
    batch = found.prepare(raw, train=True, seed=0, epoch=0)
    assert raw["tokens"].dtype == torch.int32
    assert batch["tokens"].dtype == batch["labels"].dtype == torch.int64
    assert batch["tokens"].shape[1] == int(raw["length"].max()) < raw["tokens"].shape[1]
    assert batch["mask"].dtype == torch.bool
    assert torch.equal(batch["mask"].sum(1), raw["length"])
    assert (batch["tokens"][~batch["mask"]] == PAD).all()


def test_a_token_is_predicted_from_the_one_before_it() -> None:
    found = task(unanswered=[1])
    batch = batch_of(found, range(8))
    mask, targets = found.token_mask(batch), found.targets(batch)
    assert mask.shape == batch["tokens"].shape
    expected = []
    for row in range(8):
        prompt, length = int(batch["prompt"][row]), int(batch["length"][row])
        assert mask[row].nonzero().flatten().tolist() == list(range(prompt - 1, length - 1))
        expected += batch["tokens"][row, prompt:length].tolist()
    assert not mask[1].any()
    assert targets.tolist() == expected
    assert EOS in expected
    assert PAD not in expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_those_of_each_text_alone(kind: str) -> None:
    found = task(unanswered=[1])
    network = spread(found.build_model(f"transformers:{kind}", **KINDS[kind])).eval()
    batch = batch_of(found, range(8))
    logits = found.call(network, batch)
    expected, tokens = by_hand(network, batch)
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert found.targets(batch).tolist() == tokens
    assert not logits[0].allclose(logits[1])
    if kind == "gemma2":
        assert logits.abs().max() <= 0.5  # what comes after the head still happens


def _gradients(network: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [torch.zeros(1) if each is None else each for each in found]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_all_logits(kind: str) -> None:
    found = task()
    network = spread(found.build_model(f"transformers:{kind}", **KINDS[kind])).eval()
    batch = batch_of(found, range(8))
    expected, tokens = by_hand(network, batch)
    wanted = torch.nn.functional.cross_entropy(torch.stack(expected), torch.tensor(tokens))
    loss = found.loss(found.call(network, batch), batch)
    torch.testing.assert_close(loss, wanted)
    pairs = zip(_gradients(network, loss), _gradients(network, wanted), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_head_sees_the_chosen_tokens_only() -> None:
    found = task()
    network, batch = llama(found), batch_of(found, range(8))
    seen: list[Any] = []
    network.lm_head.register_forward_hook(lambda _head, given, _out: seen.append(given[0].shape))
    network.register_forward_hook(
        lambda _net, _given, _named, said: seen.append(said.past_key_values), with_kwargs=True
    )
    found.call(network, batch)
    assert seen == [(int(found.token_mask(batch).sum()), 8), None]
    assert not network.lm_head._forward_pre_hooks


def test_a_network_that_fails_keeps_no_hook() -> None:
    found = task()
    network = llama(found)
    batch = batch_of(found, range(2))
    with pytest.raises(IndexError):
        found.call(network, batch | {"tokens": batch["tokens"] + 100})
    assert not network.lm_head._forward_pre_hooks


class Plain(nn.Module):
    """A causal network that transformers does not know: it sums what came before."""

    def __init__(self, size: int = VOCABULARY) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 4)
        self.out = nn.Linear(4, size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        result: Tensor = self.out(self.table(input_ids).cumsum(1))
        return result


def test_any_module_that_gives_logits_will_do() -> None:
    found = task()
    network, batch = Plain(), batch_of(found, range(6))
    whole = network(batch["tokens"], batch["mask"])
    assert torch.equal(found.call(network, batch), whole[found.token_mask(batch)])


def test_a_network_is_told_what_is_padding() -> None:
    found = task()
    batch = batch_of(found, range(6))
    told = []

    class Curious(Plain):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            told.append(attention_mask)
            return super().forward(input_ids, attention_mask)

    found.call(Curious(), batch)
    assert torch.equal(told[0], batch["mask"])
    assert not told[0].all()


def test_a_module_that_gives_something_else_is_refused() -> None:
    found = task()
    batch = batch_of(found, range(2))

    class Pooled(Plain):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return {"pooled": input_ids}

    with pytest.raises(DataError, match=r"returned dict; expected logits \(batch, tokens, vocab\)"):
        found.call(Pooled(), batch)


@pytest.mark.parametrize("way", ["in place", pytest.param("wrapped", marks=pytest.mark.slow)])
def test_a_compiled_network_says_the_same(way: str) -> None:
    found = task()
    network = llama(found)
    batches = batch_of(found, range(6)), batch_of(found, range(6, 12))
    expected = [found.call(network, batch) for batch in batches]
    compiled: Any = network
    if way == "wrapped":
        compiled = torch.compile(network, backend="eager")
    else:
        network.compile(backend="eager")
    for batch, logits in zip(batches, expected, strict=True):
        torch.testing.assert_close(found.call(compiled, batch), logits)


def test_a_padded_vocabulary_is_cut_to_the_tokens_that_there_are() -> None:
    found = task()
    network, batch = llama(found, vocabulary_size=16), batch_of(found, range(6))
    logits = found.call(network, batch)
    assert logits.shape[1] == VOCABULARY
    whole = network(input_ids=batch["tokens"]).logits[found.token_mask(batch)]
    torch.testing.assert_close(logits, whole[:, :VOCABULARY])


def test_a_network_that_knows_fewer_tokens_is_refused() -> None:
    found = task()
    batch = batch_of(found, range(2))
    message = "knows 7 tokens, but the given vocabulary has 11"
    with pytest.raises(DataError, match=message):
        llama(found, vocabulary_size=7)
    other = LanguageModelling("sort")
    with pytest.raises(DataError, match="knows 11 tokens, but the vocabulary of sort has 14"):
        other.call(llama(found), batch)
    with pytest.raises(
        DataError, match="gives logits of 5 tokens, but the given vocabulary has 11"
    ):
        found.call(Plain(5), batch)


def test_a_text_longer_than_the_context_is_refused() -> None:
    found = task()
    message = r"has \d tokens, more than the 4 that the network \(GPT2LMHeadModel\) reads"
    options = KINDS["gpt2"] | {"n_positions": 4}
    with pytest.raises(DataError, match=message):
        found.build_model("transformers:gpt2", **options)
    from transformers import GPT2Config, GPT2LMHeadModel

    network = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **options))
    with pytest.raises(DataError, match=message):
        found.call(network, batch_of(found, range(8)))


def test_a_batch_without_responses_costs_nothing() -> None:
    found = task(unanswered=range(6))
    network, batch = llama(found), batch_of(found, range(6))
    logits = found.call(network, batch)
    assert logits.shape == (0, VOCABULARY)
    loss = found.loss(logits, batch)
    assert loss == 0
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_features_of_padding_are_masked() -> None:
    found = task()
    batch = batch_of(found, range(6))
    feature = torch.zeros(*batch["tokens"].shape, 8)
    mask = found.mask(batch, feature)
    assert mask is not None
    assert torch.equal(mask, batch["mask"])
    assert found.mask(batch, torch.zeros(6, 8)) is None


def _trained(_rank: int = 0, **settings: Any) -> list[dict[str, float]]:
    """The losses of some steps of distillation, supervised loss and divergence."""
    found = task(unanswered=[0, 5, 9])
    student, teacher = llama(found, 1), spread(llama(found, 2, hidden_size=12))
    system = Distillation(student, teacher, [Term(GKDLoss())], task=found)
    config = FitConfig(
        **({"steps": 6, "batch_size": 8, "lr": 1e-2, "log_every": 1, "device": "cpu",
            "threads": 1, "evaluate_every": 3} | settings)
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    lengths = found.lengths("train") if config.sampler == "by_length" else None
    fit(system, found, config, train=found.splits["train"], test=found.splits["test"],
        groups=lengths, log=RunLog(None, (events.append,)))  # fmt: skip
    steps = [{"total": e["total"], **e["terms"]} for e in events if e["event"] == "step"]
    return steps + [e["metrics"] for e in events if e["event"] == "evaluation"]


def _same(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(found) == len(expected) == 8
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def test_a_mean_over_tokens_is_the_same_in_pieces() -> None:
    _same(_trained(accumulate=8), _trained())


def test_a_mean_over_tokens_is_the_same_in_two_processes(tmp_path: Path) -> None:
    first, second = in_two_processes(tmp_path, _trained)
    whole = _trained()
    _same(first, whole)
    _same(second, whole)


def test_batches_of_like_lengths_pad_little() -> None:
    found = task()
    assert torch.equal(found.lengths("train"), found.texts("train").length)
    assert len(_trained(sampler="by_length")) == 8


def test_the_figure_of_a_report_is_what_the_data_can_judge() -> None:
    assert task().metric == "perplexity"
    assert not task().higher_is_better
    assert not task().generates
    assert task(one_answer=True).metric == "exact_match"
    assert LanguageModelling().metric == "valid_sampled"
    assert LanguageModelling(metric="valid_greedy").higher_is_better
    assert task(generate=True).metric == "exact_match"
    with pytest.raises(
        RecipeError, match="no figure 'valid_gredy' of this data; did you mean 'val"
    ):
        LanguageModelling(metric="valid_gredy")
    with pytest.raises(RecipeError, match="no figure 'valid_greedy' of this data; known"):
        task(metric="valid_greedy")
    with pytest.raises(RecipeError, match="max_new_tokens=0"):
        task(max_new_tokens=0)


def test_what_the_data_tells() -> None:
    found = task(unanswered=[2])
    assert found.max_new_tokens == 4
    assert found.class_names == ()
    assert found.labels("train") is None
    assert found.control(found) is None
    assert found.labelled is not None
    assert found.labelled.tolist() == [row for row in range(24) if row != 2]
    assert task().labelled is None


def test_samples_one_by_one_make_a_batch() -> None:
    found = task()
    texts = found.texts("train")
    batch = found.collate([texts[3], texts[5]])
    whole = found.collate(texts.__getitems__([3, 5]))
    assert all(torch.equal(batch[name], whole[name]) for name in whole)
    with pytest.raises(DataError, match="no 'prompt', only"):
        found.collate([{"tokens": torch.zeros(3), "labels": torch.zeros(3)}])
