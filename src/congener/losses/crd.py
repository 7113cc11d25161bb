r"""Contrastive representation distillation, CRD (Tian, Krishnan and Isola, ICLR 2020).

Embeddings of student and teacher are trained so that a sample's pair can be told from pairs with
other samples, thousands of them, whose embeddings two banks remember.

.. math::
    L = -\frac{1}{B} \sum_{i=1}^{B} \sum_{(v, M)} \Big[ \log \frac{h_{i0}}{h_{i0} + c + \epsilon}
        + \sum_{k=1}^{K} \log \frac{c}{h_{ik} + c + \epsilon} \Big], \quad
    h_{ik} = \frac{\exp(\langle v_i, M_{n(i,k)} \rangle / \tau)}{Z}, \quad c = \frac{K}{N}

================  ================================================  ========================
symbol            argument                                          default
================  ================================================  ========================
:math:`v`         ``student_embedding``, ``teacher_embedding``      of length 1
:math:`M`         ``teacher_bank``, ``student_bank``: the other's   N rows, of length 1
:math:`n(i,k)`    ``contrast_index``; k = 0 is the positive         K = 16384, authors' code
:math:`\tau`      ``temperature``                                   0.07, authors' code
:math:`Z`         ``log_normalizers``                               from this batch
================  ================================================  ========================

Conventions
    Both directions summed, mean over samples; ε = 1e-7. Z = N · mean of exp(⟨v, M⟩ / τ), one for
    each direction, is a constant that the authors keep from the first batch. Both embeddings are
    trained: :class:`congener.losses.CRDLoss` owns them and the banks. No task loss is included.

Differences from the authors' code
    None in value (HobbitLong/RepDistiller, b84f547), but computed from logarithms, so that no
    temperature overflows, and τ is not rounded to float32. The paper's critic has no Z.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.crd_parts import check_pairs, contrast, log_normalizers_of, scores_of
from congener.ops.checks import check_temperature
from congener.ops.collectives import Scope
from congener.ops.reduction import Reduction, check_reduction, reduce_samples

__all__ = ["crd_loss"]


def crd_loss(
    student_embedding: Float[Tensor, "batch width"],
    teacher_embedding: Float[Tensor, "batch width"],
    contrast_index: Int[Tensor, "batch candidates"],
    student_bank: Float[Tensor, "samples width"],
    teacher_bank: Float[Tensor, "samples width"],
    *,
    log_normalizers: Float[Tensor, "2"] | None = None,
    temperature: float = 0.07,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Noise-contrastive loss of telling a sample's pair from the others, both ways.

    Args:
        student_embedding: (batch, width), rows of length 1.
        teacher_embedding: likewise; gradient flows into it as well, for it is trained.
        contrast_index: (batch, 1 + K), rows of the banks: the positive's, then the negatives'.
        student_bank: (samples, width), constants.
        teacher_bank: likewise.
        log_normalizers: log Z of the student's and of the teacher's scores, constants;
            None takes them from this batch.
        temperature: τ, divides the inner products.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the embeddings differ in shape, or another tensor does not fit.
        ValueError: a wrong type, τ ≤ 0, an unknown reduction or scope.

    >>> embedding, bank = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> index = torch.tensor([[0, 1]])
    >>> options = {"log_normalizers": torch.zeros(2), "temperature": 1.0}
    >>> loss = crd_loss(embedding, embedding, index, bank, bank, **options)
    >>> round(loss.item(), 4)  # 2 · (ln(1 + 1/2e) + ln 3)
    2.5349
    """
    check_pairs(
        student_embedding, teacher_embedding, contrast_index, student_bank, teacher_bank, mask
    )
    check_temperature(temperature)
    check_reduction(reduction, scope)
    with torch.autocast(student_embedding.device.type, enabled=False):
        embeddings, banks = (student_embedding, teacher_embedding), (teacher_bank, student_bank)
        scores = scores_of(embeddings, banks, contrast_index, temperature, mask)
        samples = student_bank.shape[0]
        if log_normalizers is None:
            log_normalizers = log_normalizers_of(scores, samples, mask, scope)
        per_sample = contrast(scores, log_normalizers, samples)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)
