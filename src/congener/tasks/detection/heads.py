"""A head of FCOS that tells how far each edge of a box is as a distribution over distances."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSRegressionHead

from congener.ops.precision import upcast

__all__ = ["BinnedRegressionHead"]


@final
class BinnedRegressionHead(FCOSRegressionHead):  # type: ignore[misc]
    """Torchvision's head, whose sides are the means of distributions over 0, 1, … bins - 1 strides.

    Its module ``distribution`` gives their logits, (batch, locations, 4 edges, bins), which LD
    compares; the edges are left, top, right, bottom. A side is at most bins - 1 strides, also on
    the coarsest level, where others know no limit.

    Source: Generalized Focal Loss (Li et al., NeurIPS 2020), section 3. Ours: the distributions are
    trained by their means alone (no DFL), and begin as powers of ½, whose mean is one stride, as
    sides without them do; theirs begin uniform.

    Args:
        in_channels: of each level.
        convolutions: of the branch before.
        bins: 2 or more; authors': 17.

    >>> head = BinnedRegressionHead(32, 1, 5)
    >>> sides, quality = head([torch.zeros(2, 32, 3, 4), torch.zeros(2, 32, 1, 2)])
    >>> sides.shape, quality.shape
    (torch.Size([2, 14, 4]), torch.Size([2, 14, 1]))
    """

    def __init__(self, in_channels: int, convolutions: int, bins: int) -> None:
        super().__init__(in_channels, 1, convolutions)
        self.bins = bins
        self.bbox_reg = nn.Conv2d(in_channels, 4 * bins, kernel_size=3, padding=1)
        nn.init.normal_(self.bbox_reg.weight, std=0.01)
        self.bbox_reg.bias = nn.Parameter((-math.log(2) * torch.arange(bins)).repeat(4))
        self.distribution = nn.Identity()

    def forward(
        self, x: Sequence[Float[Tensor, "batch channels height width"]]
    ) -> tuple[Float[Tensor, "batch locations 4"], Float[Tensor, "batch locations 1"]]:
        """The sides in strides, and the centre-ness' logit, level after level.

        Args:
            x: the levels of a pyramid.
        """
        seen = [self.conv(level) for level in x]
        logits = _joined([self.bbox_reg(each) for each in seen])
        (logits,) = upcast(self.distribution(logits.view(*logits.shape[:2], 4, self.bins)))
        sides = (
            logits.softmax(3) * torch.arange(self.bins, device=logits.device, dtype=logits.dtype)
        ).sum(3)
        return sides, _joined([self.bbox_ctrness(each) for each in seen])


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """(batch, locations of all levels, channels)."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)
