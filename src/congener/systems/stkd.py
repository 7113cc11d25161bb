r"""Similarity transfer, STKD (Zhao, Gong, Sun, Dong and Yu, arXiv 2021): a reconstruction.

How alike classes look shows where samples of several are mixed. Virtual samples are interpolated
from images of the batch; the student learns their mixed labels and the teacher's answer to them.

    x̃ᵢ = Σₖ λₖ x_{πₖ(i)}, ỹᵢ = Σₖ λₖ y_{πₖ(i)} of n_mix images, λ ~ Dirichlet(α, …, α), π₁ = id
    total = ce_weight · CE(S(x̃), ỹ) + kl_weight · KD(S(x̃), T(x̃))
            [+ ce_weight · task_loss(S(x)) + kl_weight · KD(S(x), T(x)), with ``add_clean_terms``]

With two images λ is of Beta(α, α), as in mixup, and the first two terms are
:class:`congener.losses.STKDLoss`. KD is :func:`congener.losses.kd_loss`. The cross-entropy is the
mean over the virtual samples whose images are all labelled; the teacher's answer counts for all.
The target ``"interpolated"`` is Σₖ λₖ softmax(T(x_{πₖ(i)})/τ) instead of softmax(T(x̃ᵢ)/τ).

*What it owns beyond a loss*: the mixing, of prepared (normalised) images, by fresh λ and π at each
step from torch's CPU generator. Partners are of the same process' share of the batch: with several
processes the pairs are others than with one, and as random.

*Differences from the authors' code*: none is known to be published, and of the paper the abstract
was at hand, so all of this is reconstructed: that virtual samples are mixed by weighted linear
interpolation, keep mixed labels and should be answered alike by both networks is the abstract's;
the terms, all numbers and all switches' defaults are ours. ``n_mix`` above 2 is for the title of
the journal version, which speaks of multiple instances. Whether the teacher was trained on mixed
samples too is not known: it is the recipe of the teacher's training that would have to, not this
system. The student answers clean images, where asked to, in a forward of their own.

*What is saved*: the student. *What is exported*: the bare student.
"""

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import STKDLoss, kd_loss, soft_cross_entropy_loss
from congener.ops.checks import check_choice, check_classes, check_positive, check_temperature
from congener.ops.divergence import soften
from congener.system import System
from congener.systems.probe import first_sample
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["STKD", "virtual_batch"]

IMAGE, VIRTUAL = "image", "virtual"  # entries of a batch: the images, and what is mixed of them
PARTNERS, SHARES = "partners", "shares"  # of which images, and how much of each
CLEAN = "clean"  # the feature with the logits of the images themselves


@final
class STKD(System):
    """A reconstruction of STKD: mixed images, answered as the teacher does and as their labels say.

    Args:
        student: the network to train.
        teacher: the trained network.
        task: how networks are called; its batches hold float images ``image`` and class numbers
            ``labels``, negative where there is none.
        alpha: α of the shares' distribution: small ones leave one image nearly alone, 1 makes all
            shares as likely, large ones make them equal.
        n_mix: images in a virtual sample, at least 2.
        lambda_per: draw the shares once for the ``"batch"`` of a process, or for each ``"sample"``.
        teacher_target: the teacher's answer to the ``"virtual"`` sample, or its answers to the
            images ``"interpolated"``.
        add_clean_terms: also learn from the images themselves, by the same weights.
        ce_weight: factor of the cross-entropies.
        kl_weight: factor of the divergences from the teacher.
        temperature: τ of the divergences.

    Raises:
        RecipeError: fewer than two images, batches without float images or class numbers.
        ValueError: τ or α ≤ 0, an unknown word.
    """

    name = "stkd"
    paper = STKDLoss.paper
    equation = STKDLoss.equation
    batch_coupled = True
    sources: ClassVar = {
        "alpha": "ours: uniform shares; the paper's was not at hand",
        "n_mix": "ours: pairs; the paper's was not at hand",
        "lambda_per": "ours: as in mixup; the paper's was not at hand",
        "teacher_target": "ours: the abstract's likely reading",
        "add_clean_terms": "ours: the abstract names virtual samples only",
        **{
            name: STKDLoss.sources[name] for name in ("ce_weight", "kl_weight", "temperature")
        },
    }  # fmt: skip

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        task: Task,
        alpha: float = 1.0,
        n_mix: int = 2,
        lambda_per: Literal["batch", "sample"] = "batch",
        teacher_target: Literal["virtual", "interpolated"] = "virtual",
        add_clean_terms: bool = False,
        ce_weight: float = 0.1,
        kl_weight: float = 0.9,
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        check_positive("alpha", alpha)
        check_choice("lambda_per", lambda_per, ("batch", "sample"))
        check_choice("teacher_target", teacher_target, ("virtual", "interpolated"))
        check_temperature(temperature)
        if n_mix < 2:
            raise RecipeError(f"A virtual sample is mixed of 2 images or more, not n_mix={n_mix}.")
        _check_sample(first_sample(task))
        self.student, self.task = student, task
        self.alpha, self.n_mix, self.lambda_per = alpha, n_mix, lambda_per
        self.teacher_target, self.add_clean_terms = teacher_target, add_clean_terms
        self.ce_weight, self.kl_weight, self.temperature = ce_weight, kl_weight, temperature
        self.teacher = _Teacher(teacher, task, teacher_target, clean=add_clean_terms)

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)

    def needs_live_teacher(self) -> str:
        """What the teacher is asked changes with every step."""
        return "the teacher is asked about virtual samples, which are mixed anew in every step"

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        factors = {"task": self.ce_weight, "kd": self.kl_weight}
        if self.add_clean_terms:
            factors |= {"clean_task": self.ce_weight, "clean_kd": self.kl_weight}
        return factors

    def views(self, batch: Batch, progress: Progress) -> Batch:
        """With virtual samples beside the images: fresh shares of fresh partners."""
        count = len(batch[IMAGE])
        partners = [torch.arange(count), *(torch.randperm(count) for _ in range(1, self.n_mix))]
        shares = torch.distributions.Dirichlet(
            torch.full((self.n_mix,), float(self.alpha), dtype=torch.float64)
        ).sample((count if self.lambda_per == "sample" else 1,))
        return virtual_batch(batch, torch.stack(partners, 1), shares.expand(count, -1))

    def observe(self, batch: Batch) -> Outputs:
        """Run the student on the virtual samples, and on the images where they are learnt from."""
        return _observed(self._answer, batch, clean=self.add_clean_terms)

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """Mixed labels and the teacher's answer, of virtual samples and, if asked, of images."""
        assert teacher is not None
        match = partial(kd_loss, temperature=self.temperature)
        target, clean = teacher.logits, teacher.features.get(CLEAN)
        if self.teacher_target == "interpolated":
            target, clean = self._interpolated(teacher.logits, batch), teacher.logits
        labels, known = _mixed_labels(batch, student.logits)
        terms = {
            # The logarithm of ỹ are logits that say ỹ.
            "task": soft_cross_entropy_loss(
                student.logits, labels.log(), temperature=1.0, mask=known
            ),
            "kd": match(student.logits, target),
        }
        if self.add_clean_terms:
            assert clean is not None
            terms["clean_task"] = self.task.loss(student.features[CLEAN], batch)
            terms["clean_kd"] = match(student.features[CLEAN], clean)
        return self.weighted(terms, progress)

    def _answer(self, batch: Batch) -> Tensor:
        return self.task.logits(self.task.call(self.student, batch))

    def _interpolated(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits that at τ say the mixture of what the teacher's say of the images."""
        each = soften(logits, self.temperature)[batch[PARTNERS]]
        mixed: Tensor = (batch[SHARES].unsqueeze(2) * each).sum(dim=1)
        return self.temperature * mixed.log()


class _Teacher:
    """A frozen teacher that answers what its target is made of."""

    def __init__(self, model: nn.Module, task: Task, target: str, *, clean: bool) -> None:
        self.frozen = FrozenTeacher(model, task)
        self.target, self.clean = target, clean

    def __call__(self, batch: Batch) -> Outputs:
        if self.target == "interpolated":
            return self.frozen(batch)
        return _observed(lambda seen: self.frozen(seen).logits, batch, clean=self.clean)

    @property
    def networks(self) -> tuple[FrozenTeacher, ...]:
        """What can be told how to run."""
        return self.frozen.networks

    def to(self, device: torch.device) -> "_Teacher":
        self.frozen.to(device)
        return self


def virtual_batch(
    batch: Batch,
    partners: Int[Tensor, "batch n_mix"],
    shares: Float[Tensor, "batch n_mix"],
) -> Batch:
    """A batch with its virtual samples beside the images, row by row.

    Args:
        batch: with ``image`` (batch, ...), floating point.
        partners: (batch, n_mix), rows of the batch that each virtual sample is mixed of.
        shares: (batch, n_mix), λ, how much of each; they sum to 1.

    Returns:
        The batch with ``virtual`` (batch, ...), ``partners`` and ``shares``, on its device.
    """
    images: Tensor = batch[IMAGE]
    partners, shares = partners.to(images.device), shares.to(images)
    virtual = torch.zeros_like(images)
    for rows, share in zip(partners.unbind(1), shares.unbind(1), strict=True):
        virtual += share.reshape(-1, *[1] * (images.dim() - 1)) * images[rows]
    return batch | {VIRTUAL: virtual, PARTNERS: partners, SHARES: shares}


def _observed(answer: Callable[[Batch], Tensor], batch: Batch, *, clean: bool) -> Outputs:
    """The answers to the virtual samples and, where asked, to the images."""
    virtual = answer(batch | {IMAGE: batch[VIRTUAL]})
    return Outputs(virtual, {CLEAN: answer(batch)} if clean else {})


def _mixed_labels(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """ỹ, (batch, classes), and which virtual samples are of labelled images only."""
    check_classes(batch["labels"], logits)
    own = batch["labels"][batch[PARTNERS]]
    each = F.one_hot(own.clamp(min=0).long(), logits.shape[1])
    return (batch[SHARES].unsqueeze(2) * each).sum(dim=1), (own >= 0).all(dim=1)


def _check_sample(batch: Batch) -> None:
    for name, kind, way_out in (
        (IMAGE, "floats, (batch, ...)", "have the task prepare them"),
        ("labels", "class numbers, (batch,)", "only single labels can be mixed"),
    ):
        x = batch.get(name)
        fits = isinstance(x, Tensor) and (
            x.is_floating_point() if name == IMAGE else not x.is_floating_point() and x.dim() == 1
        )
        if not fits:
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else "nothing"
            raise RecipeError(
                f"STKD mixes a batch's {name!r}, which must be {kind}, not {found}; {way_out}."
            )
