"""Texts that a system learns from instead of the data's own: who writes them, and where they go.

Draws are functions of the step, the sample and the position alone (:mod:`congener.generation`), so
a text is the same in any batch, in pieces, over processes and after a resume.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.generation import Sampling, Written, generate, interleave
from congener.ops.checks import check_choice
from congener.schedules import Schedule
from congener.systems.skd_options import at, number, scheduled
from congener.taps import bare
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.teachers.rows import taken
from congener.types import Batch, Outputs, Progress

__all__ = ["Author", "Text", "Writing", "owners", "rewritten", "write"]

Text = Literal["skd", "student", "teacher", "data"]
"""Who writes: student and teacher together, one of them, or nobody: the data's texts stay."""

SAID = "teacher_logits"  # the entry with what the teacher said of each text while it was written
WRITTEN = "written"  # the entry that tells which samples have a text that was written
IGNORE = -100


@dataclass(frozen=True, slots=True)
class Writing:
    """How texts are written.

    Args:
        student_temperature: divides the student's logits before it draws; 0: its likeliest token.
        student_top_p: it draws among its likeliest tokens of so much probability together.
        teacher_temperature: likewise of the teacher, whose own logits decide what is accepted.
        teacher_top_p: likewise.
        max_new_tokens: length of a text without its prompt, at most; default: as the task says.
        block: tokens that the student drafts before the teacher looks at them together; a number, a
            schedule that gives it, or ``"adaptive"``: as pays. It changes the seconds, and not the
            texts.
        stop: what ends a text beside its end token and stays in it: token ids, or strings, which
            end it where it has the very tokens that the tokenizer makes of them.
        coin: falls for each ``"sample"`` or for a whole ``"batch"``, where only a share is written.

    Raises:
        RecipeError: a length or a block that is not positive, or what is no number.
        ValueError: a share of probability or a word that cannot be.
    """

    student_temperature: float = 0.5
    student_top_p: float = 0.5
    teacher_temperature: float = 0.2
    teacher_top_p: float = 0.5
    max_new_tokens: int | None = None
    block: int | Schedule | Mapping[str, Any] | Literal["adaptive"] = 5
    stop: Sequence[str | Sequence[int]] = ()
    coin: Literal["sample", "batch"] = "sample"

    def __post_init__(self) -> None:
        check_choice("coin", self.coin, ("sample", "batch"))
        if isinstance(self.block, Schedule | Mapping):
            scheduled("block", self.block)
        elif self.block != "adaptive":
            _check_length("block", self.block)
        if self.max_new_tokens is not None:
            _check_length("max_new_tokens", self.max_new_tokens)
        for who in ("student", "teacher"):
            for name in (f"{who}_temperature", f"{who}_top_p"):
                number(name, getattr(self, name))
        _ = self.student, self.teacher  # they refuse what cannot be

    def block_at(self, progress: Progress) -> int | Literal["adaptive"]:
        """The length of drafts at some point of the training, at least 1."""
        if self.block == "adaptive":
            return "adaptive"
        return max(1, round(at(scheduled("block", self.block), progress)))

    def stops(self, vocabulary: Any) -> list[list[int]]:
        """The tokens of each ``stop``.

        Raises:
            RecipeError: a string where no tokenizer is known, nothing, or an unknown token.
        """
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise RecipeError(f"stop must be a list of strings or of token ids, not {self.stop!r}.")
        found = []
        for given in self.stop:
            if isinstance(given, str) and vocabulary.encode is None:
                raise RecipeError(
                    f"stop={given!r} is text, and {vocabulary.name} makes no tokens of text; give "
                    "the ids of its tokens, as in stop: [[3]]."
                )
            words = vocabulary.encode(given) if isinstance(given, str) else given
            known = isinstance(words, Sequence) and all(
                isinstance(word, int) and 0 <= word < vocabulary.size for word in words
            )
            if not known or not words:
                raise RecipeError(
                    f"stop holds {given!r}; expected a string, or ids among the {vocabulary.size} "
                    f"of {vocabulary.name}, at least one."
                )
            found.append(list(words))
        return found

    @property
    def student(self) -> Sampling:
        """How the student draws."""
        return Sampling(self.student_temperature, self.student_top_p)

    @property
    def teacher(self) -> Sampling:
        """How the teacher draws."""
        return Sampling(self.teacher_temperature, self.teacher_top_p)


def _check_length(name: str, tokens: Any) -> None:
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise RecipeError(f"{name} must be a number of tokens, at least 1, not {tokens!r}.")


class Author:
    """A frozen teacher that writes, and is not asked again about what it has read while writing.

    Args:
        model: the trained network.
        task: how it is called.
        asked: whether its logits are needed at all.

    Attributes:
        frozen: the teacher that answers about other texts.
    """

    def __init__(self, model: nn.Module, task: Task, *, asked: bool) -> None:
        self.frozen = FrozenTeacher(model, task)
        self.asked = asked

    @property
    def network(self) -> nn.Module:
        """The network, ready to write."""
        return self.frozen.model.eval()

    def __call__(self, batch: Batch) -> Outputs:
        """The logits of the tokens of a prepared batch, a row for each."""
        if not self.asked:
            return Outputs(torch.zeros(len(batch["index"]), 0, device=batch["index"].device))
        if SAID not in batch:
            return self.frozen(batch)
        task, written = self.frozen.task, batch[WRITTEN]
        said = torch.cat(batch[SAID])
        if written.all():
            return Outputs(said)
        others = self.frozen(taken(batch, (~written).nonzero().flatten())).logits
        own = written[owners(task, batch)]
        logits = said.new_empty(len(own), said.shape[1])
        logits[own], logits[~own] = said, others.to(said.dtype)
        return Outputs(logits)

    def to(self, device: torch.device) -> "Author":
        """Move the network to a device."""
        self.frozen.to(device)
        return self


def write(
    text: Text,
    student: nn.Module,
    teacher: nn.Module | None,
    batch: Batch,
    task: Any,
    *,
    writing: Writing,
    top_k: int,
    progress: Progress,
    keep_logits: bool,
) -> Written:
    """Write an answer to each prompt of a batch, without gradient.

    Args:
        text: who writes.
        student: the bare student.
        teacher: the bare teacher, where it writes.
        batch: prepared.
        task: whose batch it is.
        writing: how.
        top_k: a token of the student's stays where it is among so many of the teacher's likeliest.
        progress: of the training; the draws follow its step.
        keep_logits: keep what the teacher says of each token while it reads or writes.
    """
    lengths = batch["prompt"]
    prompt = batch["tokens"][:, : int(lengths.max())]
    options: dict[str, Any] = {
        "index": batch["index"],
        "seed": 0,
        "step": progress.step,
        "max_new_tokens": writing.max_new_tokens or task.max_new_tokens,
        "eos": task.vocabulary.eos,
        "pad": task.vocabulary.pad,
        "vocabulary": task.vocabulary.size,
        "stop": writing.stops(task.vocabulary),
    }
    # What is compiled would be compiled anew for each length.
    compiled = bare(student)._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        if teacher is None:
            return generate(student, prompt, lengths, sampling=writing.student, **options)
        return interleave(
            student,
            teacher,
            prompt,
            lengths,
            top_k=0 if text == "teacher" else top_k,
            # A teacher writes alone.
            block="adaptive" if text == "teacher" else writing.block_at(progress),
            student_sampling=writing.student,
            teacher_sampling=writing.teacher,
            keep_logits=keep_logits,
            **options,
        )


def rewritten(batch: Batch, places: Tensor, written: Written, task: Any) -> Batch:
    """A batch in which some samples have another text.

    Args:
        batch: prepared.
        places: of the samples, (written,).
        written: their answers, (written, longest).
        task: whose batch it is.
    """
    prompt, length = batch["prompt"], batch["length"].clone()
    length[places] = prompt[places] + written.length
    longest = int(length.max())
    beyond = (0, longest - batch["tokens"].shape[1])  # negative: cut
    tokens = F.pad(batch["tokens"], beyond, value=task.vocabulary.pad)
    labels = F.pad(batch["labels"], beyond, value=IGNORE)
    columns = torch.arange(longest, device=length.device)
    mask = columns < length[:, None]
    after = columns - prompt[places, None]
    fresh = written.tokens.gather(1, after.clamp(0, written.tokens.shape[1] - 1))
    fresh = fresh.where(mask[places], task.vocabulary.pad)
    tokens[places] = tokens[places].where(after < 0, fresh)
    answered = (after >= 0) & mask[places]
    labels[places] = fresh.where(answered, IGNORE)
    found = batch | {"tokens": tokens, "labels": labels, "length": length, "mask": mask}
    found[WRITTEN] = torch.zeros_like(length, dtype=torch.bool).index_fill(0, places, value=True)
    if written.logits is not None:
        texts = torch.split(written.logits, written.length.tolist())
        found[SAID] = [written.logits[:0]] * len(length)  # a list, which is cut as samples are
        for place, said in zip(places.tolist(), texts, strict=True):
            found[SAID][place] = said
    return found


def owners(task: Task, batch: Batch) -> Tensor:
    """The row in the batch of each row of logits."""
    return _token_mask(task, batch).nonzero()[:, 0]


def _token_mask(task: Task, batch: Batch) -> Tensor:
    mask = task.token_mask(batch)
    assert mask is not None
    return mask
