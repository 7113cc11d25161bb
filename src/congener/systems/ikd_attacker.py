"""Who makes the adversarial images of IKD."""

import torch
from torch import Tensor

from congener.ops.adversarial import Attack, attacked
from congener.teachers import FrozenTeacher
from congener.teachers.rows import taken
from congener.types import Batch, Outputs

__all__ = ["Attacker"]

MOST_PIXELS = 16 * 800 * 800
"""Of the images that are attacked at once; ours."""


class Attacker:
    """Answers with adversarial images.

    Args:
        frozen: the teacher, whose classification loss is climbed.
        attack: how.
    """

    def __init__(self, frozen: FrozenTeacher, attack: Attack) -> None:
        self.frozen, self.attack = frozen, attack

    def __call__(self, batch: Batch) -> Outputs:
        """The adversarial images of a prepared batch, as its ``logits``."""
        images: Tensor = batch["image"]
        pixels = images.shape[2] * images.shape[3]
        with torch.autocast(images.device.type, enabled=False):  # gradients vanish in 16 bits
            parts = [
                self._attacked(taken(batch, rows))
                for rows in torch.split(torch.arange(len(images)), max(1, MOST_PIXELS // pixels))
            ]
        return Outputs(torch.cat(parts))

    def _attacked(self, batch: Batch) -> Tensor:
        task, model = self.frozen.task, self.frozen.model
        labelled = task.pseudo_labelled(batch, model.eval())

        def loss(images: Tensor) -> Tensor:
            shown = labelled | {"image": images}
            return task.class_loss(task.logits(task.call(model, shown)), shown)

        return attacked(batch["image"], loss, batch["index"], seed=0, settings=self.attack)

    def to(self, device: torch.device) -> "Attacker":
        """Move the network to a device."""
        self.frozen.to(device)
        return self
