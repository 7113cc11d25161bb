"""Losses of the relations between samples: RKD, PKT, CC."""

from typing import Any

import torch
from torch import Tensor

from congener import losses
from congener.conformance.methods.common import Inputs, Method, Results, Settings, given, weights

__all__ = ["METHODS"]


def _features(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["student_feature"], inputs["teacher_feature"]


def _rkd(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, distance_weight="w_d", angle_weight="w_a")
    return {"loss": losses.rkd_loss(*_features(inputs), **options)}


def _rkd_distance(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.rkd_distance_loss(*_features(inputs))}


def _rkd_angle(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.rkd_angle_loss(*_features(inputs))}


def _pkt(inputs: Inputs, settings: Settings) -> Results:
    return {"loss": losses.pkt_loss(*_features(inputs), **given(settings, eps="eps"))}


def _pkt_paper(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, eps="eps")
    return {"loss": losses.pkt_loss(*_features(inputs), variant="paper", **options)}


def _cckd(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, gamma="gamma", order="P_order")
    return {"loss": losses.cckd_loss(*_features(inputs), **options)}


def _cckd_torchdistill(inputs: Inputs, settings: Settings) -> Results:
    """Frobenius norms themselves, not their squares, over B², of features of any length."""
    options = given(settings, gamma="gamma", order="P_order")
    return {"loss": _norm_over_pairs(inputs, kernel="rbf", **options)}


def _cckd_torchdistill_bilinear(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": _norm_over_pairs(inputs, kernel="bilinear")}


def _norm_over_pairs(inputs: Inputs, **options: Any) -> Tensor:
    squares = losses.cckd_loss(*_features(inputs), normalize=False, **options)
    positive = squares > 0
    root = torch.where(positive, torch.where(positive, squares, 1).sqrt(), 0)
    return root / max(1, len(inputs["student_feature"]))


def _neighbours(inputs: Inputs, _settings: Settings) -> Results:
    features = _features(inputs)
    student, teacher = weights(inputs, "embed_s.linear."), weights(inputs, "embed_t.linear.")
    if not student:
        return {"loss": losses.neighbour_correlation_loss(*features)}
    mine, theirs = (x.flatten(1).shape[1] for x in features)
    module = losses.NeighbourCorrelationLoss(mine, theirs, len(student["bias"]))
    learnt = {f"student_embedding.{name}": x for name, x in student.items()}
    learnt |= {f"teacher_embedding.{name}": x for name, x in teacher.items()}
    return {"loss": torch.func.functional_call(module, learnt, features)}


METHODS: dict[tuple[str, str], Method] = {
    ("RKD", "distance"): _rkd_distance,
    ("RKD", "angle"): _rkd_angle,
    ("RKD", "distance25_angle50"): _rkd,
    ("PKT", "official"): _pkt,
    ("PKT", "paper_no_diagonal_sum"): _pkt_paper,
    ("CC", "gaussian_rbf_taylor"): _cckd,
    ("CC", "gaussian_rbf_torchdistill"): _cckd_torchdistill,
    ("CC", "bilinear_torchdistill"): _cckd_torchdistill_bilinear,
    ("CC", "repdistiller_embedding_variant"): _neighbours,
}
