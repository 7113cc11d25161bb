r"""The parts of OFD: the distance of one level, the margin of a normalisation, the projectors."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.ops.checks import check_floating, check_same_shape
from congener.ops.collectives import Scope
from congener.ops.levels import check_level_channels, check_levels
from congener.ops.precision import upcast
from congener.ops.projectors import ConvNorm
from congener.ops.reduction import Reduction, blank_rows, check_reduction, reduce_samples
from congener.ops.spatial import positions

__all__ = ["OFDProjector", "ofd_margin", "partial_l2_loss"]

RARE = 1e-3


def partial_l2_loss(
    student_feature: Float[Tensor, "batch channels *axes"],
    teacher_feature: Float[Tensor, "batch channels *axes"],
    margin: Float[Tensor, " channels"],
    *,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Squared error, summed over a sample's elements, but for those where student ≤ teacher ≤ 0.

    Args:
        student_feature: (batch, channels, ...), projected to the teacher's shape.
        teacher_feature: of the same shape, before its ReLU; no gradient flows into it.
        margin: (channels,), the least the teacher's feature is taken for.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"`` or ``"sum"`` over samples, or ``"none"``.
        scope: ``"global"``: the batch of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the features differ in shape, or the margin or the mask does not fit.
        ValueError: integer inputs, an unknown reduction or scope.

    >>> student, teacher = torch.tensor([[1.0, -3.0, 0.0]]), torch.tensor([[3.0, -5.0, -5.0]])
    >>> partial_l2_loss(student, teacher, torch.full((3,), -1.0))  # 2², -3 is below -1, 1²
    tensor(5.)
    """
    way_out = "project the student's channels, and resize a map"
    check_same_shape(student_feature, teacher_feature, mask, way_out=way_out)
    check_floating(margin=margin)
    if tuple(margin.shape) != tuple(teacher_feature.shape[1:2]):
        raise ShapeError(
            f"margin {tuple(margin.shape)} must be (channels,) for teacher_feature "
            f"{tuple(teacher_feature.shape)}; give ofd_margin of the normalisation before its ReLU."
        )
    check_reduction(reduction, scope)
    with torch.autocast(student_feature.device.type, enabled=False):
        rows = (positions(x) for x in (student_feature, teacher_feature.detach()))
        student, teacher = (blank_rows(x, mask) for x in upcast(*rows))
        teacher = torch.maximum(teacher, margin.detach().to(teacher.dtype).unsqueeze(1))
        seen = (student > teacher) | (teacher > 0)
        squares = torch.where(seen, (student - teacher).square(), 0)
        return reduce_samples(squares.sum(dim=(1, 2)), mask, reduction=reduction, scope=scope)


def ofd_margin(
    weight: Float[Tensor, " channels"], bias: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    r"""The mean of what is negative in a channel, by the batch normalisation before its ReLU.

    :math:`m = E[x \mid x < 0]` of :math:`x \sim N(\beta, |\gamma|)`; where x is hardly ever
    negative, with a probability of at most 0.001, the published code's :math:`-3|\gamma|`.

    Args:
        weight: γ, (channels,) of the teacher's batch normalisation.
        bias: β, likewise.

    Returns:
        (channels,), never positive; a channel with γ = 0 is constant, and has min(β, 0).

    Raises:
        ShapeError: the two differ in shape, or are not (channels,).
        ValueError: one of the two is not floating point.

    >>> ofd_margin(torch.tensor([1.0, -2.0]), torch.tensor([0.0, 9.0]))
    tensor([-0.7979, -6.0000])
    """
    check_floating(weight=weight, bias=bias)
    if weight.dim() != 1 or weight.shape != bias.shape:
        raise ShapeError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must both be (channels,); "
            "give those of one batch normalisation."
        )
    (wide,) = upcast(weight.detach())
    deviation, mean = weight.detach().abs().double(), bias.detach().double()
    standard = -mean / deviation
    negative = torch.special.ndtr(standard)
    density = torch.exp(-standard.square() / 2) / math.sqrt(2 * math.pi)
    conditional_mean = mean - deviation * density / negative.clamp(min=RARE)
    margin = torch.where(negative > RARE, conditional_mean, -3 * deviation)
    return torch.where(deviation > 0, margin, mean.clamp(max=0)).to(wide.dtype)


class OFDProjector(nn.Module):
    """A 1x1 convolution and batch normalisation for each level, initialised as published.

    Args:
        student_channels: channels of the student's levels, shallow to deep.
        teacher_channels: channels of the teacher's levels.
        scope: whose batch the normalisations are over.

    Raises:
        ValueError: the two lists differ in length or are empty.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_level_channels(student_channels, teacher_channels)
        pairs = zip(student_channels, teacher_channels, strict=True)
        self.levels = nn.ModuleList(ConvNorm(mine, theirs, scope=scope) for mine, theirs in pairs)
        for name, weight in self.levels.named_parameters():
            if name.endswith("conv.weight"):
                nn.init.kaiming_normal_(weight, mode="fan_out")

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Project the student's levels; the teacher's are only looked at for their number."""
        count = len(self.levels)
        check_levels(student_features, teacher_features, mask, same_shape=False, count=count)
        pairs = zip(self.levels, student_features, strict=True)
        return [projector(feature, mask) for projector, feature in pairs]
