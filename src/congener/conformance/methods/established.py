"""KD, SP, CSKD and CSWT, DIST."""

import torch

from congener import losses
from congener.conformance.methods.common import (
    Inputs,
    Method,
    Results,
    Settings,
    cross_entropy,
    given,
    layers,
    share_below_median,
)

__all__ = ["METHODS"]


def _kd(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    options = given(settings, temperature="temperature")
    return {"loss": losses.kd_loss(student, teacher, **options)}


def _kd_with_task_loss(inputs: Inputs, settings: Settings) -> Results:
    alpha = settings["alpha"]
    task_loss = cross_entropy(inputs["student_logits"], inputs["labels"])
    return {"loss": alpha * _kd(inputs, settings)["loss"] + (1 - alpha) * task_loss}


def _sp(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.sp_loss(inputs["student_feature"], inputs["teacher_feature"])}


def _sp_layers(inputs: Inputs, _settings: Settings) -> Results:
    pairs = layers(inputs, "student_feature", "teacher_feature")
    per_layer = torch.stack([losses.sp_loss(student, teacher) for student, teacher in pairs])
    return {"loss": per_layer.sum(), "out__per_layer": per_layer}


def _soft_cross_entropy(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    options = given(settings, temperature="temperature")
    return {"loss": losses.soft_cross_entropy_loss(student, teacher, **options)}


def _dist(inputs: Inputs, settings: Settings) -> Results:
    logits = (inputs["student_logits"], inputs["teacher_logits"])
    tau = given(settings, temperature="tau")
    options = tau | given(settings, beta="beta", gamma="gamma")
    return {
        "loss": losses.dist_loss(*logits, **options),
        "out__inter": losses.dist_inter_loss(*logits, **tau),
        "out__intra": losses.dist_intra_loss(*logits, **tau),
    }


def _cskd(inputs: Inputs, settings: Settings) -> Results:
    options = given(settings, temperature="temperature", alpha="alpha")
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    return {"loss": losses.cskd_loss(student, teacher, **options)}


def _cswt(inputs: Inputs, settings: Settings) -> Results:
    logits = (inputs["student_logits"], inputs["teacher_logits"])
    ends = given(settings, low_temperature="low_temp", high_temperature="high_temp")
    options = ends | given(settings, alpha="alpha")
    return {
        "loss": losses.cswt_loss(*logits, **options),
        "out__temperatures": losses.cswt_temperatures(*logits, **ends),
    }


def _cskd_trainer(inputs: Inputs, settings: Settings) -> Results:
    """The published two-view trainer; its masks are scalar factors, here as there."""
    weak = (inputs["student_logits_weak"], inputs["teacher_logits_weak"])
    strong = (inputs["student_logits_strong"], inputs["teacher_logits_strong"])
    ends = given(settings, low_temperature="low_temp", high_temperature="high_temp")
    both = (settings["temperature"], losses.cswt_temperatures(*weak, **ends))
    confidence = torch.softmax(weak[1].detach().double(), dim=1)
    samples = share_below_median(confidence.amax(dim=1))
    classes = share_below_median(confidence.sum(dim=0))
    labels = inputs["labels"]
    ce = cross_entropy(weak[0], labels) + cross_entropy(strong[0], labels)
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


METHODS: dict[tuple[str, str], Method] = {
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
