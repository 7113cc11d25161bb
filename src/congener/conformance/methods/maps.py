"""Losses of the maps and boxes of detectors."""

from typing import Any

from torch.func import functional_call

from congener import losses
from congener.conformance.methods.common import Inputs, Method, Results, Settings, given, weights
from congener.ops.precision import upcast

__all__ = ["METHODS"]


def _ikd(distance: str) -> Method:
    def run(inputs: Inputs, settings: Settings) -> Results:
        maps = (inputs["student_feature"], inputs["teacher_feature"])
        options: dict[str, Any] = {"distance": distance}
        options |= given(settings, distance="loss_type", alpha="alpha_adv", temperature="tau")
        module = losses.IKDLoss(maps[0].shape[1], maps[1].shape[1], **options)
        state = {name: upcast(x)[0] for name, x in weights(inputs).items()}
        return {"loss": functional_call(module, state, maps)}

    return run


METHODS: dict[tuple[str, str], Method] = {
    ("IKD", "adv_feature_mse"): _ikd("mse"),
    ("IKD", "adv_feature_cwd"): _ikd("cwd"),
}
