"""The block sampler is the sequential one, and that is the paper's rule."""

from typing import Any

import pytest
import torch
from tests.generation.networks import (
    EOS,
    PAD,
    VOCABULARY,
    gpt2,
    llama,
    of_one,
    prompts,
    row,
    same,
    settings,
)
from tests.generation.oracle import interleaved
from torch import nn

from congener.generation import (
    STUDENT,
    TEACHER,
    Sampling,
    generate,
    interleave,
    interleave_sequential,
)

PAIRS = {
    "llama": lambda: (llama(1), llama(2, layers=2)),
    "gpt2": lambda: (gpt2(1), gpt2(2, layers=2)),
    "mixed": lambda: (gpt2(3), llama(4)),
}
KEPT = (0, 1, 5, VOCABULARY)
BLOCKS = (1, 2, 5, 6, "adaptive")


def alone(prompt: torch.Tensor, length: torch.Tensor, given: dict[str, Any], at: int
          ) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:  # fmt: skip
    """One row of a batch as a batch."""
    cut = slice(at, at + 1)
    count = int(length[at])
    return prompt[cut, :count], length[cut], given | {"index": given["index"][cut]}


@pytest.fixture(scope="module", params=PAIRS)
def pair(request) -> tuple[nn.Module, nn.Module]:
    return PAIRS[request.param]()


@pytest.mark.parametrize("top_k", KEPT)
def test_the_sequential_sampler_is_the_rule(pair, top_k) -> None:
    prompt, length = prompts(4, 5, seed=top_k)
    given = settings(4, max_new_tokens=5, stop=((2,), (5, 6)))
    written = interleave_sequential(*pair, prompt, length, top_k=top_k, **given)
    for at in range(4):
        text = prompt[at, : length[at]].tolist()
        expected = interleaved(*pair, text, int(given["index"][at]), top_k, given)
        assert row(written, at) == expected


@pytest.mark.parametrize("top_k", KEPT)
@pytest.mark.parametrize("seed", range(4))
def test_blocks_change_nothing(pair, top_k, seed) -> None:
    """8 texts alone and together for each of five blocks, 80 cases a test."""
    student, teacher = pair
    prompt, length = prompts(8, 1 + 4 * seed, seed)
    laws = (Sampling(), Sampling(0.5, 0.8), Sampling(0.0), Sampling(1.5, top_k=6))
    given = settings(8, seed=seed, student_sampling=laws[seed], teacher_sampling=laws[seed - 1])
    expected = interleave_sequential(student, teacher, prompt, length, top_k=top_k, **given)
    for place, block in enumerate(BLOCKS):
        written = interleave(student, teacher, prompt, length, top_k=top_k, block=block, **given)
        assert same(written, expected), block
        at = (seed + place) % 8
        one, count, its = alone(prompt, length, given, at)
        written = interleave(student, teacher, one, count, top_k=top_k, block=block, **its)
        assert row(written, 0) == row(expected, at)


def test_holes_in_the_caches_are_squeezed_out(monkeypatch) -> None:
    from congener.generation import caches

    squeezed: list[int] = []
    plain = torch.Tensor.take_along_dim
    monkeypatch.setattr(
        torch.Tensor, "take_along_dim",
        lambda states, order, dim: squeezed.append(order.shape[2]) or plain(states, order, dim),
    )  # fmt: skip
    monkeypatch.setattr(caches, "_LEAST", 2)
    student, teacher = llama(1), llama(2)
    prompt, length = prompts(8, 12, seed=1)
    given = settings(8, max_new_tokens=24, eos=None, stop=())
    expected = interleave_sequential(student, teacher, prompt, length, top_k=8, **given)
    assert same(interleave(student, teacher, prompt, length, top_k=8, block=4, **given), expected)
    assert len(squeezed) > 3
    assert max(squeezed) < 12 + 24


@pytest.mark.parametrize("block", [3, "adaptive"])
def test_the_ends_of_the_range_are_one_network_alone(pair, block) -> None:
    student, teacher = pair
    prompt, length = prompts(8, 6, seed=3)
    given = settings(8, teacher_sampling=Sampling(0.8, 0.95))
    for top_k, model, name, role in ((VOCABULARY, student, "student", STUDENT),
                                     (VOCABULARY + 9, student, "student", STUDENT),
                                     (0, teacher, "teacher", TEACHER)):  # fmt: skip
        written = interleave(student, teacher, prompt, length, top_k=top_k, block=block, **given)
        own = generate(model, prompt, length, role=role, **of_one(given, name))
        assert torch.equal(written.tokens, own.tokens)
        assert torch.equal(written.proposed, own.proposed)
        inside = torch.arange(written.tokens.shape[1]) < written.length[:, None]
        assert torch.equal(written.proposed, inside & (role == STUDENT))


def test_whoever_writes_alone_is_the_only_one_called() -> None:
    student, teacher = llama(1), llama(2)
    given = settings(2, keep_logits=False, eos=None, stop=())
    prompt, length = prompts(2, 4)
    for top_k, idle in ((0, "student"), (VOCABULARY, "teacher")):
        written = interleave(student, teacher, prompt, length, top_k=top_k, **given)
        assert written.calls[idle] == 0
        # The prompts are read with the first token.
        assert sum(written.calls.values()) == given["max_new_tokens"]


def test_roles_have_numbers_of_their_own() -> None:
    prompt, length = prompts(8, 4)
    given = of_one(settings(8, eos=None, stop=()), "student")
    both = [generate(llama(), prompt, length, role=role, **given) for role in (STUDENT, TEACHER)]
    assert not torch.equal(both[0].tokens, both[1].tokens)
    assert both[0].proposed.all()
    assert not both[1].proposed.any()


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 6}, {"index": torch.arange(8)}])
def test_seed_step_and_sample_decide(change) -> None:
    prompt, length = prompts(8, 4)
    given = of_one(settings(8, eos=None, stop=()), "student")
    first, again = (generate(llama(), prompt, length, **given) for _ in range(2))
    other = generate(llama(), prompt, length, **(given | change))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


@pytest.mark.parametrize("top_k", [0, 4, VOCABULARY])
@pytest.mark.parametrize("block", [2, "adaptive"])
def test_kept_logits_are_those_of_a_fresh_pass(pair, top_k, block) -> None:
    student, teacher = pair
    prompt, length = prompts(6, 5, seed=2)
    written = interleave(student, teacher, prompt, length, top_k=top_k, block=block, **settings(6))
    assert written.logits is not None
    kept = written.logits.split(written.length.tolist())
    for at in range(6):
        count = int(written.length[at])
        text = torch.cat([prompt[at, : length[at]], written.tokens[at, :count]])
        fresh = teacher(input_ids=text[None]).logits[0, length[at] - 1 : -1]
        torch.testing.assert_close(kept[at], fresh, rtol=0, atol=1e-10)
        assert (written.tokens[at, count:] == PAD).all()
        assert not written.proposed[at, count:].any()


def test_an_end_within_the_top_k_ends_and_another_is_replaced() -> None:
    """A student that says nothing but EOS: its teacher lets it end, or says something else."""
    student, teacher = llama(1), llama(2)
    with torch.no_grad():
        student.lm_head.weight.zero_()
    given = settings(8, student_sampling=Sampling(0.0), stop=(), eos=0, max_new_tokens=30)
    prompt, length = prompts(8, 4)
    everything = interleave(student, teacher, prompt, length, top_k=VOCABULARY, block=3, **given)
    assert everything.length.tolist() == [1] * 8
    assert everything.finished.all()
    some = interleave(student, teacher, prompt, length, top_k=4, block=3, **given)
    assert (some.length > 1).any()
    for at in range(8):
        tokens, proposed = (row(some, at)[key] for key in ("tokens", "proposed"))
        assert all(token == 0 for token, own in zip(tokens, proposed, strict=True) if own)
        assert 0 not in tokens[:-1]
        assert bool(some.finished[at]) == (tokens[-1] == 0)


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_a_stop_is_found_across_blocks_but_not_in_the_prompt(block) -> None:
    student, teacher = llama(1), llama(2)
    prompt, length = prompts(8, 5, seed=2)
    free = interleave(student, teacher, prompt, length, top_k=6, block=block,
                      **settings(8, eos=None, stop=()))  # fmt: skip
    words = tuple(free.tokens[3, 2:5].tolist())
    across = (int(prompt[3, length[3] - 1]), int(free.tokens[3, 0]))
    given = settings(8, eos=None, stop=(words, across))
    cut = interleave(student, teacher, prompt, length, top_k=6, block=block, **given)
    assert int(cut.length[3]) == 5
    assert cut.finished[3]
    assert torch.equal(cut.tokens[3, :5], free.tokens[3, :5])


def test_the_limit_is_exact_and_an_unfinished_text_says_so() -> None:
    student, teacher = gpt2(1), gpt2(2)
    prompt, length = prompts(8, 5, seed=2)
    for longest in (0, 1, 6):
        given = settings(8, eos=None, stop=(), max_new_tokens=longest)
        written = interleave(student, teacher, prompt, length, top_k=5, block=3, **given)
        assert written.length.tolist() == [longest] * 8
        assert tuple(written.tokens.shape) == (8, longest)
        assert tuple(written.logits.shape) == (8 * longest, VOCABULARY)
        assert not written.finished.any()


def test_the_context_limits_texts_too() -> None:
    student, teacher = gpt2(1, context=9), llama(2, context=12)
    prompt, length = torch.full((3, 8), 5), torch.tensor([8, 4, 1])
    given = settings(3, eos=None, stop=(), max_new_tokens=6)
    expected = interleave_sequential(student, teacher, prompt, length, top_k=5, **given)
    assert expected.length.tolist() == [1, 5, 6]
    for block in BLOCKS:
        written = interleave(student, teacher, prompt, length, top_k=5, block=block, **given)
        assert same(written, expected)


def test_no_prompt_at_all() -> None:
    nothing = torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    for sampler in (interleave, interleave_sequential):
        written = sampler(llama(1), llama(2), *nothing, top_k=3, **settings(0))
        assert tuple(written.tokens.shape) == (0, 0)
        assert tuple(written.logits.shape) == (0, VOCABULARY)


@pytest.mark.filterwarnings("ignore:.*taken for padding")  # told once in a process
def test_padded_vocabularies_are_cut_to_their_common_part() -> None:
    student, teacher = llama(1, vocabulary=13), llama(2, vocabulary=16)
    prompt, length = prompts(8, 5, vocabulary=13)
    given = settings(8)
    for block in BLOCKS:
        for one, other in ((student, teacher), (teacher, student)):
            written = interleave(one, other, prompt, length, top_k=5, block=block, **given)
            expected = interleave_sequential(one, other, prompt, length, top_k=5, **given)
            assert same(written, expected)
            assert written.logits.shape[-1] == 13
            inside = torch.arange(written.tokens.shape[1]) < written.length[:, None]
            assert int(written.tokens[inside].max()) < 13
    assert EOS < 13
