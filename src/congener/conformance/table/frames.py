"""Losses of the frames within one utterance."""

from functools import partial

from congener import losses
from congener.conformance.table.case import LossCase, features

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {
    # The student's map has 2 frames of 3 · 2 numbers, the teacher's feature 6 frames of 3.
    "iusp": LossCase(
        ("IUSPLoss", "iusp_loss"),
        losses.iusp_loss,
        make=features,
        module=losses.IUSPLoss,
        batch_coupled=False,
    ),
    "iusp_of_frames": LossCase(
        (),
        partial(losses.iusp_loss, average="frames"),
        make=features,
        module=partial(losses.IUSPLoss, average="frames"),
        batch_coupled=False,
    ),
}
