"""Losses of token distributions and of sentence embeddings."""

from typing import Any

import torch

from congener import losses
from congener.conformance.methods.common import Inputs, Method, Results, Settings, given

__all__ = ["METHODS"]

IGNORED = -100


def _tokens(inputs: Inputs) -> dict[str, Any]:
    """Which tokens count: those that have a label."""
    labels = inputs.get("labels")
    return {"mask": None if labels is None else labels != IGNORED}


def _trl(beta: float) -> Method:
    """TRL's divergence.

    Its "batchmean" is over sequences where there are no labels, its "mean" over the vocabulary too.
    """

    def method(inputs: Inputs, settings: Settings) -> Results:
        logits = inputs["student_logits"], inputs["teacher_logits"]
        options = {"beta": settings.get("beta", beta)} | _tokens(inputs)
        options |= given(settings, temperature="temperature")
        reduction = settings.get("reduction", "batchmean")
        if reduction == "sum" or (reduction == "batchmean" and options["mask"] is None):
            total = losses.gkd_loss(*logits, reduction="sum", **options)
            return {"loss": total if reduction == "sum" else total / len(logits[0])}
        mean = losses.gkd_loss(*logits, **options)
        return {"loss": mean / logits[0].shape[-1] if reduction == "mean" else mean}

    return method


def _teacher_entropy(inputs: Inputs) -> torch.Tensor:
    """What the released forward divergences lack; a constant."""
    teacher = inputs["teacher_logits"].detach().flatten(0, -2)
    mask = _tokens(inputs)["mask"]
    rows = None if mask is None else mask.flatten()
    return losses.soft_cross_entropy_loss(teacher, teacher, temperature=1.0, mask=rows)


def _distillm_forward(inputs: Inputs, _settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    divergence = losses.gkd_loss(*logits, beta=0.0, **_tokens(inputs))
    return {"loss": divergence + _teacher_entropy(inputs)}


def _distillm_reverse(inputs: Inputs, _settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    return {"loss": losses.gkd_loss(*logits, beta=1.0, **_tokens(inputs))}


def _distillm_js(inputs: Inputs, settings: Settings) -> Results:
    """Its weight λ is the student's share, 1 − β."""
    logits = inputs["student_logits"], inputs["teacher_logits"]
    lam = settings.get("lam", 0.9)
    return {"loss": losses.gkd_loss(*logits, beta=1 - lam, **_tokens(inputs))}


def _distillm_skew_forward(inputs: Inputs, settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    options = given(settings, alpha="lam") | _tokens(inputs)
    divergence = losses.skew_kl_loss(*logits, **options)
    return {"loss": divergence + _teacher_entropy(inputs)}


def _distillm_skew_reverse(inputs: Inputs, settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    options = given(settings, alpha="lam") | _tokens(inputs)
    return {"loss": losses.skew_kl_loss(*logits, direction="reverse", **options)}


def _distillm_total_variation(inputs: Inputs, _settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    return {"loss": losses.total_variation_loss(*logits, **_tokens(inputs))}


def _distillkit(beta: float) -> Method:
    """DistillKit's, which are multiplied by τ²."""

    def method(inputs: Inputs, settings: Settings) -> Results:
        logits = inputs["student_logits"], inputs["teacher_logits"]
        temperature = settings.get("temperature", 1.0)
        options = {"beta": beta, "temperature": temperature} | _tokens(inputs)
        return {"loss": temperature**2 * losses.gkd_loss(*logits, **options)}

    return method


METHODS: dict[tuple[str, str], Method] = {
    **{("GKD", f"generalized_jsd_beta_{n / 20:g}"): _trl(n / 20) for n in range(21)},
    ("GKD", "distillm_forward_kl"): _distillm_forward,
    ("GKD", "distillm_reverse_kl"): _distillm_reverse,
    ("GKD", "distillm_js_distance"): _distillm_js,
    ("GKD", "distillm_skewed_forward_kl"): _distillm_skew_forward,
    ("GKD", "distillm_skewed_reverse_kl"): _distillm_skew_reverse,
    ("GKD", "distillm_tv_distance"): _distillm_total_variation,
    ("GKD", "distillkit_jsd"): _distillkit(0.5),
    ("GKD", "distillkit_kl"): _distillkit(0.0),
}
