"""How a frozen teacher runs: in which precision and memory layout, compiled or not."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Manner"]


@dataclass(frozen=True, slots=True)
class Manner:
    """How a teacher runs, where that is not how the student does.

    Args:
        precision: ``"fp32"``, ``"bf16"`` autocast, or ``"int8"``; what it says is then float32.
            ``None``: whatever surrounds the call, in its types.
        channels_last: whether a copy of the network runs, with its maps in that memory layout.
        compiled: whether a copy of the network runs, through ``torch.compile``.
    """

    precision: Literal["fp32", "bf16", "int8"] | None = None
    channels_last: bool = False
    compiled: bool = False

    def named(self, ambient: str) -> str:
        """In words, where ``ambient`` is the precision that surrounds the teacher.

        >>> Manner("bf16", channels_last=True).named("fp32"), Manner().named("bf16")
        ('bf16, channels_last', 'bf16')
        """
        words = {"channels_last": self.channels_last, "compiled": self.compiled}
        return ", ".join([self.precision or ambient, *(word for word, so in words.items() if so)])
