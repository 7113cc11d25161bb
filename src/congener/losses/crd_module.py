"""CRD with all that it learns and remembers (Tian, Krishnan and Isola, ICLR 2020)."""

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.losses.base import Loss
from congener.losses.crd_memory import check_index, check_momentum, renewed_rows
from congener.losses.crd_parts import check_pairs, contrast, log_normalizers_of, scores_of
from congener.ops.checks import check_features, check_temperature
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["CRDLoss"]


@final
class CRDLoss(Loss):
    """Telling a sample's pair from thousands of others; see :func:`congener.losses.crd_loss`.

    It learns and it remembers. Its parameters embed each feature by a linear layer, to length 1.
    Its buffers are two banks, with a row for each training sample, and log Z. In training mode each
    forward writes the batch into the banks, after it was scored, and the first one keeps log Z; in
    evaluation mode nothing changes. ``state_dict`` holds all of it. The rows of all processes are
    written whatever the scope, so banks that start equal stay equal. ``negatives`` is for whoever
    draws ``contrast_index``; a small training set has no use for the authors' number.
    """

    name = "crd"
    paper = Paper(
        title="Contrastive Representation Distillation",
        authors="Yonglong Tian, Dilip Krishnan, Phillip Isola",
        venue="ICLR",
        year=2020,
        url="https://arxiv.org/abs/1910.10699",
    )
    equation = "L = −meanᵢ Σ( log h₀/(h₀+c) + Σₖ log c/(hₖ+c) ),  h = exp(⟨v, bank⟩/τ)/Z, c = K/N"
    family = "contrast"
    zero_at_match = False
    batch_coupled = True
    sources: ClassVar = {
        "student_channels": "yours: the width of the student's feature",
        "teacher_channels": "yours: the width of the teacher's feature",
        "samples": "yours: the size of the training set",
        **dict.fromkeys(
            ("width", "temperature", "momentum", "negatives", "reduction"), "authors' code"
        ),
        "scope": "ours: the batch is the global batch",
    }

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        samples: int,
        width: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: int = 16384,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_momentum(momentum)
        if negatives < 1:
            raise ValueError(f"negatives must be at least 1, not {negatives}.")
        check_reduction(reduction, scope)
        self.student_channels, self.teacher_channels = student_channels, teacher_channels
        self.samples, self.width = samples, width
        self.temperature, self.momentum, self.negatives = temperature, momentum, negatives
        self.reduction, self.scope = reduction, scope
        self.student_embedding = nn.Linear(student_channels, width)
        self.teacher_embedding = nn.Linear(teacher_channels, width)
        limit = (3 / width) ** 0.5
        self.register_buffer("student_bank", torch.empty(samples, width).uniform_(-limit, limit))
        self.register_buffer("teacher_bank", torch.empty(samples, width).uniform_(-limit, limit))
        self.register_buffer("log_normalizers", torch.full((2,), -torch.inf))

    def forward(
        self,
        student_feature: Float[Tensor, "batch *student_axes"],
        teacher_feature: Float[Tensor, "batch *teacher_axes"],
        index: Int[Tensor, " batch"],
        contrast_index: Int[Tensor, "batch candidates"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Score the batch; in training mode, remember it.

        Args:
            student_feature: (batch, ...), flattened to (batch, student_channels).
            teacher_feature: (batch, ...), likewise; no gradient flows into it.
            index: (batch,), places of the samples in the training set: rows to be written.
            contrast_index: (batch, 1 + K), rows to be scored, the positive's first:
                :func:`congener.losses.crd_contrast_index`.
            mask: (batch,), which samples count; the others are as if absent.
        """
        check_features(student_feature, teacher_feature, mask)
        check_index(index, student_feature, "student_feature", self.samples, mask)
        with torch.autocast(student_feature.device.type, enabled=False):
            student = _embed(student_feature, self.student_embedding, mask)
            teacher = _embed(teacher_feature.detach(), self.teacher_embedding, mask)
            banks = self.teacher_bank, self.student_bank
            if self.training:  # backward needs them as they are now
                banks = self.teacher_bank.clone(), self.student_bank.clone()
            check_pairs(student, teacher, contrast_index, *banks, mask)
            scores = scores_of((student, teacher), banks, contrast_index, self.temperature, mask)
            found = log_normalizers_of(scores, self.samples, mask, self.scope)
            kept = self.log_normalizers
            used = torch.where(kept > -torch.inf, kept, found.to(kept.dtype))
            if self.training:
                with torch.no_grad():
                    self.log_normalizers.copy_(used)
                    for bank, rows in ((self.student_bank, student), (self.teacher_bank, teacher)):
                        bank.index_copy_(
                            0, *renewed_rows(bank, rows, index, self.momentum, mask, "global")
                        )
            per_sample = contrast(scores, used, self.samples)
            return reduce_samples(per_sample, mask, reduction=self.reduction, scope=self.scope)


def _embed(feature: Tensor, layer: nn.Linear, mask: Tensor | None) -> Tensor:
    if feature.shape[1:].numel() != layer.in_features:
        raise ShapeError(
            f"a feature of shape {tuple(feature.shape)} must have {layer.in_features} channels for "
            f"a layer with weight {tuple(layer.weight.shape)}; pool maps, or say the channels."
        )
    feature, weight, bias = upcast(feature.flatten(1), layer.weight, layer.bias)
    return F.normalize(F.linear(blank_rows(feature, mask), weight, bias), dim=1)
