r"""Speculative knowledge distillation, SKD (Xu et al., ICLR 2025), and its relatives by settings.

A small language model learns from a large one on texts that both write: the student proposes each
token, and the teacher replaces those that are not among its own ``top_k`` likeliest. Texts begin
near the teacher's and become the student's own as it learns. On each text the student's next-token
distributions follow the teacher's.

    yₙ ~ q(· | y₍<ₙ₎), but if yₙ is not in the top K of p(· | y₍<ₙ₎): yₙ ~ p(· | y₍<ₙ₎) instead

    total = w_kd · D(p ‖ q) on y  [+ w_task · CE(y)]

Of the texts, ``share`` are written so and the others are the data's own: which, a coin says for
each sample in each step. No gradient passes through what is drawn.

The relatives
    ``text: data`` is supervised distillation; ``text: student`` on-policy distillation, GKD, with
    ``share`` for its λ and β in the loss; ``text: teacher`` distillation on the teacher's texts,
    and with ``term_weights: {task: 1, kd: 0}`` sequence-level distillation, SeqKD; ImitKD is
    ``text: student`` with a ``share`` that rises. With a ``top_k`` of the whole vocabulary SKD
    writes what ``student`` does, with 0 what ``teacher`` does, token by token.

What it owns beyond a loss
    The writing. While the teacher reads a draft, or writes, it says what the loss wants to know:
    about such a text it is not asked again.

Which texts count
    A prompt without a response teaches where its text is written, else nothing. The mean is over
    the sequences of the global batch, each the mean over its tokens, its end among them, or with
    ``reduction: token`` over all tokens.

Differences from the authors' code
    As the paper says it, and not as the release does: a token is accepted if it itself is among the
    teacher's top K, and K counts by the teacher's raw logits; in the release a fresh draw decides,
    K counts among logits that top-p has cut, and the student draws with the teacher's settings. The
    loss reads all tokens of a response; the release's leaves the first out and has one beyond.
    Texts stay tokens, and are not decoded and encoded again. The release lowers K within a text
    (``expected_seq_len``) where told to; here K may follow the training. TRL's coin falls for a
    batch (``coin``). Draws follow step and sample alone, not the seed of a run.

What is saved, what is exported
    The student.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.generation import check_writes
from congener.naming import bind
from congener.ops.checks import check_choice
from congener.ops.collectives import all_sum, global_mean
from congener.ops.keyed_random import keyed_uniform
from congener.schedules import Schedule
from congener.system import System, TeacherLike
from congener.systems.probe import first_sample, probe
from congener.systems.skd_options import WEIGHTS, at, number, scheduled, token_loss, weights_of
from congener.systems.skd_texts import Author, Text, Writing, owners, rewritten, write
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.teachers.rows import taken
from congener.types import Batch, Outputs, Paper, Progress, StepResult

__all__ = ["SKD"]

FORWARD_KL = {"name": "gkd", "beta": 0.0}
COIN = 1  # the seed of its draws, apart from those of the texts


@final
class SKD(System):
    """A language model that follows its teacher on texts that both of them write.

    Args:
        student: the causal language model to train.
        teacher: the trained one, of the same tokens.
        task: ``language_modelling``, or one whose batches are like its.
        text: who writes: ``"skd"``, student and teacher together; ``"student"``; ``"teacher"``; or
            ``"data"``, nobody.
        share: λ, how many of the texts are written; the others are the data's. A number, or a
            :class:`congener.schedules.Schedule` that gives it.
        warm_up: share of the training, at its start, in which all texts are the data's.
        top_k: K, the rank up to which the teacher accepts the student's tokens; a number, or a
            schedule that gives it.
        writing: how texts are written: a :class:`.skd_texts.Writing` or its arguments by name.
        loss: D, a loss of token logits or its name and arguments.
        reduction: D is the mean over ``"sequence"`` means, or over each ``"token"``.
        term_weights: factors of ``task``, the cross-entropy of the same texts, and ``kd``; one that
            is not named keeps its default.

    Raises:
        RecipeError: a task or networks that do not fit, an unknown name, no term at all, a share
            outside 0 to 1, a negative K or weight, or what is no number.
        ValueError: an unknown word.
    """

    name = "skd"
    paper = Paper(
        title="Speculative Knowledge Distillation: Bridging the Teacher-Student Gap Through "
        "Interleaved Sampling",
        authors="Wenda Xu, Rujun Han, Zifeng Wang, Long T. Le, Dhruv Madeka, Lei Li, "
        "William Yang Wang, Rishabh Agarwal, Chen-Yu Lee, Tomas Pfister",
        venue="ICLR",
        year=2025,
        url="https://arxiv.org/abs/2410.11325",
    )
    equation = "L = w_kd·mean_y meanₙ D(pₙ ‖ qₙ) + w_task·CE(y),  yₙ ~ q if in top-K of p, else ~ p"
    sources: ClassVar = {
        "text": "paper: interleaved",
        "share": "paper: all; GKD's and ImitKD's λ",
        "warm_up": "ours: none",
        "top_k": "authors' code: 25",
        "writing": "authors' code: temperatures 0.5 and 0.2, top-p 0.5, drafts of 5",
        "loss": "authors' code: the forward KL",
        "reduction": "authors' code: the mean over sequences of their means",
        "term_weights": "authors' code: the divergence alone",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        text: Text = "skd",
        share: float | Schedule | Mapping[str, Any] = 1.0,
        warm_up: float = 0.0,
        top_k: int | Schedule | Mapping[str, Any] = 25,
        writing: Writing | Mapping[str, Any] = Writing(),  # noqa: B008  (frozen)
        loss: nn.Module | str | Mapping[str, Any] = FORWARD_KL,
        reduction: Literal["sequence", "token"] = "sequence",
        term_weights: Mapping[str, float] = WEIGHTS,
    ) -> None:
        super().__init__()
        check_choice("text", text, ("skd", "student", "teacher", "data"))
        check_choice("reduction", reduction, ("sequence", "token"))
        self.text, self.reduction = text, reduction
        self.share, self.top_k = scheduled("share", share, 1.0), scheduled("top_k", top_k)
        self.warm_up = number("warm_up", warm_up, 1.0)
        if not isinstance(writing, Writing):
            writing = Writing(**bind("part", "writing", Writing, writing))
        self.writing = writing
        self.term_weights = weights_of(term_weights)
        self.loss = token_loss(loss)
        _check(student, teacher, task, text)
        if text != "data":
            writing.stops(task.vocabulary)  # type: ignore[attr-defined]  # so that it refuses now
        self.student, self.task = student, task
        self.teacher = _teacher(text, teacher, task, asked=self.term_weights["kd"] > 0)
        self._proposed: Tensor | None = None

    def extra_repr(self) -> str:
        """The hyper-parameters, but for the loss, which is a module."""
        names = [name for name in self.sources if name != "loss"]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    @property
    def distils(self) -> bool:
        """Whether a prompt without a response teaches anything."""
        return self.text != "data"

    def needs_live_teacher(self) -> str:
        """What is asked changes with every step, where texts are written."""
        return "" if self.text == "data" else "the texts that it is asked about are written anew"

    def needs_whole_weights(self) -> str:
        """The student writes by itself, at a length of its own."""
        return "it writes texts within a step" if self.text in ("skd", "student") else ""

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        return {name: weight for name, weight in self.term_weights.items() if weight}

    def figures(self) -> dict[str, float]:
        """How many of the tokens of the last texts are the student's own; nothing beside SKD."""
        if self._proposed is None:
            return {}
        proposed, tokens = all_sum(self._proposed).tolist()
        return {"accepted": proposed / max(tokens, 1)}

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with the texts that were written in the place of the data's own."""
        self._proposed = None
        if self.text == "data" or progress.step < self.warm_up * progress.steps:
            return batch
        places = self._chosen(batch["index"], progress).nonzero().flatten()
        if self.text == "skd":
            self._proposed = torch.zeros(2, device=places.device)
        if not len(places):
            return batch
        author = self.teacher if isinstance(self.teacher, Author) else None
        with torch.no_grad():
            written = write(
                self.text,
                self.student,
                None if author is None else author.network,
                taken(batch, places),
                self.task,
                writing=self.writing,
                top_k=round(at(self.top_k, progress)),
                progress=progress,
                keep_logits=author is not None and author.asked,
            )
        if self.text == "skd":
            self._proposed = torch.stack((written.proposed.sum(), written.length.sum())).float()
        return rewritten(batch, places, written, self.task)

    def observe(self, batch: Batch) -> Outputs:
        """Run the student on the texts: a row of logits for each token that counts."""
        return Outputs(self.task.logits(self.task.call(self.student, batch)))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The cross-entropy of the texts, and the divergence from the teacher on them."""
        terms: dict[str, Tensor] = {}
        if self.term_weights["task"]:
            terms["task"] = self.task.loss(student.logits, batch)
        if self.term_weights["kd"]:
            assert teacher is not None
            terms["kd"] = self._divergence(student.logits, teacher.logits, batch)
        return self.weighted(terms, progress)

    def _divergence(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Tensor:
        values = self.loss(student_logits=student_logits, teacher_logits=teacher_logits)
        if self.reduction == "token":
            return global_mean(values)
        owner = owners(self.task, batch)
        tokens = torch.bincount(owner, minlength=len(batch["index"]))
        sums = values.new_zeros(len(tokens)).index_add(0, owner, values)
        return global_mean(sums / tokens.clamp(min=1), tokens > 0)

    def _chosen(self, index: Tensor, progress: Progress) -> Tensor:
        """Whose text is written in this step, (batch,)."""
        ids = index if self.writing.coin == "sample" else index.new_zeros(1)
        draws = keyed_uniform(ids, seed=COIN, epoch=progress.step, count=1)[:, 0]
        return (draws < at(self.share, progress)).expand(len(index))


def _teacher(text: Text, network: nn.Module, task: Task, *, asked: bool) -> TeacherLike | None:
    """Who says what the loss wants to know, and writes where it is to."""
    if text in ("skd", "teacher"):
        return Author(network, task, asked=asked)
    return FrozenTeacher(network, task) if asked else None


def _check(student: nn.Module, teacher: nn.Module, task: Task, text: Text) -> None:
    """Refuse a task without texts, and networks of different tokens."""
    sample = first_sample(task)
    missing = {"tokens", "prompt", "length", "labels"} - sample.keys()
    if missing or not hasattr(task, "vocabulary") or task.token_mask(sample) is None:
        raise RecipeError(
            f"The system 'skd' learns from texts that answer prompts, and the batches of this task "
            f"({type(task).__name__}) hold {', '.join(sorted(sample))}; use the task "
            "language_modelling."
        )
    both = {"student": student, "teacher": teacher}
    writers = both if text == "skd" else {who: both[who] for who in both if who == text}
    for who, network in writers.items():
        try:
            check_writes(network)
        except TypeError as error:
            raise RecipeError(f"The {who} cannot write texts: {error}") from error
    mine, theirs = (probe(network, task).logits.shape[-1] for network in (student, teacher))
    if mine != theirs:
        raise RecipeError(
            f"The student tells {mine} tokens apart and the teacher {theirs}, but they write one "
            "text; take networks of one tokenizer."
        )
