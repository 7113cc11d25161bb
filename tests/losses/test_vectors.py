"""The public API against the stored results of the published code."""

from typing import Any

import numpy as np
import pytest
import torch

from congener.catalogue import losses_by_name
from congener.conformance import check_case, load_arrays, load_cases, methods, run_case
from congener.conformance.proof import VECTORS, vectors_of

CASES = {case["case"]: case for case in load_cases()}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_public_case_is_there_and_proves_a_loss() -> None:
    assert len(CASES) == 95
    assert {(case["method"], case["variant"]) for case in CASES.values()} <= set(methods.METHODS)
    assert set(VECTORS) <= set(losses_by_name())
    claimed = {case["case"] for name in VECTORS for case in vectors_of(name)}
    assert claimed == set(CASES)


@each_case
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_within_tolerance(case: dict[str, Any], dtype: str) -> None:
    arrays = load_arrays(case)
    checks = check_case(case, arrays, dtype)
    wanted = {key for key in arrays if key == "loss" or key.startswith(("grad__", "out__"))}
    assert {check.key for check in checks} >= wanted
    for check in checks:
        assert check.passed, check


@each_case
def test_a_small_error_is_seen(case: dict[str, Any]) -> None:
    arrays = load_arrays(case)
    for key in [key for key in arrays if key == "loss" or key.startswith("grad__")]:
        allowed = case["tolerance"]["float64"]["grad" if key.startswith("grad__") else "loss"]
        if np.abs(arrays[key]).max() < 1e-6:
            continue  # round-off of a gradient that is exactly zero
        spoilt = {**arrays, key: arrays[key] * (1 + max(1e-6, 10 * allowed["rtol"]))}
        failed = {check.key for check in check_case(case, spoilt) if not check.passed}
        assert failed == {key}


def test_results_are_float64_numpy_arrays_and_need_no_reference() -> None:
    case = CASES["dist_1"]
    arrays = load_arrays(case)
    inputs = {name: array for name, array in arrays.items() if name.endswith("_logits")}
    inputs = {name: array for name, array in inputs.items() if "__" not in name}
    results = run_case({**case, "hyperparameters": {}}, inputs, "bfloat16")
    assert set(results) == {"loss", "grad__student_logits", "out__inter", "out__intra"}
    assert all(result.dtype == np.float64 for result in results.values())


def test_hyperparameters_of_the_arrays_come_first() -> None:
    case, arrays = CASES["kd_1"], load_arrays(CASES["kd_1"])
    given = {**arrays, "hp__temperature": np.array(2.0)}
    del arrays["hp__temperature"]
    case = {**case, "hyperparameters": {"temperature": 8.0}}
    assert run_case(case, given)["loss"] != run_case(case, arrays)["loss"]
    case = {**case, "hyperparameters": {"temperature": 2.0}}
    assert run_case(case, given)["loss"] == run_case(case, arrays)["loss"]


def test_near_zero_needs_only_be_small() -> None:
    case = {**CASES["kd_1"], "kind": "near_zero"}
    logits = load_arrays(case)["teacher_logits"]
    arrays = {"student_logits": logits, "teacher_logits": logits, "loss": np.array(1e-9)}
    assert all(check.passed for check in check_case(case, arrays))
    arrays["student_logits"] = logits + np.arange(logits.size).reshape(logits.shape)
    assert not all(check.passed for check in check_case(case, arrays))


def test_not_a_number_never_passes() -> None:
    arrays = load_arrays(CASES["kd_1"])
    arrays["loss"] = np.array(np.nan)
    assert [check.key for check in check_case(CASES["kd_1"], arrays) if not check.passed] == [
        "loss"
    ]
    arrays["robust_loss"] = load_arrays(CASES["kd_1"])["loss"]
    assert all(check.passed for check in check_case(CASES["kd_1"], arrays))


def test_unknown_method_and_type_are_told() -> None:
    with pytest.raises(
        NotImplementedError, match=r"'KD', variant 'kl_T3' .* did you mean 'KD kl_T2"
    ):
        run_case({"method": "KD", "variant": "kl_T3"}, {})
    with pytest.raises(ValueError, match="dtype must be one of"):
        run_case(CASES["kd_1"], {}, "float8")


def test_inputs_are_left_alone() -> None:
    arrays = load_arrays(CASES["sp_1"])
    before = {name: array.copy() for name, array in arrays.items()}
    run_case(CASES["sp_1"], {name: array.astype(np.float64) for name, array in arrays.items()})
    run_case(CASES["sp_1"], arrays)
    assert all(np.array_equal(arrays[name], before[name]) for name in before)
    assert torch.is_grad_enabled()
