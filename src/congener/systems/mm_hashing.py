r"""Multimodal similarity-preserving hashing, MM-NN (Masci et al., IEEE TPAMI 2014), and distilled.

Two networks, one for each modality, are coupled by a loss of their codes. The student is both of
them: what it answers is (batch, 2, bits), the codes of the first and of the second modality.

    total = L_xy + α_x · L_x + α_y · L_y  [+ soft_weight · L_soft, with a teacher]

L_xy, L_x and L_y are the three parts of :class:`congener.losses.MMHashingLoss`, each with a margin
of its own. Which samples are alike, ``pairs`` says: by ``"labels"``, those that have a class in
common, and a sample without a label takes no part; ``"aligned"``, each its own only like, whatever
the labels, so that all samples take part and L_x and L_y only keep samples apart.

Which of the pairs of a batch count
    By ``sampling``, ``"all"`` of them, or a ``"list"`` as published: n aligned pairs (xᵢ, yᵢ) for
    the like ones, and n unlike ones, which a random derangement of the samples makes. With labels
    a derangement may pair like samples; then it is the next sample of the circle that is not. The
    circle is a function of the step and the sample ids alone, so the list is the same after a
    resume, in pieces and over processes, and it does not follow the seed: who shares a batch does.

Distilled hashing (ours, beyond the paper)
    L_soft is L_xy over all pairs of the batch, labelled or not, with the teacher's word for the
    labels: two samples are alike by s = max(0, 1 − d/d̄) and unlike by 1 − s, where d is the
    distance of the teacher's codes of the pair and d̄ its mean over pairs of different samples.
    Codes of a teacher that coincide within classes and stay apart evenly otherwise give L_xy
    itself. The teacher may have other bits than the student.

What it owns beyond a loss
    Nothing that is trained: the coupling is the total's.

Differences from the authors' code
    None was found; those of the loss are told there. The paper's own lists hold like pairs within a
    modality, too, which an aligned list cannot: a sample with itself. Of a list, L_x and L_y keep
    the unlike pairs. A public version (craffel/midi-dataset) has L_xy of such lists alone.

What is saved, what is exported
    The student, both its networks.
"""

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import MMHashingLoss
from congener.losses.mm_hashing_pairs import Shares, labelled_shares, listed_shares, soft_shares
from congener.losses.mm_hashing_parts import check_margins, known_rows, pair_rows
from congener.ops.checks import check_choice
from congener.ops.collectives import global_mean
from congener.ops.keyed_random import keyed_uniform
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows
from congener.system import System
from congener.systems.probe import first_sample, probe
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Outputs, Progress, StepResult

__all__ = ["MMHashing"]


@final
class MMHashing(System):
    """Two coupled networks whose codes are close for like samples and apart for unlike ones.

    Args:
        student: the coupled network to train; its logits are (batch, 2, bits), in (-1, 1).
        teacher: a trained coupled network, of any number of bits; default: none.
        task: how networks are called; where ``pairs`` is ``"labels"``, its batches hold ``labels``,
            (batch,) or (batch, classes), negative where not known.
        margin: of all terms, or one each of L_xy, L_x and L_y; below 2 √bits.
        first_weight: α_x, of the term within the first modality; 0 leaves it out.
        second_weight: α_y, of the term within the second; 0 leaves it out.
        negative_weight: β, of the unlike pairs in each term.
        pairs: which samples are alike: of one of the ``"labels"``, or the ``"aligned"`` only.
        sampling: which pairs count: ``"all"`` of the batch, or a ``"list"`` of 2 for each sample.
        soft_weight: factor of the term that follows the teacher; with 0 it is not asked.

    Raises:
        RecipeError: a network that gives no pair of codes, a margin that the student's bits do not
            allow, batches without labels to tell pairs by, none of which is known.
        ValueError: a negative margin or weight, an unknown word.
    """

    name = "mm_hashing"
    paper = MMHashingLoss.paper
    equation = "L = Lxy + αx·Lx + αy·Ly + w·Lsoft,  Lxy = ½ mean_P d² + β·½ mean_N max(0, m − d)²"
    batch_coupled = True
    sources: ClassVar = {
        **{
            name: MMHashingLoss.sources[name]
            for name in ("margin", "first_weight", "second_weight", "negative_weight")
        },
        "pairs": "paper: like samples have a class in common",
        "sampling": "ours: all pairs of the batch; the paper's are lists",
        "soft_weight": "ours: as much as the common term; the paper has no teacher",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        task: Task,
        margin: float | tuple[float, float, float] = 2.0,
        first_weight: float = 0.3,
        second_weight: float = 0.3,
        negative_weight: float = 1.0,
        pairs: Literal["labels", "aligned"] = "labels",
        sampling: Literal["all", "list"] = "all",
        soft_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("pairs", pairs, ("labels", "aligned"))
        check_choice("sampling", sampling, ("all", "list"))
        self.margin = margin
        self._margins = (margin,) * 3 if isinstance(margin, int | float) else tuple(margin)
        if len(self._margins) != 3:
            raise RecipeError(f"margin is one number, or three of L_xy, L_x and L_y, not {margin}.")
        for each in self._margins:
            check_margins(margin=each)
        weights = {"first_weight": first_weight, "second_weight": second_weight}
        check_margins(**weights, negative_weight=negative_weight, soft_weight=soft_weight)
        bits = _bits(student, "student", task)
        if max(self._margins) >= 2 * bits**0.5:
            raise RecipeError(
                f"Codes of {bits} bits are less than {2 * bits**0.5:.3g} apart, which no margin of "
                f"{max(self._margins)} fits; lower `margin`, or give the networks more bits."
            )
        if pairs == "labels":
            _check_labels(first_sample(task), task.labels("train"))
        self.student, self.task, self.teacher = student, task, None
        if teacher is not None and soft_weight:
            _bits(teacher, "teacher", task)
            self.teacher = FrozenTeacher(teacher, task)
        self.first_weight, self.second_weight = first_weight, second_weight
        self.negative_weight, self.soft_weight = negative_weight, soft_weight
        self.pairs, self.sampling = pairs, sampling

    def extra_repr(self) -> str:
        """The hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)

    @property
    def distils(self) -> bool:
        """Samples without a label teach where there is a teacher, or where none is asked for."""
        return self.teacher is not None or self.pairs == "aligned"

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        factors = {"between": 1.0, "first": self.first_weight, "second": self.second_weight}
        factors["soft"] = self.soft_weight if self.teacher is not None else 0.0
        return {name: factor for name, factor in factors.items() if factor}

    def observe(self, batch: Batch) -> Outputs:
        """Run both networks of the student."""
        return Outputs(self.task.logits(self.task.call(self.student, batch)))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """The terms between and within the modalities, and the one that follows the teacher."""
        with torch.autocast(student.logits.device.type, enabled=False):
            (codes,) = upcast(student.logits)
            terms = self._terms(codes, batch, progress)
            if teacher is not None:
                terms["soft"] = self._soft(codes, teacher.logits)
            return self.weighted(terms, progress)

    def _terms(self, codes: Tensor, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_xy and, where they have a weight, L_x and L_y."""
        labels = batch["index" if self.pairs == "aligned" else "labels"]
        mask = known_rows(labels, None)
        codes = blank_rows(codes, mask)
        first, second = codes[:, 0], codes[:, 1]
        shares = self._shares(labels, first, mask, batch["index"], progress)
        of = {"between": (first, second), "first": (first, first), "second": (second, second)}
        margins = dict(zip(of, self._margins, strict=True))
        return {
            name: global_mean(pair_rows(*of[name], shares, margin=margins[name]), mask)
            for name in of
            if name in self.weights(progress)
        }

    def _soft(self, codes: Tensor, said: Tensor) -> Tensor:
        """L_xy of all pairs, alike as far as the teacher's codes are."""
        first, second = codes[:, 0], codes[:, 1]
        shares = soft_shares(said[:, 0], said[:, 1], first, self.negative_weight)
        return global_mean(pair_rows(first, second, shares, margin=self._margins[0]))

    def _shares(
        self, labels: Tensor, code: Tensor, mask: Tensor, index: Tensor, progress: Progress
    ) -> Shares:
        """Which pairs count, and how much."""
        if self.sampling == "all":
            return labelled_shares(labels, code, self.negative_weight, mask)
        draws = keyed_uniform(index, seed=0, epoch=progress.step, count=1)[:, 0]
        return listed_shares(labels, draws, code, self.negative_weight, mask)


def _bits(network: nn.Module, role: str, task: Task) -> int:
    """The length of the codes of a coupled network."""
    shape = tuple(probe(network, task).logits.shape)
    if len(shape) != 3 or shape[1] != 2:
        raise RecipeError(
            f"The system 'mm_hashing' needs the codes of two modalities, (batch, 2, bits), but the "
            f"{role} gives {shape}; couple two networks, as cross_modal_retrieval's `coupled` does."
        )
    return shape[2]


def _check_labels(batch: Batch, every: Tensor | None) -> None:
    if every is not None and not known_rows(every, None).any():
        raise RecipeError(
            "The system 'mm_hashing' tells like samples by their labels, but no training sample "
            "has one; set pairs to 'aligned' to do without."
        )
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() in (1, 2):
        return
    found = "nothing"
    if isinstance(labels, Tensor):
        found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
    raise RecipeError(
        "The system 'mm_hashing' tells like samples by a batch's 'labels', which must be class "
        f"numbers (batch,) or 0 and 1 (batch, classes), not {found}; set pairs to 'aligned' to do "
        "without."
    )
