"""The blocks by which FGD relates all places of a map."""

import torch
from torch import Tensor, nn

from congener.ops.projectors import project

__all__ = ["Contexts"]


class Contexts(nn.Module):
    """What the places of an image have in common, for the student and, apart, for the teacher."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.student, self.teacher = ContextBlock(channels), ContextBlock(channels)

    def forward(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Map two (batch, channels, height, width) to two (batch, channels)."""
        return (
            project(self.student, student, mask, channels=self.channels),
            project(self.teacher, teacher, mask, channels=self.channels, name="teacher_feature"),
        )


class ContextBlock(nn.Module):
    """What an image's places have in common: a global context block (Cao et al., 2019).

    Places are averaged with learnt shares; two 1×1 convolutions with a bottleneck follow. The last
    one starts at zero, so that at first there is no context.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        # The published bias is left out: a softmax does not feel it, so it could not learn.
        self.shares = nn.Conv2d(channels, 1, kernel_size=1, bias=False)
        last = nn.Linear(hidden, channels)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), last
        )
        nn.init.kaiming_normal_(self.shares.weight, nonlinearity="relu")
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, feature: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, channels)."""
        shares = torch.softmax(self.shares(feature).flatten(2), dim=2)
        context: Tensor = self.transform((feature.flatten(2) * shares).sum(dim=2))
        return context
