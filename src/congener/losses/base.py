"""What the module of every published loss has in common."""

from typing import Any, ClassVar, Literal

from torch import nn

from congener.types import Paper

__all__ = ["Family", "Loss"]

Family = Literal["response", "feature", "relation", "contrast", "adversarial"]
"""What is compared: predictions, features, similarities, or pairs told apart."""


class Loss(nn.Module):
    """A published loss with its hyper-parameters: a term of a system, or a loss for any loop.

    Abstract: a subclass is final, states the facts below, keeps each hyper-parameter under its own
    name, and calls its pure function in ``forward``.

    Attributes:
        name: the short name, as in a recipe.
        paper: where it was published.
        equation: the definition in one line.
        family: what is compared.
        zero_at_match: whether it is 0 where the student equals the teacher.
        needs_labels: whether it reads the true labels.
        batch_coupled: whether the samples of a batch depend on each other.
        masks_frames: whether its ``mask`` may tell which frames of a feature count.
        sources: for each hyper-parameter, where its default comes from; ``"ours: …"`` where no
            publication gives it, ``"yours: …"`` where only the caller can know it.
    """

    name: ClassVar[str]
    paper: ClassVar[Paper]
    equation: ClassVar[str]
    family: ClassVar[Family]
    zero_at_match: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    batch_coupled: ClassVar[bool] = False
    masks_frames: ClassVar[bool] = False
    sources: ClassVar[dict[str, str]]

    @property
    def options(self) -> dict[str, Any]:
        """What the loss' function takes of the hyper-parameters: all but the shapes of yours."""
        return {
            name: getattr(self, name)
            for name, source in self.sources.items()
            if not source.startswith("yours:")
        }

    def extra_repr(self) -> str:
        """Name the hyper-parameters."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.sources)
