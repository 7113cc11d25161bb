"""Prove a loss on this machine: its reference vectors, and the contract of every loss."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from congener.catalogue import functions_beside, losses_by_name
from congener.conformance.cases import Check, check_case, load_arrays, load_cases
from congener.conformance.contract import CHECKS, measure
from congener.conformance.methods import METHODS
from congener.conformance.table import LOSSES, LossCase
from congener.errors import RecipeError, did_you_mean

__all__ = [
    "DTYPES",
    "VECTORS",
    "Finding",
    "largest_errors",
    "prove_vectors",
    "table_cases",
    "vectors_of",
    "verify",
]

DTYPES = ("float64", "float32", "float16", "bfloat16")

VECTORS: dict[str, tuple[str, ...]] = {
    "ab": ("AB",),
    "adain": ("AdaIN-KD stat_plus_adain_eval",),
    "adain_statistics": ("AdaIN-KD stat_plus_adain_eval",),
    "at": ("AT",),
    "cckd": ("CC gaussian_", "CC bilinear_"),
    "ckd": ("CKD",),
    "crd": ("CRD",),
    "cskd": ("CSKD",),
    "dist": ("DIST",),
    "dkd": ("DKD", "LSKD dkd_"),
    "fitnets": ("FitNets",),
    "fsp": ("FSP",),
    "ft": ("FT",),
    "gkd": ("GKD generalized_", "GKD distillkit_", "GKD distillm_forward_kl",
            "GKD distillm_reverse_kl", "GKD distillm_js_distance"),
    "ikd": ("IKD",),
    "iusp": ("IUSP",),
    "kd": ("KD kl_T2", "KD alpha_kl_plus_ce"),
    "lskd": ("LSKD",),
    "mhkd": ("MHKD",),
    "mixkd": ("MixKD",),
    "mlld": ("MLLD", "MLLD+LSKD"),
    "nd": ("ND",),
    "neighbour_correlation": ("CC repdistiller_",),
    "nst": ("NST",),
    "ofd": ("OFD",),
    "pkt": ("PKT",),
    "reviewkd": ("ReviewKD",),
    "rkd": ("RKD",),
    "simkd": ("SimKD",),
    "skew_kl": ("GKD distillm_skewed_",),
    "soft_cross_entropy": ("KD soft_cross_entropy_noT2",),
    "sp": ("SP",),
    "srrl": ("AdaIN-KD authors_statm_mean_only",),
    "sskd": ("SSKD",),
    "sskd_transformed": ("SSKD student_terms",),
    "stkd": ("STKD",),
    "total_variation": ("GKD distillm_tv_distance",),
    "vid": ("VID",),
}  # fmt: skip
"""The vectors that prove each loss: a method, alone or with the beginning of its variants."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one vector in one precision, or of one check of the contract.

    Attributes:
        kind: ``"vector"`` or ``"contract"``.
        name: the vector's name, or the check's.
        case: the precision, or the setting of the loss.
        checks: what was compared; empty where the setting is exempt.
        reason: why it is exempt.
    """

    kind: str
    name: str
    case: str
    checks: list[Check]
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is within its limit."""
        return all(check.passed for check in self.checks)

    @property
    def worst(self) -> Check | None:
        """The comparison that comes closest to its limit, or is furthest beyond it."""
        return max(
            self.checks, key=lambda c: c.error / c.limit if c.limit else c.error, default=None
        )


def verify(name: str) -> Iterator[Finding]:
    """Run everything that is known to hold for a loss.

    Args:
        name: its short name or its class name.

    Yields:
        Each finding as it is made: the vectors in four precisions, then the contract.

    Raises:
        RecipeError: there is no such loss.
    """
    known = losses_by_name()
    if name not in known:
        raise RecipeError(f"There is no loss named {name!r}; {did_you_mean(name, known)}")
    yield from prove_vectors(known[name].name)
    for label, setting in table_cases(known[name]).items():
        for check in CHECKS:
            reason = setting.exempt.get(check, "")
            yield Finding("contract", check, label, measure(check, setting), reason)


def prove_vectors(name: str) -> Iterator[Finding]:
    """Compare a loss, by its short name, with its vectors in four precisions."""
    for case in vectors_of(name):
        arrays = load_arrays(case)
        for dtype in DTYPES:
            yield Finding("vector", str(case["case"]), dtype, check_case(case, arrays, dtype))


def vectors_of(name: str) -> list[dict[str, Any]]:
    """The shipped vectors that prove a loss, by its short name."""
    return [
        case
        for case in load_cases()
        if (case["method"], case["variant"]) in METHODS
        and any(_claimed(wanted, case) for wanted in VECTORS.get(name, ()))
    ]


def _claimed(wanted: str, case: dict[str, Any]) -> bool:
    method, _, variant = wanted.partition(" ")
    return case["method"] == method and str(case["variant"]).startswith(variant)


def table_cases(cls: Any) -> dict[str, LossCase]:
    """The settings of a loss in the table: those of its class and of the functions beside it.

    A setting that covers no public name belongs to the one before it.
    """
    mine = {cls.__name__, *functions_beside(cls)}
    found: dict[str, LossCase] = {}
    belongs = False
    for label, case in LOSSES.items():
        if case.covers:
            belongs = bool(mine & set(case.covers))
        if belongs:
            found[label] = case
    return found


def largest_errors(findings: list[Finding], dtype: str = "float64") -> tuple[float, float]:
    """The largest relative error of a loss, and of a gradient, over the vectors in a precision."""
    checks = [c for f in findings if f.kind == "vector" and f.case == dtype for c in f.checks]
    gradients = [check.relative for check in checks if check.key.startswith("grad__")]
    values = [check.relative for check in checks if not check.key.startswith("grad__")]
    return max(values, default=0.0), max(gradients, default=0.0)
