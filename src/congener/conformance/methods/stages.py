"""Losses of whole stages, through fusion, a frozen teacher classifier, or its statistics."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from congener.conformance.methods.common import Inputs, Method, Results, Settings, given, layers
from congener.conformance.methods.common import weights as weights_of
from congener.losses import (
    adain,
    adain_loss,
    adain_statistics_loss,
    hcl_loss,
    ofd_loss,
    ofd_margin,
    partial_l2_loss,
    simkd_loss,
    srrl_feature_loss,
)
from congener.losses.ofd_parts import OFDProjector
from congener.losses.reviewkd_parts import ReviewKDProjector
from congener.losses.simkd_parts import SimKDProjector
from congener.ops.precision import upcast
from congener.ops.spatial import match_sizes

__all__ = ["METHODS"]

REVIEWKD = {
    "conv1.0": "reduce.conv",
    "conv1.1": "reduce.bn",
    "conv2.0": "expand.conv",
    "conv2.1": "expand.bn",
    "att_conv.0": "attention",
}
SIMKD = {"0": "reduce.conv", "1": "reduce.bn", "3": "mix.conv", "4": "mix.bn",
         "6": "expand.conv", "7": "expand.bn"}  # fmt: skip
CONNECTOR = {"0": "conv", "1": "bn"}


def _weights(inputs: Inputs, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights by our names, at least float32; running statistics are copies."""
    renamed = {}
    for theirs, tensor in weights_of(inputs, prefix).items():
        path, _, kind = theirs.rpartition(".")
        (wide,) = upcast(tensor)
        renamed[f"{names[path]}.{kind}"] = wide.clone() if kind.startswith("running_") else wide
    return renamed


def _levels(inputs: Inputs, prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of modules numbered ``<prefix>0.``, ``<prefix>1.``, … from shallow to deep."""
    found = {name.split(".")[0] for name in weights_of(inputs, prefix)}
    return {
        f"{level}.{name}": tensor
        for level in sorted(found, key=int)
        for name, tensor in _weights(inputs, f"{prefix}{level}.", names).items()
    }


def _mode(module: nn.Module, settings: Settings, training: bool = True) -> nn.Module:
    return module.train(bool(settings.get("bn_train", training)))


def _width(inputs: Inputs, name: str) -> int:
    """The channels that a convolution gives."""
    return inputs[f"w__{name}.weight"].shape[0]


def _features(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    pairs = layers(inputs, "student_feature", "teacher_feature")
    return [student for student, _ in pairs], [teacher for _, teacher in pairs]


def _channels(features: list[Tensor]) -> list[int]:
    return [feature.shape[1] for feature in features]


def _hcl(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": hcl_loss(*_features(inputs))}


def _reviewkd(training: bool) -> Method:
    def run(inputs: Inputs, settings: Settings) -> Results:
        student, teacher = _features(inputs)
        middle = _width(inputs, "abf.0.conv1.0")
        projector = ReviewKDProjector(_channels(student), _channels(teacher), middle)
        module = _mode(projector, settings, training)
        found = {f"levels.{name}": x for name, x in _levels(inputs, "abf.", REVIEWKD).items()}
        fused = functional_call(module, found, (student, teacher))
        results = {f"out__fused_{level}": feature for level, feature in enumerate(fused)}
        return {"loss": hcl_loss(fused, teacher), **results}

    return run


def _simkd(training: bool) -> Method:
    def run(inputs: Inputs, settings: Settings) -> Results:
        student, teacher = match_sizes(inputs["student_feature"], inputs["teacher_feature"])
        channels = student.shape[1], teacher.shape[1]
        factor = channels[1] // _width(inputs, "transfer.0")
        module = _mode(SimKDProjector(*channels, factor), settings, training)
        found = _weights(inputs, "transfer.", SIMKD)
        projected = functional_call(module, found, (student,))
        last = {name: x.to(projected.dtype) for name, x in weights_of(inputs, "cls_t.").items()}
        return {
            "loss": simkd_loss(projected, teacher),
            "out__projected": projected,
            "out__student_logits_out": F.linear(projected.mean(dim=(2, 3)), **last),
        }

    return run


def _partial_l2(inputs: Inputs, _settings: Settings) -> Results:
    """The published loss is the plain sum over all elements of all samples."""
    features = inputs["student_feature"], inputs["teacher_feature"]
    return {"loss": partial_l2_loss(*features, inputs["margin"].flatten(), reduction="sum")}


def _ofd(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = _features(inputs)
    module = _mode(OFDProjector(_channels(student), _channels(teacher)), settings)
    found = {f"levels.{name}": x for name, x in _levels(inputs, "connector.", CONNECTOR).items()}
    projected = functional_call(module, found, (student, teacher))
    bns = [weights_of(inputs, f"teacher_bn.{level}.") for level in range(len(student))]
    # The published code stores margins as float32.
    margins = [ofd_margin(bn["weight"], bn["bias"]).float() for bn in bns]
    options = given(settings, divisor="divisor")
    return {
        "loss": ofd_loss(projected, teacher, margins, **options),
        "out__raw_sum": ofd_loss(projected, teacher, margins, divisor=1.0, reduction="sum"),
        **{f"out__margin_{level}": margin for level, margin in enumerate(margins)},
    }


def _adain(inputs: Inputs, settings: Settings) -> Results:
    """The rest of the teacher is a 3x3 convolution, ReLU, the mean over positions, a linear layer.

    The case's weights of the two terms are w_stat and w_adain; the distance of logits is their MSE.
    """
    features = inputs["student_feature"], inputs["teacher_feature"]
    options = {"eps": settings.get("eps", 1e-5), "unbiased": bool(settings.get("ddof", 1))}
    restyled = adain(*features, **options)
    rest = {name: x.to(restyled.dtype) for name, x in weights_of(inputs, "tail_").items()}

    def tail(feature: Tensor) -> Tensor:
        hidden = F.conv2d(
            feature.to(restyled.dtype), rest["conv.weight"], rest["conv.bias"], padding=1
        )
        return F.linear(hidden.relu().mean(dim=(2, 3)), rest["fc.weight"], rest["fc.bias"])

    statistics = adain_statistics_loss(*features, **options)
    output = adain_loss(tail(restyled), tail(features[1]), distance="mse_logits")
    total = settings.get("w_stat", 1.0) * statistics + settings.get("w_adain", 1.0) * output
    return {
        "loss": total,
        "out__stat": statistics,
        "out__adain": output,
        "out__adain_feature": restyled,
    }


def _channel_means(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": srrl_feature_loss(inputs["student_feature"], inputs["teacher_feature"])}


METHODS: dict[tuple[str, str], Method] = {
    ("ReviewKD", "hcl_only"): _hcl,
    ("ReviewKD", "abf_hcl_train"): _reviewkd(training=True),
    ("ReviewKD", "abf_hcl_eval"): _reviewkd(training=False),
    ("SimKD", "projector_mse_train"): _simkd(training=True),
    ("SimKD", "projector_mse_eval"): _simkd(training=False),
    ("OFD", "partial_l2_sum"): _partial_l2,
    ("OFD", "connectors_margins_train"): _ofd,
    ("AdaIN-KD", "stat_plus_adain_eval"): _adain,
    ("AdaIN-KD", "authors_statm_mean_only"): _channel_means,
}
