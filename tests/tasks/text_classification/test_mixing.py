"""Mixtures in a network's own embedding space, against sums and states taken out of it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.systems import MixKD
from congener.systems.mixture import Mixing
from congener.tasks.text_classification import TextClassification, data
from congener.tasks.text_classification.mixing import call_mixed, mixed_embeddings
from congener.types import Batch, Progress

NOW = Progress(2, 10, 0)
WIDTHS = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 16,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "bert": WIDTHS,
    "roberta": WIDTHS,
    "electra": WIDTHS | {"embedding_size": 8},
    "albert": WIDTHS | {"embedding_size": 8},
    "distilbert": {
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 16
    },
}  # fmt: skip


def task_of(*, pairs: bool = True, labels: Tensor | None = None) -> TextClassification:
    """Forty texts of 3 to 9 tokens; of pairs the second one begins in the middle."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(3, 10, (40,), generator=generator)
    places = torch.arange(9)
    inside = places < length[:, None]
    tokens = torch.randint(5, 40, (40, 9), generator=generator).masked_fill(~inside, 0)
    second = (places >= length[:, None] // 2) & inside if pairs else torch.zeros_like(inside)
    given = {
        "tokens": tokens, "length": length, "segments": second.long(),
        "labels": torch.arange(40) % 3 if labels is None else labels,
    }  # fmt: skip
    names = {f"{part}_{k}": v for part in ("train", "test") for k, v in given.items()}
    return TextClassification(data.tensors(**names))


def network(task: TextClassification, kind: str = "bert", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = task.build_model(f"transformers:{kind}", **KINDS[kind]).eval()
    for name, weight in net.named_parameters():
        if weight.dim() == 2:  # of [PAD], too, an embedding that is not 0
            nn.init.normal_(weight, std=1.0 if "embeddings" in name else 0.4)
    return net


def batch_of(task: TextClassification, rows: int = 8) -> Batch:
    raw = task.collate(task.part("train").__getitems__(list(range(rows))))
    return task.prepare(raw | {"index": torch.arange(rows)}, train=True, seed=0, epoch=0)


def before_normalisation(net: nn.Module, call: Any) -> Tensor:
    """What a network's first LayerNorm is given: the sum of all embeddings."""
    seen: list[Tensor] = []
    norm = next(m for n, m in net.named_modules() if n.endswith("embeddings.LayerNorm"))
    hook = norm.register_forward_pre_hook(lambda _norm, given: seen.append(given[0]))
    call()
    hook.remove()
    return seen[0]


def texts_of(seen: Batch, which: str) -> Batch:
    """The texts that mixtures are made of, as a plain batch that attends to all positions."""
    full = torch.ones_like(seen["mask"])
    return {
        "tokens": seen[f"{which}tokens"], "segments": seen[f"{which}segments"], "mask": full,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "electra", "albert", "distilbert"])
def test_what_is_mixed_is_the_sum_before_the_normalisation(kind: str) -> None:
    task = task_of()
    net, seen = network(task, kind), Mixing(per="example")(batch_of(task), step=0)
    found = before_normalisation(net, lambda: task.call(net, seen))
    own, other = (
        before_normalisation(net, lambda w=which: task.call(net, texts_of(seen, w)))
        for which in ("", "other_")
    )
    share = seen["share"][:, None, None]
    torch.testing.assert_close(found, share * own + (1 - share) * other)
    if kind == "bert":  # segments and the padding count: words alone would be something else
        assert (seen["segments"] != seen["other_segments"]).any()
        assert ((seen["tokens"] == 0) & seen["mask"]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_share_one_are_answered_as_they_are(kind: str) -> None:
    task = task_of(pairs=kind != "roberta")
    net, batch = network(task, kind), batch_of(task)
    plain = task.logits(task.call(net, batch))
    mixed = task.logits(task.call(net, Mixing()(batch, step=0)))
    torch.testing.assert_close(mixed[:8], plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed[8:], plain, atol=1e-2)


def test_the_embeddings_of_share_one_are_those_of_the_words_to_the_bit() -> None:
    task = task_of()
    net, batch = network(task), batch_of(task)
    seen = Mixing()(batch, step=0)
    words = net.get_input_embeddings()
    assert torch.equal(mixed_embeddings(net, seen)[:8], words(batch["tokens"]))


def test_positions_of_a_mixture_are_those_of_the_longer_text() -> None:
    """RoBERTa gives padding no position of its own; a mixture goes on after its shorter text."""
    task = task_of(pairs=False)
    net = network(task, "roberta")
    batch = batch_of(task)
    seen = Mixing()(batch, step=0)
    seen["share"] = torch.zeros_like(seen["share"])  # each mixture is its partner alone
    partner = batch | {k: seen[f"other_{k}"][8:] for k in ("tokens", "segments")}
    partner["mask"] = partner["tokens"] != 0
    seen["mask"] = seen["other_tokens"] != 0
    torch.testing.assert_close(
        task.logits(task.call(net, seen))[8:], task.logits(task.call(net, partner))
    )


def test_an_encoder_that_tells_no_segments_apart() -> None:
    task = task_of()
    net = network(task, "roberta")
    assert net.config.type_vocab_size <= 2
    table = next(m for n, m in net.named_modules() if n.endswith("token_type_embeddings"))
    net.roberta.embeddings.token_type_embeddings = nn.Embedding(1, table.embedding_dim)
    assert call_mixed(net, Mixing()(batch_of(task), step=0)).logits.isfinite().all()


def test_mixtures_seen_from_either_side_are_the_same() -> None:
    task = task_of()
    net, seen = network(task), Mixing(per="example")(batch_of(task), step=0)
    swapped = seen | {
        "share": 1 - seen["share"],
        **{k: seen[f"other_{k}"] for k in ("tokens", "segments")},
        **{f"other_{k}": seen[k] for k in ("tokens", "segments")},
    }
    one, other = (task.logits(task.call(net, each)) for each in (seen, swapped))
    torch.testing.assert_close(one, other)


def test_gradients_are_shared_by_the_texts() -> None:
    task = task_of()
    net, seen = network(task), Mixing(per="example")(batch_of(task), step=0)
    norm_input = before_normalisation(net, lambda: task.call(net, seen))
    norm_input.sum().backward()
    words = net.get_input_embeddings().weight.grad[:, 0]
    wanted = torch.zeros_like(words)
    for row, share in enumerate(seen["share"].tolist()):
        for token, other in zip(seen["tokens"][row], seen["other_tokens"][row], strict=True):
            wanted[token] += share
            wanted[other] += 1 - share
    assert net.config.pad_token_id == 0
    torch.testing.assert_close(words[1:], wanted[1:])  # [PAD]'s row does not learn
    table = next(m for n, m in net.named_modules() if n.endswith("token_type_embeddings"))
    share = seen["share"][:, None]
    second = share * seen["segments"] + (1 - share) * seen["other_segments"]
    torch.testing.assert_close(table.weight.grad[1, 0], second.sum())


class Words(nn.Module):
    """A network that shows no embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(40, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.embedding(input_ids)
        return logits


def test_networks_that_cannot_be_given_mixtures_are_told() -> None:
    task = task_of()
    with pytest.raises(RecipeError, match="Words has no get_input_embeddings"):
        MixKD(Words(), network(task), task=task)
    last = task.build_model("transformers:gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=16)
    with pytest.raises(RecipeError, match="the student answers otherwise to the embeddings of a"):
        MixKD(last, network(task), task=task)
    with pytest.raises(RecipeError, match="the teacher answers otherwise"):
        MixKD(network(task), last, task=task)


def test_networks_of_two_kinds_mix_in_their_own_spaces() -> None:
    task = task_of()
    student, teacher = network(task, "distilbert"), network(task, "electra", seed=1)
    system = MixKD(student, teacher, task=task, mixing={"per": "example"}).train()
    total, terms, _ = system(batch_of(task), NOW)
    total.backward()
    assert terms["teacher_mixup"] > 0
    assert student.get_input_embeddings().weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())


def test_numbers_that_are_not_known_are_left_out() -> None:
    labels = torch.linspace(-1, 1, 40)
    labels[::3] = torch.nan
    task = task_of(labels=labels)
    system = MixKD(network(task), network(task, seed=1), task=task).eval()
    batch = batch_of(task)
    seen = system.views(batch, NOW)
    said = system.observe(seen).logits[8:, 0]
    share, own, other = (seen[key][8:] for key in ("share", "labels", "other_labels"))
    off = said - share * own - (1 - share) * other
    known = ~off.isnan()
    assert 0 < known.sum() < 8
    found = system(batch, NOW)[1]["student_mixup"]
    torch.testing.assert_close(found, off[known].square().mean())
