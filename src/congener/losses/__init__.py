"""The losses: pure functions and modules, one file for each paper. ``__all__`` is the registry."""

from congener.losses.base import Loss
from congener.losses.cskd import CSKDLoss, cskd_loss
from congener.losses.cskd_parts import cskd_batch_loss, cskd_class_loss, cswt_loss
from congener.losses.cswt import cswt_temperatures
from congener.losses.dist import DISTLoss, dist_loss
from congener.losses.dist_parts import dist_inter_loss, dist_intra_loss
from congener.losses.hard_label import HardLabelLoss, hard_label_loss
from congener.losses.kd import KDLoss, kd_loss
from congener.losses.soft_cross_entropy import SoftCrossEntropyLoss, soft_cross_entropy_loss
from congener.losses.sp import SPLoss, sp_loss

__all__ = [
    "CSKDLoss",
    "DISTLoss",
    "HardLabelLoss",
    "KDLoss",
    "Loss",
    "SPLoss",
    "SoftCrossEntropyLoss",
    "cskd_batch_loss",
    "cskd_class_loss",
    "cskd_loss",
    "cswt_loss",
    "cswt_temperatures",
    "dist_inter_loss",
    "dist_intra_loss",
    "dist_loss",
    "hard_label_loss",
    "kd_loss",
    "soft_cross_entropy_loss",
    "sp_loss",
]
