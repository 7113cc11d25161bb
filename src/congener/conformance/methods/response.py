"""Losses of predictions: decoupled, standardised, multi-level, mixed, of several heads."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def _dkd(inputs: Inputs, settings: Settings) -> Results:
    tensors = (inputs["student_logits"], inputs["teacher_logits"], inputs["labels"])
    tau = given(settings, temperature="temperature")
    options = tau | given(settings, alpha="alpha", beta="beta")
    return {
        "loss": losses.dkd_loss(*tensors, **options),
        "out__tckd": losses.tckd_loss(*tensors, **tau),
        "out__nckd": losses.nckd_loss(*tensors, **tau),
    }


def _dkd_standardized(inputs: Inputs, settings: Settings) -> Results:
    tensors = (inputs["student_logits"], inputs["teacher_logits"], inputs["labels"])
    options = given(settings, temperature="temperature", alpha="alpha", beta="beta")
    return {"loss": losses.dkd_loss(*tensors, standardize=True, **options)}


def _lskd(variant: str) -> Method:
    def method(inputs: Inputs, settings: Settings) -> Results:
        logits = (inputs["student_logits"], inputs["teacher_logits"])
        options: dict[str, Any] = given(settings, temperature="temperature") | {"variant": variant}
        return {"loss": losses.lskd_loss(*logits, **options)}

    return method


def _mlld_terms(inputs: Inputs, settings: Settings) -> Results:
    logits = (inputs["student_logits"], inputs["teacher_logits"])
    temperature = settings["temperature"]
    return {
        "loss": losses.mlld_loss(*logits, temperatures=temperature),
        "out__instance_kd": losses.kd_loss(*logits, temperature=temperature),
        "out__class_cc": losses.mlld_class_loss(*logits, temperature=temperature),
        "out__batch_bc": losses.mlld_batch_loss(*logits, temperature=temperature),
    }


def _mlld_trainer(kd_loss: Callable[..., Tensor]) -> Method:
    """The published two-view trainer, as it runs.

    Its masks are scalar factors, its strong view's KD terms at 2 and 6 are the weak view's, and its
    strong view has no class and batch terms.
    """

    def method(inputs: Inputs, settings: Settings) -> Results:
        weak = (inputs["student_logits_weak"], inputs["teacher_logits_weak"])
        strong = (inputs["student_logits_strong"], inputs["teacher_logits_strong"])
        confidence = torch.softmax(weak[1].detach().double(), dim=1)
        samples = share_below_median(confidence.amax(dim=1))
        classes = share_below_median(confidence.sum(dim=0))
        first = (settings["temperature"], 3.0, 5.0)
        every = (*first, 2.0, 6.0)
        weak_kd = torch.stack([kd_loss(*weak, temperature=t) for t in every])
        strong_kd = torch.stack([kd_loss(*strong, temperature=t) for t in first])
        class_terms = [losses.mlld_class_loss(*weak, temperature=t) for t in every]
        batch_terms = [losses.mlld_batch_loss(*weak, temperature=t) for t in every]
        labels = inputs["labels"]
        ce = cross_entropy(weak[0], labels) + cross_entropy(strong[0], labels)
        weight = settings["kd_weight"]
        terms = {
            "out__loss_ce": settings["ce_weight"] * ce,
            "out__loss_kd": weight
            * (samples * weak_kd.sum() + strong_kd.sum() + weak_kd[3:].sum()),
            "out__loss_cc": weight * classes * torch.stack(class_terms).sum(),
            "out__loss_bc": weight * samples * torch.stack(batch_terms).sum(),
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    return method


def _mhkd(inputs: Inputs, settings: Settings) -> Results:
    """The loss as others coded it: one weight for the KL divergence everywhere, 1 − it for CE."""
    labels, alpha = inputs["labels"], settings["alpha"]
    options = given(settings, temperature="temperature")
    options |= {"kl_weight": alpha, "ce_weight": 1 - alpha}
    pairs = layers(inputs, "student_head_logits", "teacher_head_logits")
    last = (inputs["student_logits"], inputs["teacher_logits"])
    main, *heads = (losses.mhkd_loss([s], [t], labels, **options) for s, t in (last, *pairs))
    teacher = [losses.head_cross_entropy_loss([t], labels) for _, t in pairs]
    loss = main + settings["beta"] * torch.stack(heads).sum()
    if settings.get("include_teacher_head_ce"):
        loss = loss + torch.stack(teacher).sum()
    return {
        "loss": loss,
        "out__main": main,
        "out__heads": torch.stack(heads),
        "out__teacher_head_ce": torch.stack(teacher),
    }


def _stkd(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits_mix"], inputs["teacher_logits_mix"]
    mixed = (inputs["labels_a"], inputs["labels_b"], inputs["lam"])
    alpha, tau = settings["alpha"], given(settings, temperature="temperature")
    options = tau | {"ce_weight": 1 - alpha, "kl_weight": alpha}
    return {
        "loss": losses.stkd_loss(student, teacher, *mixed, **options),
        "out__ce_mixed": losses.mixed_cross_entropy_loss(student, *mixed),
        "out__kl": losses.kd_loss(student, teacher, **tau),
    }


def _mixkd(inputs: Inputs, settings: Settings) -> Results:
    student, teacher = inputs["student_logits_mix"], inputs["teacher_logits_mix"]
    mixed = (inputs["labels_a"], inputs["labels_b"], inputs["lam"])
    distance = given(settings, distance="distance", temperature="temperature")
    options = distance | given(settings, alpha_sm="alpha_sm", alpha_tmkd="alpha_tmkd")
    task_loss = cross_entropy(inputs["student_logits"], inputs["labels_a"])
    return {
        "loss": task_loss + losses.mixkd_loss(student, teacher, *mixed, **options),
        "out__mle": task_loss,
        "out__sm": losses.mixed_cross_entropy_loss(student, *mixed),
        "out__tmkd": losses.mixkd_distance_loss(student, teacher, **distance),
    }


METHODS: dict[tuple[str, str], Method] = {
    ("DKD", "dkd"): _dkd,
    ("LSKD", "dkd_zscore"): _dkd_standardized,
    ("LSKD", "kd_zscore"): _lskd("authors"),
    ("LSKD", "kd_zscore_population_std"): _lskd("paper"),
    ("MHKD", "sum_of_heads"): _mhkd,
    ("MLLD", "full_forward"): _mlld_trainer(losses.kd_loss),
    ("MLLD", "terms_single_T"): _mlld_terms,
    ("MLLD+LSKD", "full_forward_logit_stand"): _mlld_trainer(losses.lskd_loss),
    ("MixKD", "mle_sm_tmkd_kl"): _mixkd,
    ("MixKD", "mle_sm_tmkd_mse"): _mixkd,
    ("STKD", "mixup_ce_plus_kl"): _stkd,
}
