"""Losses of the maps and boxes of detectors."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from congener import losses
from congener.conformance.table.case import LossCase, logits

__all__ = ["LOSSES"]

maps = partial(logits, shape=(4, 3, 5))
edges = partial(logits, shape=(4, 6))


def rows_of_boxes(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """What two detectors of 3 classes say at 4 locations, (batch, 4, 12), their boxes apart."""
    student, teacher = logits(seed, batch, (4, 12))
    for rows in (student, teacher):
        rows[..., 6:8] = rows[..., 4:6] + rows[..., 6:8].abs() + 2
    return student, teacher


def near_object(teacher: Tensor) -> Tensor:
    """Places that follow their image: where the teacher's channels sum to more than 1."""
    return teacher.detach().double().sum(dim=1) > 1 if teacher.dim() == 4 else teacher


def foreground(teacher: Tensor) -> Tensor:
    """Likewise, each 1 over how many there are in the image."""
    near = near_object(teacher)
    return near / near.flatten(1).sum(dim=1).clamp(min=1)[:, None, None] if near.dim() > 1 else near


def location_weights(teacher: Tensor) -> Tensor | None:
    """Weights that follow their location."""
    return teacher.detach().double().flatten(1).sum(dim=1).sigmoid() if teacher.dim() > 1 else None


def given(loss: Callable[..., Tensor], extra: Callable[[Tensor], Any]) -> Callable[..., Tensor]:
    """A loss that needs a third tensor as one that makes it from the teacher's."""

    def call(student: Tensor, teacher: Tensor, mask: Any = None, **options: Any) -> Tensor:
        return loss(student, teacher, extra(teacher), mask=mask, **options)

    return call


class Given(nn.Module):
    """Likewise, a module; it shows the hyper-parameters of the module as its own."""

    def __init__(
        self, loss: Callable[..., nn.Module], extra: Callable[[Tensor], Any], **options: Any
    ) -> None:
        super().__init__()
        self.loss, self.extra = loss(**options), extra

    def __getattr__(self, name: str) -> Any:
        loss: Any = super().__getattr__("loss")
        return getattr(loss, name) if name in loss.sources else super().__getattr__(name)

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Any:
        return given(self.loss, self.extra)(student, teacher, mask)


WEIGHTS = (0.3, 0.2, 0.5, 0.1)

FGD_STARTS_AT_ZERO = {
    "every_parameter_of_the_module_learns": "the blocks of FGD end in a layer of zeros, as "
    "published; what lies before it learns from the second step on, see tests/losses/test_fgd.py"
}

LOSSES: dict[str, LossCase] = {
    "cwd": LossCase(
        ("CWDLoss", "cwd_loss"),
        losses.cwd_loss,
        make=maps,
        module=losses.CWDLoss,
        batch_coupled=False,
    ),
    "cwd_spatial": LossCase(
        (),
        partial(losses.cwd_loss, normalize="spatial", temperature=1.0),
        make=maps,
        module=partial(losses.CWDLoss, 1.0, "spatial"),
        batch_coupled=False,
    ),
    "ikd": LossCase(
        ("IKDLoss", "ikd_loss"),
        partial(losses.ikd_loss, alpha=0.1),
        make=maps,
        module=partial(losses.IKDLoss, 4, 4, alpha=0.1),
        batch_coupled=False,
    ),
    "ikd_l1": LossCase(
        (),
        partial(losses.ikd_loss, distance="l1", alpha=0.1),
        make=maps,
        module=partial(losses.IKDLoss, 4, 4, distance="l1", alpha=0.1),
        batch_coupled=False,
    ),
    "ikd_cwd": LossCase(
        (),
        partial(losses.ikd_loss, distance="cwd", alpha=0.1, temperature=2.0),
        make=maps,
        module=partial(losses.IKDLoss, 4, 4, distance="cwd", alpha=0.1, temperature=2.0),
        batch_coupled=False,
    ),
    "mgd": LossCase(
        ("MGDLoss", "mgd_loss"),
        partial(losses.mgd_loss, alpha=0.1),
        make=maps,
        module=partial(Given, partial(losses.MGDLoss, 4, 4, alpha=0.1), near_object),
        batch_coupled=False,
    ),
    "fgfi": LossCase(
        ("FGFILoss", "fgfi_loss"),
        given(losses.fgfi_loss, near_object),
        make=maps,
        module=partial(Given, partial(losses.FGFILoss, 4, 4), near_object),
    ),
    "fgd": LossCase(
        ("FGDLoss", "fgd_loss"),
        given(losses.fgd_loss, foreground),
        make=maps,
        module=partial(Given, partial(losses.FGDLoss, 4, 4), foreground),
        batch_coupled=False,
        exempt=FGD_STARTS_AT_ZERO,
    ),
    "fgd_weights": LossCase(
        (),
        given(partial(losses.fgd_loss, weights=WEIGHTS, temperature=2.0), foreground),
        make=maps,
        module=partial(Given, partial(losses.FGDLoss, 4, 4, WEIGHTS, 2.0), foreground),
        batch_coupled=False,
        exempt=FGD_STARTS_AT_ZERO,
    ),
    "ld": LossCase(
        ("LDLoss", "ld_loss"),
        given(losses.ld_loss, location_weights),
        make=edges,
        module=partial(Given, losses.LDLoss, location_weights),
    ),
    "ld_locations": LossCase(
        (),
        given(partial(losses.ld_loss, normalize="locations"), location_weights),
        make=edges,
        module=partial(Given, partial(losses.LDLoss, 10.0, "locations"), location_weights),
        batch_coupled=False,
    ),
    "detection_kd": LossCase(
        ("DetectionKDLoss", "detection_kd_loss"),
        losses.detection_kd_loss,
        make=rows_of_boxes,
        module=losses.DetectionKDLoss,
    ),
    "detection_kd_softmax": LossCase(
        (),
        partial(losses.detection_kd_loss, activation="softmax", beta=1.0, box_weight=3.0),
        make=rows_of_boxes,
        module=partial(losses.DetectionKDLoss, 1.0, 3.0, activation="softmax", beta=1.0),
    ),
    "ld_class": LossCase(("ld_class_loss",), losses.ld_class_loss, batch_coupled=False),
}
