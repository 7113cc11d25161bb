"""What generation refuses, each in one sentence, and what it leaves as it was."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.generation.networks import gpt2, llama, of_one, prompts, same, settings
from torch import nn

from congener.errors import DataError, NonFiniteLossError, ShapeError
from congener.generation import (
    Sampling,
    generate,
    interleave,
    interleave_sequential,
)

SAMPLERS = pytest.mark.parametrize("sampler", [interleave, interleave_sequential])


def mixed_modes() -> tuple[nn.Module, nn.Module]:
    """Networks with dropout, in training but for a part of one."""
    student, teacher = gpt2(1).train(), gpt2(2, layers=2).train()
    teacher.transformer.h[0].eval()
    return student, teacher


@SAMPLERS
def test_modes_gradients_and_the_global_generator_are_left_alone(sampler) -> None:
    student, teacher = mixed_modes()
    before = [module.training for net in (student, teacher) for module in net.modules()]
    state = torch.get_rng_state()
    prompt, length = prompts(4, 5)
    written = sampler(student, teacher, prompt, length, top_k=5, **settings(4))
    assert before == [module.training for net in (student, teacher) for module in net.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert not written.logits.requires_grad
    resting = sampler(student.eval(), teacher.eval(), prompt, length, top_k=5, **settings(4))
    assert same(written, resting)


def test_modes_return_after_an_error() -> None:
    student, teacher = mixed_modes()
    teacher.lm_head.weight.data.fill_(math.nan)
    prompt, length = prompts(4, 5)
    with pytest.raises(NonFiniteLossError):
        interleave(student, teacher, prompt, length, top_k=5, **settings(4))
    assert student.training
    assert not teacher.transformer.h[0].training
    assert teacher.transformer.h[1].training


@SAMPLERS
def test_words_that_a_teacher_excludes_are_never_its_own(sampler) -> None:
    student, teacher = llama(1), llama(2)
    excluded = torch.zeros(14, dtype=torch.float64)
    excluded[::2] = -math.inf
    teacher.lm_head.register_forward_hook(lambda module, given, result: result + excluded)
    prompt, length = prompts(8, 5)
    written = sampler(student, teacher, prompt, length, top_k=3, **settings(8, eos=None, stop=()))
    assert (written.tokens % 2 == 1).all()
    everything = sampler(
        student, teacher, prompt, length, top_k=14, **settings(8, eos=None, stop=())
    )
    assert (everything.tokens % 2 == 0).any()


@SAMPLERS
@pytest.mark.parametrize("top_k", [0, 3, 14])
def test_a_teacher_of_nan_is_refused(sampler, top_k) -> None:
    teacher = llama(2)
    teacher.lm_head.weight.data[3, 2] = math.nan
    prompt, length = prompts(4, 5)
    with pytest.raises(NonFiniteLossError, match="no token can be drawn"):
        sampler(llama(1), teacher, prompt, length, top_k=top_k, **settings(4))


@SAMPLERS
@pytest.mark.parametrize(
    ("prompt", "length", "index", "kind", "match"),
    [
        (torch.ones(3), [1, 1, 1], 3, ShapeError, r"prompt \(3,\) must be \(batch, longest\)"),
        (torch.ones(3, 2), [1, 1], 3, ShapeError, r"prompt_length \(2,\)"),
        (torch.ones(3, 2), [1, 1, 1], 2, ShapeError, r"index \(2,\)"),
        (torch.ones(3, 0), [0, 0, 0], 3, DataError, "at least one token"),
        (torch.ones(3, 2), [1, 0, 1], 3, DataError, "1…2, not 0; an empty prompt"),
        (torch.ones(3, 2), [1, 3, 1], 3, DataError, "1…2, not 3"),
        (torch.full((3, 2), 14.0), [1, 1, 1], 3, DataError, "token 14.* has 14 ids"),
        (torch.full((3, 2), -1.0), [1, 1, 1], 3, DataError, "token -1"),
        (torch.ones(3, 64), [1, 64, 1], 3, DataError, "64 tokens leaves no room.*context of 64"),
    ],
)
def test_prompts_that_cannot_be_read(sampler, prompt, length, index, kind, match) -> None:
    with pytest.raises(kind, match=match):
        sampler(
            llama(1), gpt2(2, context=80), prompt.long(), torch.tensor(length), top_k=3,
            **settings(index),
        )  # fmt: skip


@SAMPLERS
@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"top_k": -1}, "top_k must be at least 0"), ({"stop": ((3,), ())}, "stop sequence"),
     ({"max_new_tokens": -1}, "max_new_tokens")],
)  # fmt: skip
def test_numbers_out_of_range(sampler, wrong, match) -> None:
    prompt, length = prompts(4, 5)
    with pytest.raises(ValueError, match=match):
        sampler(llama(1), llama(2), prompt, length, **({"top_k": 3} | settings(4) | wrong))


@SAMPLERS
def test_other_vocabularies_are_refused_by_both_sizes(sampler) -> None:
    prompt, length = prompts(4, 5)
    with pytest.raises(ShapeError, match=r"has 14 words and the teacher's 24, .*uld_loss"):
        sampler(llama(1), llama(2, vocabulary=24), prompt, length, top_k=3, **settings(4))


@SAMPLERS
def test_padding_is_never_written_where_the_tokenizer_is_known(sampler) -> None:
    """Of networks of more ids, which differ by more than padding does."""
    prompt, length = prompts(4, 5)
    both = llama(1, vocabulary=14), llama(2, vocabulary=24)
    given = settings(4) | {"eos": None, "stop": (), "top_k": 14, "vocabulary": 11}
    written = sampler(*both, prompt % 11, length, **given)
    assert int(written.tokens.max()) < 11
    with pytest.raises(ShapeError, match=r"tokenizer has 15 ids and a network .* only 14"):
        sampler(*both, prompt % 11, length, **(given | {"vocabulary": 15}))


def test_networks_of_another_kind_are_refused() -> None:
    prompt, length = prompts(4, 5)
    with pytest.raises(TypeError, match=r"Linear has no config\.vocab_size"):
        generate(nn.Linear(2, 2), prompt, length, **of_one(settings(4), "student"))

    class Plain(nn.Module):
        config = SimpleNamespace(vocab_size=14)

        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=nn.functional.one_hot(input_ids, 14).double())

    with pytest.raises(TypeError, match=r"Plain takes no attention_mask, .*interleave_sequential"):
        generate(Plain(), prompt, length, **of_one(settings(4), "student"))
    given = settings(4, student_sampling=Sampling(0.0), eos=None, stop=())
    written = interleave_sequential(Plain(), llama(2), prompt, length, top_k=14, **given)
    last = prompt.gather(1, length[:, None] - 1)
    assert torch.equal(written.tokens, last.expand(-1, 6))
