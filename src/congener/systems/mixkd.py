r"""MixKD (Liang et al., ICLR 2021): a student taught on mixtures of texts, too.

With little text the teacher is asked about more than there is: about mixtures of two texts, whose
embeddings are interpolated, by both networks each in its own space. The same pairs and shares go to
both; the student learns the mixed labels and the teacher's answer.

    e'ₖ = λ e_{i,k} + (1 − λ) e_{j,k} at every position k, λ ~ Beta(a, a)
    total = task_loss(S(x)) + alpha_sm · SM + alpha_tmkd · TMKD [+ kd_weight · KD(S(x), T(x))]
    SM = mean λ CE(S(x'), yᵢ) + (1 − λ) CE(S(x'), yⱼ),  TMKD = mean d(T(x'), S(x'))

SM and TMKD are the two parts of :class:`congener.losses.MixKDLoss`, on as many mixed texts as the
batch has. Further ``terms`` are those of :class:`congener.systems.Distillation`, on the texts as
they are. Of numbers (labels of floating point) SM is the task's loss with the mixed number.

Texts without a label
    TMKD takes every mixture, SM those of two labelled texts; labelled ones are mixed with each
    other, so that there are many. With ``pool`` off the student sees the labelled texts alone, as
    without a teacher.

What is mixed
    The sum of word, position and segment embeddings, before its normalisation: after it nothing
    would be linear. A text that ends before its partner goes on as [PAD], whose embedding has its
    share. See :class:`Mixing` for λ and the mask.

What it owns beyond a loss
    The mixing. Each text is mixed with the next one of a circle of the global batch; circles and λ
    are functions of the step and the sample ids alone. So mixtures are the same after a resume, in
    pieces and over processes, no random generator is drawn from, and with both alphas 0 the run is
    that without mixing. Clean and mixed texts go through the student in one call.

Differences from the authors' code
    None is known to be published, and the paper's text was not at hand: mixing for the student and
    for the teacher is its abstract's; the terms' exact form, all numbers, the pairing and the mask
    are ours. Back-translated texts, which the paper adds to the data, are data: give them.

What is saved, what is exported
    The student, and the losses of further terms.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import KDLoss, MixKDLoss, mixed_cross_entropy_loss, mixkd_distance_loss
from congener.losses.mixkd_parts import Distance
from congener.naming import bind
from congener.ops.checks import check_choice, check_temperature
from congener.system import Stage, System
from congener.systems.distillation import Distillation
from congener.systems.mixture import Mixing, check_texts, classes_of
from congener.systems.probe import first_sample
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult, Term

__all__ = ["MixKD"]

AS_USUAL = Mixing()


@final
class MixKD(System):
    """A student that learns from labels and a teacher, on texts and on mixtures of them.

    Args:
        student: the network to train, with embeddings of words.
        teacher: the trained network, likewise; needed unless ``alpha_tmkd`` is 0.
        terms: further distillation terms, on the texts as they are.
        task: how networks are called, and the supervised loss; its batches hold ``tokens``.
        alpha_sm: α_SM, factor of the mixed labels' loss; 0 leaves it out.
        alpha_tmkd: α_TMKD, factor of the distance to the teacher on mixtures; 0 leaves it out.
        distance: d: ``"mse"`` of the logits, or ``"kl"`` of the probabilities.
        temperature: τ of ``"kl"`` and of ``kd_weight``'s divergence.
        kd_weight: factor of the divergence from the teacher on the texts as they are.
        pool: learn from texts without a label as well.
        mixing: how texts are mixed, a :class:`Mixing` or its arguments by name.

    Raises:
        RecipeError: no teacher where one is needed, batches that hold no texts, networks that
            cannot be given mixtures or tell other classes apart, an unknown argument of the mixing.
        ValueError: a negative factor, τ ≤ 0, an unknown word.
    """

    name = "mixkd"
    paper = MixKDLoss.paper
    equation = "L = CE + α_SM·mean (λ·CE(y) + (1−λ)·CE(y')) + α_TMKD·mean d(zᵗ, zˢ), mixed zᵗ, zˢ"
    batch_coupled = True
    sources: ClassVar = {
        "terms": "yours: what else the student is to learn",
        **{
            name: MixKDLoss.sources[name]
            for name in ("alpha_sm", "alpha_tmkd", "distance", "temperature")
        },
        "kd_weight": "ours: none; plain KD is what the paper compares with",
        "pool": "ours: the teacher's term needs no labels",
        "mixing": "ours: Beta(0.4, 0.4), one λ for a batch, union of the masks",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[Term] = (),
        *,
        task: Task,
        alpha_sm: float = 1.0,
        alpha_tmkd: float = 1.0,
        distance: Distance = "mse",
        temperature: float = 1.0,
        kd_weight: float = 0.0,
        pool: bool = True,
        mixing: Mixing | Mapping[str, Any] = AS_USUAL,
    ) -> None:
        super().__init__()
        check_choice("distance", distance, ("mse", "kl"))
        check_temperature(temperature)
        for key, factor in {"alpha_sm": alpha_sm, "alpha_tmkd": alpha_tmkd}.items():
            if factor < 0:
                raise ValueError(f"{key} must not be negative, not {factor}; 0 leaves it out.")
        if teacher is None and alpha_tmkd:
            raise RecipeError(
                "The system 'mixkd' needs a teacher to ask about mixtures; name one, or set "
                "alpha_tmkd to 0."
            )
        self.alpha_sm, self.alpha_tmkd, self.kd_weight = alpha_sm, alpha_tmkd, kd_weight
        self.distance, self.temperature, self.pool = distance, temperature, pool
        if not isinstance(mixing, Mixing):
            mixing = Mixing(**bind("part", "mixing", Mixing, mixing))
        self.mixing, self.task = mixing, task
        asked = _all_terms(terms, kd_weight, temperature)
        clean = Distillation(student, teacher if asked else None, asked, task=task)
        self._clean = [clean]  # no submodule: what it holds is held under the names below
        self.student, self.losses, self.answers = student, clean.losses, clean.answers
        self.teacher = clean.teacher
        if self._mixes:
            self._check(student, teacher if alpha_tmkd or asked else None)
            if isinstance(clean.teacher, FrozenTeacher) and not alpha_tmkd:
                self.teacher = _HalfTeacher(clean.teacher, mixed=False)
            elif teacher is not None and not asked and alpha_tmkd:
                self.teacher = _HalfTeacher(FrozenTeacher(teacher, task), mixed=True)

    @property
    def _mixes(self) -> bool:
        return bool(self.alpha_sm or self.alpha_tmkd)

    def _check(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """Try a mixture on both networks."""
        sample = first_sample(self.task)
        check_texts(sample)
        regression = sample["labels"].is_floating_point()
        if regression and self.distance == "kl":
            raise RecipeError(
                "The distance 'kl' compares probabilities of classes, and these labels are "
                "numbers; use 'mse'."
            )
        mine = classes_of(student, "student", self.task, self.mixing)
        theirs = mine if teacher is None else classes_of(teacher, "teacher", self.task, self.mixing)
        if mine != theirs:
            raise RecipeError(
                f"The student tells {mine} classes apart and the teacher {theirs}; give both "
                "networks the same classes."
            )

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in self.sources if n != "terms")

    @property
    def distils(self) -> bool:
        """Texts without a label teach it something, where there is a teacher and the pool is on."""
        return self.teacher is not None and self.pool

    def needs_live_teacher(self) -> str:
        """What the teacher is asked changes with every step."""
        if self.alpha_tmkd:
            return "the teacher is asked about mixtures of texts, which are new in every step"
        return self._clean[0].needs_live_teacher()

    def stages(self) -> Sequence[Stage]:
        """What further terms need measured before training."""
        return self._clean[0].stages()

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        mixed = {"student_mixup": self.alpha_sm, "teacher_mixup": self.alpha_tmkd}
        return self._clean[0].weights(progress) | {k: v for k, v in mixed.items() if v}

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """The texts, and behind them as many mixtures."""
        if not self._mixes:
            return batch
        return self.mixing(batch, step=progress.step, pad=getattr(self.task, "pad", 0))

    def observe(self, batch: Batch) -> Outputs:
        """Run the student, on texts and mixtures in one call, and read its taps."""
        return self._clean[0].observe(batch)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The supervised loss and further terms of the texts, and both terms of the mixtures."""
        if not self._mixes:
            return self._clean[0].score(student, teacher, batch, progress)
        count = batch["mixed"].count(False)
        texts, mixtures = slice(count), slice(count, None)
        said = _outputs(teacher, texts) if teacher is not None and self._clean[0].terms else None
        terms = (
            self._clean[0]
            .score(_outputs(student, texts), said, _rows(batch, texts), progress)
            .terms
        )
        logits = student.logits[mixtures]
        if self.alpha_sm:
            terms["student_mixup"] = self._student_mixup(logits, _rows(batch, mixtures))
        if teacher is not None and self.alpha_tmkd:
            terms["teacher_mixup"] = mixkd_distance_loss(
                logits,
                teacher.logits[-count:],
                distance=self.distance,
                temperature=self.temperature,
            )
        return self.weighted(terms, progress)

    def _student_mixup(self, logits: Tensor, batch: Batch) -> Tensor:
        own, other, share = batch["labels"], batch["other_labels"], batch["share"]
        if own.is_floating_point():  # NaN, no label, mixed with anything is NaN
            return self.task.loss(logits, batch | {"labels": torch.lerp(other, own, share)})
        return mixed_cross_entropy_loss(logits, own, other, share)


class _HalfTeacher:
    """A teacher that is asked about the texts alone, or about the mixtures alone."""

    def __init__(self, frozen: FrozenTeacher, *, mixed: bool) -> None:
        self.frozen, self.mixed = frozen, mixed

    def __call__(self, batch: Batch) -> Outputs:
        count = batch["mixed"].count(False)
        half = slice(count, None) if self.mixed else slice(count)
        if self.mixed in batch["mixed"]:
            return self.frozen(_rows(batch, half))
        return _outputs(self.frozen(_rows(batch, slice(1))), slice(0))  # a piece without any

    @property
    def networks(self) -> tuple[FrozenTeacher, ...]:
        """What can be told how to run."""
        return self.frozen.networks

    def to(self, device: torch.device) -> "_HalfTeacher":
        """Move the network to a device."""
        self.frozen.to(device)
        return self


def _all_terms(terms: Sequence[Term], kd_weight: float, temperature: float) -> list[Term]:
    """Those of the texts as they are, plain KD the first."""
    for term in terms:
        if not isinstance(term, Term):
            raise RecipeError(
                f"The further `terms` of 'mixkd' are Term objects, not {term}; in a recipe they "
                "stand beside the `system`."
            )
        if term.name in ("student_mixup", "teacher_mixup"):
            raise RecipeError(f"A term cannot be called {term.name!r}; give it another `name`.")
    plain = [Term(KDLoss(temperature), kd_weight)] if kd_weight else []
    return [*plain, *terms]


def _rows(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch with mixtures."""
    count = len(batch["mixed"])

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() == 0:
            return value
        held = isinstance(value, Tensor | list | tuple) and len(value) == count
        return value[rows] if held else value

    return {key: cut(value) for key, value in batch.items()}


def _outputs(said: Outputs, rows: slice) -> Outputs:
    """Some rows of what a network said."""
    features = {path: value[rows] for path, value in said.features.items()}
    members = {name: _outputs(member, rows) for name, member in said.members.items()}
    return Outputs(said.logits[rows], features, members)
