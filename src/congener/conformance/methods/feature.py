"""Losses of feature maps: hints, attention, statistics, factors."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from congener import losses
from congener.conformance.methods.common import (
    Inputs,
    Method,
    Results,
    Settings,
    given,
    layers,
    weights,
)
from congener.losses.at import attention
from congener.losses.ft_parts import Paraphraser, Translator
from congener.ops.precision import upcast
from congener.ops.spatial import match_sizes

__all__ = ["METHODS"]


def _pair(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["student_feature"], inputs["teacher_feature"]


def _pairs(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    return layers(inputs, "student_feature", "teacher_feature")


def _summed(per_layer: list[Tensor], name: str = "per_layer") -> Results:
    values = torch.stack(per_layer)
    return {"loss": values.sum(), f"out__{name}": values}


def _call(module: nn.Module, state: Mapping[str, Tensor], *args: Tensor) -> Tensor:
    """Call a module with the weights of the case, in at least float32, statistics as copies."""
    wide = {name: upcast(x)[0] for name, x in state.items()}
    wide = {name: x.clone() if ".running_" in name else x for name, x in wide.items()}
    value: Tensor = torch.func.functional_call(module, wide, args, strict=False)
    return value


def _hint(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.hint_loss(*_pair(inputs))}


def _projected_hint(training: bool) -> Method:
    def run(inputs: Inputs, settings: Settings) -> Results:
        student, teacher = _pair(inputs)
        module = losses.FitNetsLoss(student.shape[1:], teacher.shape[1:])
        module.train(bool(settings.get("bn_train", training)))
        state = {f"projector.{name}": x for name, x in weights(inputs).items()}
        return {"loss": _call(module, state, student, teacher)}

    return run


def _at(inputs: Inputs, settings: Settings) -> Results:
    return {"loss": losses.at_loss(*_pair(inputs), **given(settings, power="p"))}


def _at_layers(power: int) -> Method:
    def run(inputs: Inputs, settings: Settings) -> Results:
        options: dict[str, Any] = {"power": power} | given(settings, power="p")
        return _summed([losses.at_loss(*pair, **options) for pair in _pairs(inputs)])

    return run


def _at_paper(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, power="p")
    pairs = _pairs(inputs) or [_pair(inputs)]
    values = [losses.at_loss(*pair, variant="paper", **options) for pair in pairs]
    return {"loss": torch.stack(values).sum()}


def _vid(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = _pair(inputs)
    hidden = inputs["w__regressor.0.weight"].shape[0]
    options = given(settings, init_variance="init_pred_var", eps="eps")
    module = losses.VIDLoss(student.shape[1], teacher.shape[1], hidden, **options)
    state = {f"projector.{name}": x for name, x in weights(inputs, "regressor.").items()}
    state |= {"log_scale": inputs["w__log_scale"]}
    return {"loss": _call(module, state, student, teacher)}


def _nst(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.nst_loss(*_pair(inputs))}


def _nst_layers(inputs: Inputs, _settings: Settings) -> Results:
    return _summed([losses.nst_loss(*pair) for pair in _pairs(inputs)])


def _fsp(inputs: Inputs, _settings: Settings) -> Results:
    students, teachers = (list(stages) for stages in zip(*_pairs(inputs), strict=True))
    ends = range(2, len(students) + 1)
    per_pair = [losses.fsp_loss(students[k - 2 : k], teachers[k - 2 : k]) for k in ends]
    return _summed(per_pair, "per_pair") | {"loss": losses.fsp_loss(students, teachers)}


def _fsp_paper(inputs: Inputs, _settings: Settings) -> Results:
    students, teachers = (list(stages) for stages in zip(*_pairs(inputs), strict=True))
    return {"loss": losses.fsp_loss(students, teachers, variant="paper")}


def _ab(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, margin="margin")
    return {"loss": losses.ab_loss(*_pair(inputs), reduction="sum", **options)}


def _ab_layers(inputs: Inputs, settings: Settings) -> Results:
    """The deepest layer weighs 3/1000, each shallower one half the next."""
    options = given(settings, margin="margin")
    values = [losses.ab_loss(*pair, **options) for pair in _pairs(inputs)]
    shares = [2.0 ** (i + 1 - len(values)) * 3 / 1000 for i in range(len(values))]
    return _summed([share * value for share, value in zip(shares, values, strict=True)])


def _ft(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.ft_loss(*_pair(inputs))}


def _ft_of_maps(inputs: Inputs, _settings: Settings) -> Results:
    factors = [
        _call(build(x.shape[1], _width(inputs, name)), _renamed(weights(inputs, f"{name}.")), x)
        for build, name, x in zip(
            (Translator, Paraphraser), ("translator", "paraphraser"), _pair(inputs), strict=True
        )
    ]
    loss = losses.ft_loss(*factors)
    return {"loss": loss, "out__student_factor": factors[0], "out__teacher_factor": factors[1]}


def _width(inputs: Inputs, name: str) -> int:
    return inputs[f"w__{name}.conv2.weight"].shape[0]


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``conv1.bias`` is ``encoder.2.bias`` here: each convolution is followed by a leaky ReLU."""
    parts = {name: name.removeprefix("conv").partition(".") for name in state}
    return {f"encoder.{2 * int(n)}.{kind}": state[name] for name, (n, _, kind) in parts.items()}


def _ft_of_attention(inputs: Inputs, settings: Settings) -> Results:
    """RepDistiller's: attention maps in the place of factors, of which it is another loss."""
    maps = match_sizes(*upcast(*_pair(inputs)))
    power = int(settings.get("p1", 2))
    student, teacher = (attention(x, power) for x in maps)
    if settings.get("p2", 1) == 1:
        return {"loss": losses.ft_loss(student, teacher)}
    return {"loss": (student - teacher.detach()).pow(int(settings["p2"])).mean()}


METHODS: dict[tuple[str, str], Callable[[Inputs, Settings], Results]] = {
    ("FitNets", "plain_mse"): _hint,
    ("FitNets", "convreg_train"): _projected_hint(training=True),
    ("FitNets", "convreg_eval"): _projected_hint(training=False),
    ("AT", "author"): _at,
    ("AT", "multi_layer_pooling_p2"): _at_layers(2),
    ("AT", "multi_layer_pooling_p3"): _at_layers(3),
    ("AT", "paper_mode"): _at_paper,
    ("VID", "gaussian_conv_regressor"): _vid,
    ("NST", "poly_mmd"): _nst,
    ("NST", "multi_layer"): _nst_layers,
    ("FSP", "repdistiller"): _fsp,
    ("FSP", "paper_maxpool_sum"): _fsp_paper,
    ("AB", "alternative_l2_sum"): _ab,
    ("AB", "weighted_layers"): _ab_layers,
    ("FT", "factor_l1"): _ft,
    ("FT", "translator_paraphraser"): _ft_of_maps,
    ("FT", "repdistiller_attention_factor"): _ft_of_attention,
}
