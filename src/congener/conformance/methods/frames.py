"""Losses of the frames within one utterance: IUSP."""

from congener import losses
from congener.conformance.methods.common import Inputs, Method, Results, Settings, given

__all__ = ["METHODS"]


def _iusp(inputs: Inputs, settings: Settings) -> Results:
    features = (inputs["student_feature"], inputs["teacher_feature"])
    options = given(settings, reduction="reduction")
    return {
        "loss": losses.iusp_loss(*features, **options),
        "out__per_utterance": losses.iusp_loss(*features, reduction="none"),
    }


METHODS: dict[tuple[str, str], Method] = {
    ("IUSP", "per_utterance_sp_mean"): _iusp,
    ("IUSP", "per_utterance_sp_sum"): _iusp,
}
