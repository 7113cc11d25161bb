"""Losses of the maps and boxes of detectors."""

from torch.func import functional_call

from congener import losses
from congener.conformance.methods.common import Inputs, Method, Results, Settings, given, weights

__all__ = ["METHODS"]


def _ikd(inputs: Inputs, settings: Settings) -> Results:
    maps = (inputs["student_feature"], inputs["teacher_feature"])
    options = given(settings, distance="loss_type", alpha="alpha_adv", temperature="tau")
    module = losses.IKDLoss(maps[0].shape[1], maps[1].shape[1], **options)
    return {"loss": functional_call(module, weights(inputs), maps)}


METHODS: dict[tuple[str, str], Method] = {
    ("IKD", "adv_feature_mse"): _ikd,
    ("IKD", "adv_feature_cwd"): _ikd,
}
