"""Losses of the relations between samples."""

from functools import partial

from congener import losses
from congener.conformance.table.case import LossCase, features, pooled

__all__ = ["LOSSES"]

LOSSES: dict[str, LossCase] = {
    "rkd": LossCase(
        ("RKDLoss", "rkd_loss"), losses.rkd_loss, make=features, module=losses.RKDLoss, lone=0.0
    ),
    "rkd_distance": LossCase(
        ("rkd_distance_loss",),
        losses.rkd_distance_loss,
        make=features,
        module=partial(losses.RKDLoss, 1.0, 0.0),
        lone=0.0,
    ),
    "rkd_angle": LossCase(
        ("rkd_angle_loss",),
        losses.rkd_angle_loss,
        make=features,
        module=partial(losses.RKDLoss, 0.0, 1.0),
        lone=0.0,
    ),
    "pkt": LossCase(
        ("PKTLoss", "pkt_loss"),
        losses.pkt_loss,
        make=features,
        module=losses.PKTLoss,
        lone=0.0,
        match=1e-8,
    ),
    "pkt_paper": LossCase(
        (),
        partial(losses.pkt_loss, variant="paper"),
        make=features,
        module=partial(losses.PKTLoss, variant="paper"),
        lone=0.0,
    ),
    "compress": LossCase(
        ("CompRessLoss", "compress_loss"),
        partial(losses.compress_loss, temperature=0.5),
        make=features,
        module=partial(losses.CompRessLoss, temperature=0.5),
        lone=0.0,
    ),
    "compress_published": LossCase(
        (), losses.compress_loss, make=features, module=losses.CompRessLoss, lone=0.0
    ),
    "cckd": LossCase(
        ("CCKDLoss", "cckd_loss"), losses.cckd_loss, make=features, module=losses.CCKDLoss, lone=0.0
    ),
    "cckd_bilinear": LossCase(
        (),
        partial(losses.cckd_loss, kernel="bilinear"),
        make=features,
        module=partial(losses.CCKDLoss, "bilinear"),
        lone=0.0,
    ),
    "cckd_mmd": LossCase(
        (),
        partial(losses.cckd_loss, kernel="mmd", normalize=False),
        make=features,
        module=partial(losses.CCKDLoss, "mmd", normalize=False),
        lone=0.0,
    ),
    "neighbour_correlation": LossCase(
        ("NeighbourCorrelationLoss", "neighbour_correlation_loss"),
        losses.neighbour_correlation_loss,
        make=pooled,
        module=partial(losses.NeighbourCorrelationLoss, 6, 6),
        lone=0.0,
        exempt={"order_of_the_batch_does_not_matter": "published: neighbours in batch order"},
    ),
}
