"""The figures, each against a count by hand, and what they do not depend on."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tasks.language_modelling.tiny import EOS, PAD, VOCABULARY, batch_of, llama, task
from torch import Tensor, nn

from congener.generation import Sampling, generate
from congener.tasks.language_modelling import LanguageModelling
from congener.tasks.language_modelling.answers import answers


def repeats(prompt: Sequence[int], response: Sequence[int]) -> bool:
    """The rule of :func:`tests.tasks.language_modelling.tiny.texts`."""
    return all(word == prompt[-1] for word in response)


@functools.cache
def trained(seed: int) -> nn.Module:
    """A network that has learnt some of the rule, so that some answers are right."""
    found = task()
    network = llama(found, seed)
    batch = batch_of(found, range(24))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-2)
    for _ in range(14):
        optimizer.zero_grad()
        found.loss(found.call(network, batch), batch).backward()
        optimizer.step()
    return network.eval()


def figures(found: LanguageModelling, network: nn.Module, sizes: Sequence[int]) -> dict[str, float]:
    instrument, start = found.metrics(torch.device("cpu")), 0
    with torch.no_grad():
        for count in sizes:
            batch = batch_of(found, range(start, start + count), "test")
            instrument.update(found.respond(network, batch), batch)
            start += count
    return instrument.compute()


def test_perplexity_and_entropy_by_hand() -> None:
    found = task()
    network = trained(0)
    nats, entropies = [], []
    texts = found.texts("test")
    for row in range(12):
        length, prompt = int(texts.length[row]), int(texts.prompt[row])
        tokens = texts.tokens[row, :length].long()
        with torch.no_grad():
            logs = network(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
        nats += [-float(logs[place - 1, tokens[place]]) for place in range(prompt, length)]
        entropies.append(-float((logs[prompt - 1].exp() * logs[prompt - 1]).sum()))
    measured = figures(found, network, [12])
    assert list(measured) == ["perplexity", "first_token_entropy"]
    assert measured["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    assert measured["first_token_entropy"] == pytest.approx(sum(entropies) / 12, rel=1e-5)


def by_hand(network: nn.Module, prompt: list[int], limit: int) -> list[int] | None:
    """The likeliest answer, token by token."""
    said: list[int] = []
    for _ in range(limit):
        with torch.no_grad():
            token = int(network(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].argmax())
        if token == EOS:
            return said
        said.append(token)
    return None


def test_the_likeliest_answers_are_judged() -> None:
    found = task(check=repeats, generate=True)
    shares = set()
    for seed in range(4):
        network = trained(seed)
        texts = found.texts("test")
        right = 0
        for tokens, prompt in zip(texts.tokens.tolist(), texts.prompt.tolist(), strict=True):
            said = by_hand(network, tokens[:prompt], found.max_new_tokens)
            right += said is not None and repeats(tokens[:prompt], said)
        assert figures(found, network, [12])["valid_greedy"] == pytest.approx(right / 12)
        shares.add(right)
    assert len(shares) > 1


def test_an_exact_match_is_the_response_and_its_end() -> None:
    found = task(one_answer=True)
    texts = found.texts("test")
    for seed in range(4):
        network = trained(seed)
        right = 0
        for row in range(12):
            tokens, prompt = texts.tokens[row].tolist(), int(texts.prompt[row])
            said = by_hand(network, tokens[:prompt], found.max_new_tokens)
            right += said is not None and [*said, EOS] == tokens[prompt : texts.length[row]]
        assert figures(found, network, [12])["exact_match"] == pytest.approx(right / 12)


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = task(check=repeats, one_answer=True)
    batch = batch_of(found, range(4), "test")
    last = [int(row[p - 1]) for row, p in zip(batch["tokens"], batch["prompt"], strict=True)]
    given = {
        "greedy": [[last[0]], [(last[1] + 1) % 9], None, []],
        0: [[last[0]], [last[1]], None, [last[3]]],
        1: [[last[0]], [], None, [last[3]]],
    }

    def write(*_: Any, sampling: Sampling, seed: int, **_options: Any) -> Any:
        return given["greedy" if sampling.temperature == 0 else seed]

    monkeypatch.setattr("congener.tasks.language_modelling.metrics.answers", write)
    network = llama(found)
    instrument = found.metrics(torch.device("cpu"))
    with torch.no_grad():
        instrument.update(found.respond(network, batch), batch)
    measured = instrument.compute()
    responses = [row[row >= 0].tolist()[:-1] for row in batch["labels"]]
    assert measured["valid_greedy"] == 0.5
    assert measured["valid_sampled"] == 0.75
    assert measured["distinct"] == 0.25
    same = [a == b for a, b in zip(given["greedy"], responses, strict=True)]
    assert measured["exact_match"] == sum(same) / 4


def test_figures_do_not_depend_on_batches() -> None:
    found = task(check=repeats, one_answer=True)
    network = trained(1)
    whole = figures(found, network, [12])
    assert list(whole) == [
        "perplexity", "first_token_entropy", "valid_sampled", "valid_greedy", "distinct",
        "exact_match",
    ]  # fmt: skip
    assert 0 < whole["valid_sampled"] < 1
    assert 0 < whole["distinct"] < 1
    assert figures(found, network, [1, 7, 4]) == pytest.approx(whole, rel=1e-5)


def test_a_drawn_answer_belongs_to_its_sample() -> None:
    found = task()
    network = trained(0)

    def written(rows: Sequence[int], seed: int = 0) -> list[list[int] | None]:
        batch = batch_of(found, rows, "test")
        return answers(
            network, batch, found.vocabulary, sampling=Sampling(), max_new_tokens=6, seed=seed
        )

    whole = written(range(12))
    assert [written([row])[0] for row in range(12)] == whole
    assert written(range(12), seed=1) != whole


def test_a_network_that_answers_does_not_see_the_response(monkeypatch: pytest.MonkeyPatch) -> None:
    found = task()
    asked: list[torch.Tensor] = []

    def write(_model: nn.Module, prompt: Tensor, lengths: Tensor, **options: Any) -> Any:
        asked.extend((prompt, lengths))
        return generate(_model, prompt, lengths, **options)

    monkeypatch.setattr("congener.tasks.language_modelling.answers.generate", write)
    batch = batch_of(found, range(12), "test")
    answers(llama(found), batch, found.vocabulary, sampling=Sampling(), max_new_tokens=1)
    prompt, lengths = asked
    assert torch.equal(lengths, batch["prompt"])
    for row, length in zip(prompt, lengths, strict=True):
        assert (row[:length] != PAD).all()
        assert (row[length:] == PAD).all()


def test_a_perplexity_beyond_all_numbers_is_a_number() -> None:
    found = task()
    batch = batch_of(found, range(4), "test")
    instrument = found.metrics(torch.device("cpu"))

    class Sure(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            logits = torch.zeros(*input_ids.shape, VOCABULARY)
            logits[..., 0] = 1e6
            return logits

    instrument.update(found.respond(Sure(), batch), batch)
    assert math.isfinite(instrument.compute()["perplexity"])
