r"""Sample-wise contrastive knowledge distillation, CKD (Zhu et al., arXiv 2024).

A sample's own teacher and student logits belong together, those of different samples do not: among
all students of the batch, a teacher must recognise its own by direction alone.

.. math::
    L = -\frac{1}{B} \sum_{i=1}^{B} \log \frac{\exp(\langle \hat z^t_i, \hat z^s_i \rangle / \tau)}
        {\sum_{j=1}^{B} \exp(\langle \hat z^t_i, \hat z^s_j \rangle / \tau)}, \qquad
    \hat z = z / \| z \|_2

====================  ===================  ==========================================
symbol                argument             default
====================  ===================  ==========================================
:math:`z^s`           ``student_logits``
:math:`z^t`           ``teacher_logits``
:math:`\tau`          ``temperature``      1, authors' code; 2 for two of its pairs
====================  ===================  ==========================================

Conventions
    Raw logits, no softmax, no centring; zero logits get no gradient. Mean over samples, no τ². At
    most ln B + 2/τ; it cannot reach 0, nor is it least at equal logits. Samples of one class are
    told apart like any others. The task loss is not included; the authors weigh this one 10 to 100.

Differences from the authors' code
    None in one process (ZhouXinzzzzz/CKD, f16a145); with several it has each process' own students
    as candidates: ``scope="local"``. Summaries of the paper's second version name pairs of students
    as the negatives, ⟨ẑˢᵢ, ẑˢⱼ⟩: ``variant="paper"``, which nobody has checked.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from congener.losses.base import Loss
from congener.ops.checks import check_choice, check_logits, check_temperature
from congener.ops.collectives import Scope, gather_rows, warn_if_alone
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.relations import unit_rows
from congener.types import Paper

__all__ = ["CKDLoss", "ckd_loss"]

Variant = Literal["authors", "paper"]


def ckd_loss(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    *,
    temperature: float = 1.0,
    variant: Variant = "authors",
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Cross-entropy of telling one's own student logits from those of the other samples.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes); no gradient flows into it.
        temperature: τ, divides the cosines.
        variant: the negatives: ``"authors"`` has the teacher's logits beside other students',
            ``"paper"`` (unverified) the student's own beside other students'.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: candidates of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the logits differ in shape, or the mask does not fit.
        ValueError: integer logits, τ ≤ 0, an unknown variant, reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]] * 2)
    >>> round(ckd_loss(student, teacher).item(), 4)  # ln(1 + e) - 1/2
    0.8133
    """
    check_logits(student_logits, teacher_logits, mask)
    check_temperature(temperature)
    check_choice("variant", variant, ("authors", "paper"))
    check_reduction(reduction, scope)
    warn_if_alone(student_logits, "ckd", scope=scope)
    with torch.autocast(student_logits.device.type, enabled=False):
        both = upcast(student_logits, teacher_logits.detach())
        student, teacher = (unit_rows(blank_rows(x, mask)) for x in both)
        candidates, own = gather_rows(student, scope=scope)
        kept = torch.ones_like(student[:, 0], dtype=torch.bool) if mask is None else mask
        present, _ = gather_rows(kept, scope=scope)
        columns = torch.arange(candidates.shape[0], device=student.device)
        targets = columns[own]
        is_own = targets.unsqueeze(1) == columns
        cosines = (teacher if variant == "authors" else student) @ candidates.T
        if variant == "paper":
            cosines = torch.where(is_own, (teacher * student).sum(dim=1, keepdim=True), cosines)
        # A masked sample stays its own candidate: its row does not count, but is finite.
        scores = (cosines / temperature).masked_fill(~(present | is_own), -torch.inf)
        per_sample = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class CKDLoss(Loss):
    """Telling one's own student logits from the others'; see :func:`ckd_loss`."""

    name = "ckd"
    paper = Paper(
        title="CKD: Contrastive Knowledge Distillation from A Sample-wise Perspective",
        authors="Wencheng Zhu, Xin Zhou, Pengfei Zhu, Yu Wang, Qinghua Hu",
        venue="arXiv",
        year=2024,
        url="https://arxiv.org/abs/2404.14109",
    )
    equation = "L = −meanᵢ log softmaxⱼ( ⟨ẑᵗᵢ, ẑˢⱼ⟩/τ ) at j = i"
    family = "contrast"
    zero_at_match = False
    batch_coupled = True
    sources: ClassVar = {
        "temperature": "authors' code: 1",
        "variant": "authors' code",
        "reduction": "authors' code: mean over samples",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        variant: Variant = "authors",
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("variant", variant, ("authors", "paper"))
        check_reduction(reduction, scope)
        self.temperature, self.variant = temperature, variant
        self.reduction, self.scope = reduction, scope

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`ckd_loss` with the stored hyper-parameters."""
        return ckd_loss(student_logits, teacher_logits, mask=mask, **self.options)
