"""Losses that tell pairs apart, hash codes, and losses of feature direction."""

from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from congener import losses
from congener.conformance.methods.common import (
    Inputs,
    Method,
    Results,
    Settings,
    cross_entropy,
    given,
    weights,
)
from congener.losses.sskd_selection import copies_of, match, transferred
from congener.ops.precision import upcast

__all__ = ["METHODS"]

_VIEWS = 4


def _ckd(inputs: Inputs, settings: Settings, *, variant: str) -> Results:
    options = given(settings, temperature="temperature")
    student, teacher = inputs["student_logits"], inputs["teacher_logits"]
    return {"loss": losses.ckd_loss(student, teacher, variant=variant, **options)}  # type: ignore[arg-type]


def _nd(inputs: Inputs, settings: Settings) -> Results:
    loss = losses.nd_loss(
        inputs["student_feature"],
        inputs["teacher_feature"],
        inputs["labels"],
        inputs["class_centers"],
    )
    return {"loss": settings.get("nd_loss_factor", 1.0) * loss}


def _sskd_student(inputs: Inputs, settings: Settings) -> Results:
    logits = inputs["student_logits"], inputs["teacher_logits"]
    features = inputs["student_ss_feature"], inputs["teacher_ss_feature"]
    labels = inputs["labels"]
    plain = [x[::_VIEWS] for x in logits]
    tf, ss = (given(settings, temperature=f"{x}_T", ratio=f"ratio_{x}") for x in ("tf", "ss"))
    terms = {
        "ce": cross_entropy(plain[0], labels),
        "kd": losses.kd_loss(*plain, **given(settings, temperature="kd_T")),
        "tf": losses.sskd_transformed_loss(*logits, labels, views=_VIEWS, **tf),
        "ss": losses.sskd_loss(*features, views=_VIEWS, **ss),
    }
    published = {"ce": 0.1, "kd": 0.9, "tf": 2.7, "ss": 10.0}
    total = torch.stack(
        [settings.get(f"{name}_weight", published[name]) * term for name, term in terms.items()]
    ).sum()
    indices = {
        "tf": _kept(copies_of(logits[1], _VIEWS), labels.repeat_interleave(_VIEWS - 1),
                    settings.get("ratio_tf", 1.0)),
        "ss": _kept(*match(upcast(features[1])[0], _VIEWS, None, "local"),
                    settings.get("ratio_ss", 0.75)),
    }  # fmt: skip
    return {
        "loss": total,
        **{f"out__loss_{name}": term for name, term in terms.items()},
        **{f"out__index_{name}": index for name, index in indices.items()},
    }


def _kept(scores: Tensor, targets: Tensor, ratio: float) -> Tensor:
    return transferred(scores, targets.long(), ratio, None, "local").nonzero().flatten()


def _sskd_head(inputs: Inputs, _settings: Settings) -> Results:
    return {"loss": losses.sskd_head_loss(inputs["student_ss_feature"], views=_VIEWS)}


def _crd(inputs: Inputs, settings: Settings) -> Results:
    """The published names say bank 1 is the student's and Z_v1 is that of the student's scores."""
    student, teacher = inputs["student_feature"], inputs["teacher_feature"]
    given_z = [max(0.0, settings.get(z, 0.0)) for z in ("Z_v1", "Z_v2")]  # there, -1 is none
    wide = upcast(inputs["memory_v1"], inputs["memory_v2"])
    state = {
        **{f"student_embedding.{x}": w for x, w in weights(inputs, "embed_s.linear.").items()},
        **{f"teacher_embedding.{x}": w for x, w in weights(inputs, "embed_t.linear.").items()},
        "student_bank": wide[0].detach().clone(),
        "teacher_bank": wide[1].detach().clone(),
        "log_normalizers": torch.tensor(given_z, dtype=wide[0].dtype).log(),
    }
    samples, width = wide[0].shape
    module = losses.CRDLoss(
        student[0].numel(),
        teacher[0].numel(),
        samples,
        width,
        **given(settings, temperature="nce_t", momentum="nce_m"),
    )
    index, contrast_index = inputs["idx"].long(), inputs["contrast_idx"].long()
    loss = functional_call(module, state, (student, teacher, index, contrast_index))
    normalizers = state["log_normalizers"].exp()
    return {
        "loss": loss,
        "out__Z_v1": normalizers[0],
        "out__Z_v2": normalizers[1],
        "out__memory_v1_after": state["student_bank"],
        "out__memory_v2_after": state["teacher_bank"],
    }


METHODS: dict[tuple[str, str], Method] = {
    ("CKD", "official"): partial(_ckd, variant="authors"),
    ("CKD", "paper_student_student_negatives"): partial(_ckd, variant="paper"),
    ("SSKD", "student_terms"): _sskd_student,
    ("SSKD", "teacher_ssp_head"): _sskd_head,
    ("ND", "direct_norm"): _nd,
    ("CRD", "Z_from_first_batch"): _crd,
    ("CRD", "fixed_Z"): _crd,
}
