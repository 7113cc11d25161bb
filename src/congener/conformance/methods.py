"""How each published method is called through the public API: one small function for each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from congener import losses

__all__ = ["METHODS"]

Inputs = Mapping[str, Tensor]
Settings = Mapping[str, Any]
Results = dict[str, Tensor]


def _given(settings: Settings, **names: str) -> dict[str, Any]:
    """Arguments by their names here, from the settings the case gives under its own names."""
    return {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}


def _kd(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    options = _given(settings, temperature="temperature")
    return {"loss": losses.kd_loss(student, teacher, **options)}


def _kd_with_task_loss(inputs: Inputs, settings: Settings) -> Results:
    alpha = settings["alpha"]
    task_loss = _cross_entropy(inputs["student_logits"], inputs["labels"])
    return {"loss": alpha * _kd(inputs, settings)["loss"] + (1 - alpha) * task_loss}


def _sp(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.sp_loss(inputs["student_feature"], inputs["teacher_feature"])}


def _sp_layers(inputs: Inputs, _settings: Settings) -> Results:
    pairs = _layers(inputs, "student_feature", "teacher_feature")
    per_layer = torch.stack([losses.sp_loss(student, teacher) for student, teacher in pairs])
    return {"loss": per_layer.sum(), "out__per_layer": per_layer}


def _soft_cross_entropy(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    options = _given(settings, temperature="temperature")
    return {"loss": losses.soft_cross_entropy_loss(student, teacher, **options)}


def _dist(inputs: Inputs, settings: Settings) -> Results:
    logits = (inputs["student_logits"], inputs["teacher_logits"])
    tau = _given(settings, temperature="tau")
    options = tau | _given(settings, beta="beta", gamma="gamma")
    return {
        "loss": losses.dist_loss(*logits, **options),
        "out__inter": losses.dist_inter_loss(*logits, **tau),
        "out__intra": losses.dist_intra_loss(*logits, **tau),
    }


def _cskd(inputs: Inputs, settings: Settings) -> Results:
    options = _given(settings, temperature="temperature", alpha="alpha")
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    return {"loss": losses.cskd_loss(student, teacher, **options)}


def _cswt(inputs: Inputs, settings: Settings) -> Results:
    logits = (inputs["student_logits"], inputs["teacher_logits"])
    ends = _given(settings, low_temperature="low_temp", high_temperature="high_temp")
    options = ends | _given(settings, alpha="alpha")
    return {
        "loss": losses.cswt_loss(*logits, **options),
        "out__temperatures": losses.cswt_temperatures(*logits, **ends),
    }


def _cskd_trainer(inputs: Inputs, settings: Settings) -> Results:
    """The published two-view trainer; its masks are scalar factors, here as there."""
    weak = (inputs["student_logits_weak"], inputs["teacher_logits_weak"])
    strong = (inputs["student_logits_strong"], inputs["teacher_logits_strong"])
    ends = _given(settings, low_temperature="low_temp", high_temperature="high_temp")
    both = (settings["temperature"], losses.cswt_temperatures(*weak, **ends))
    confidence = torch.softmax(weak[1].detach().double(), dim=1)
    samples = _share_below_median(confidence.amax(dim=1))
    classes = _share_below_median(confidence.sum(dim=0))
    labels = inputs["labels"]
    ce = _cross_entropy(weak[0], labels) + _cross_entropy(strong[0], labels)
    kd = sum(
        samples * losses.cskd_loss(*weak, temperature=t) + losses.cskd_loss(*strong, temperature=t)
        for t in both
    )
    cc = classes * sum(losses.cskd_class_loss(*weak, temperature=t) for t in both)
    bc = samples * sum(losses.cskd_batch_loss(*weak, temperature=t) for t in both)
    terms = {"ce": settings["ce_weight"] * ce}
    terms |= {name: settings["kd_weight"] * x for name, x in (("kd", kd), ("cc", cc), ("bc", bc))}
    total = torch.stack(list(terms.values())).sum()
    return {"loss": total, **{f"out__loss_{name}": term for name, term in terms.items()}}


def _share_below_median(values: Tensor) -> Tensor:
    return (values <= values.quantile(0.5)).double().mean()


def _layers(inputs: Inputs, student: str, teacher: str) -> list[tuple[Tensor, Tensor]]:
    """Pairs numbered ``<name>_0``, ``<name>_1``, … from shallow to deep."""
    numbers = sorted(int(key.rpartition("_")[2]) for key in inputs if key.startswith(f"{student}_"))
    return [(inputs[f"{student}_{n}"], inputs[f"{teacher}_{n}"]) for n in numbers]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The task loss, in at least float32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide, labels.long())


METHODS: dict[tuple[str, str], Callable[[Inputs, Settings], Results]] = {
    ("KD", "kl_T2"): _kd,
    ("KD", "alpha_kl_plus_ce"): _kd_with_task_loss,
    ("KD", "soft_cross_entropy_noT2"): _soft_cross_entropy,
    ("SP", "code"): _sp,
    ("SP", "multi_layer"): _sp_layers,
    ("CSKD", "cs_loss"): _cskd,
    ("CSKD", "cs_loss_cswt"): _cswt,
    ("CSKD", "full_forward"): _cskd_trainer,
    ("DIST", "official"): _dist,
    ("DIST", "segmentation_4d"): _dist,
}
