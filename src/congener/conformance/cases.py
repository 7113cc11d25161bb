"""Run the public losses on reference cases and compare with what the published code gave.

A case is an entry of ``vectors/index.json`` and a file of arrays: inputs by name, ``hp__*``
hyper-parameters, and the reference's ``loss``, ``grad__<input>`` and ``out__*`` in float64.
"""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from congener.conformance.methods import METHODS
from congener.errors import did_you_mean
from congener.ops.checks import check_choice
from congener.ops.collectives import lone_sample_expected

__all__ = ["Check", "check_case", "load_arrays", "load_cases", "run_case"]

Arrays = Mapping[str, npt.NDArray[Any]]

_VECTORS = resources.files("congener.conformance") / "vectors"
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_HALF_TOLERANCE = {
    "loss": {"rtol": 2e-3, "atol": 1e-6},
    "grad": {"rtol": 1e-2, "atol": 1e-6},
}


class Check(NamedTuple):
    """One compared array: the largest error, how large it may be, and the largest entry."""

    key: str
    error: float
    limit: float
    size: float = 1.0

    @property
    def relative(self) -> float:
        """The error relative to the largest entry; as it is where that is round-off itself."""
        return self.error / self.size if self.size > 1e-9 else self.error

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; an error that is NaN is not."""
        return self.error <= self.limit


def load_cases() -> list[dict[str, Any]]:
    """Read the index of the cases that are shipped with the package."""
    index = json.loads((_VECTORS / "index.json").read_text(encoding="utf-8"))
    cases: list[dict[str, Any]] = index["cases"]
    return cases


def load_arrays(case: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of a shipped case."""
    with (_VECTORS / str(case["file"])).open("rb") as file, np.load(file) as arrays:
        return dict(arrays)


def run_case(
    case: Mapping[str, Any], arrays: Arrays, dtype: str = "float64"
) -> dict[str, npt.NDArray[np.float64]]:
    """Compute a case with the public API.

    Args:
        case: its ``method``, ``variant``, and ``hyperparameters`` for those that ``arrays`` lack.
        arrays: inputs by name, ``w__*`` weights under the published module's own names and
            ``hp__*`` hyper-parameters; the reference's results, if there, only tell which
            gradients are wanted.
        dtype: the type of the floating-point inputs.

    Returns:
        ``loss``, ``grad__<input>`` of the student's inputs and of the weights, and ``out__*``, in
        float64.

    Raises:
        NotImplementedError: the method or its variant is not there yet.
        ValueError: an unknown ``dtype``.
    """
    check_choice("dtype", dtype, tuple(_DTYPES))
    key = (str(case["method"]), str(case["variant"]))
    if key not in METHODS:
        known = did_you_mean(" ".join(key), map(" ".join, METHODS))
        raise NotImplementedError(
            f"method {key[0]!r}, variant {key[1]!r} is not there yet; {known}"
        )
    inputs = {name: _tensor(array, _DTYPES[dtype]) for name, array in _inputs(arrays).items()}
    hyperparameters = dict(case.get("hyperparameters") or {})
    for name, array in arrays.items():
        if name.startswith("hp__"):
            hyperparameters[name[4:]] = array.item() if array.ndim == 0 else array.tolist()
    learnt = {name: inputs[name].requires_grad_() for name in _wanted_gradients(inputs, arrays)}
    with lone_sample_expected():
        results = METHODS[key](inputs, hyperparameters)
    results["loss"].backward()  # type: ignore[no-untyped-call]
    for name, tensor in learnt.items():
        results[f"grad__{name}"] = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    return {name: tensor.detach().double().numpy() for name, tensor in results.items()}


def check_case(case: Mapping[str, Any], arrays: Arrays, dtype: str = "float64") -> list[Check]:
    """Compare a case with its reference at the tolerance that the index states.

    Half precision is held to 2e-3 of the loss and 1e-2 of the largest gradient entry; where already
    rounding the inputs to it changes them, against float64 on the rounded ones. Where the published
    code breaks and the formula does not, the formula's value counts (``robust_loss``).
    A ``near_zero`` case is round-off or an epsilon's residue: it needs only be as small.
    """
    check_choice("dtype", dtype, tuple(_DTYPES))
    rounded = {name: _rounded(array, dtype) for name, array in _inputs(arrays).items()}
    if any(not np.array_equal(array, arrays[name]) for name, array in rounded.items()):
        arrays = {**arrays, **rounded}
        arrays = {**arrays, **run_case(case, arrays)}
    ours = run_case(case, arrays, dtype)
    tolerance = case["tolerance"].get(dtype, _HALF_TOLERANCE)
    checks = []
    for key, value in ours.items():
        reference = arrays.get(key)
        if key == "loss" and "robust_loss" in arrays:
            reference = arrays["robust_loss"]
        if reference is None:
            continue
        allowed = tolerance["grad" if key.startswith("grad__") else "loss"]
        size = float(np.abs(reference).max(initial=0.0))
        limit = allowed["atol"] + allowed["rtol"] * size
        if case.get("kind") == "near_zero":
            error, limit = float(np.abs(value).max(initial=0.0)), limit + 2 * size
        else:
            error = float(np.abs(value - reference).max(initial=0.0))
        checks.append(Check(key, error, limit, size))
    return checks


def _inputs(arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
    """Leave out hyper-parameters and the reference's results."""
    results = ("loss", "robust_loss", "loss_native_half_reference")
    kept = {name: x for name, x in arrays.items() if name not in results}
    return {name: x for name, x in kept.items() if "__" not in name or name.startswith("w__")}


def _rounded(array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    tensor = _tensor(array, _DTYPES[dtype])
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def _tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _wanted_gradients(inputs: Mapping[str, Tensor], arrays: Arrays) -> list[str]:
    """Those the reference differentiated; without a reference, the student's and the weights'."""
    ours = [name for name, x in inputs.items() if x.is_floating_point()]
    theirs = [name for name in ours if f"grad__{name}" in arrays]
    return theirs or [
        name
        for name in ours
        if "student" in name or (name.startswith("w__") and ".running_" not in name)
    ]
