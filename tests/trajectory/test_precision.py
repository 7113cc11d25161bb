"""bf16 autocast on the CPU stays near fp32."""

from typing import Any

import pytest
import torch
from tests.trajectory.test_accumulation import trajectory


def losses(precision: str, pieces: int = 1) -> list[dict[str, float]]:
    settings: dict[str, Any] = {"precision": precision, "norm": True, "drop_last": True}
    return trajectory(pieces, dtype=torch.float32, **settings)[0]


def test_bf16_stays_near_fp32() -> None:
    """bf16 has 8 bits: 5 % of each term in the first ten steps, 10 % after 30."""
    single, half = losses("fp32"), losses("bf16")
    assert single != half  # autocast is on
    for step, (expected, found) in enumerate(zip(single, half, strict=True)):
        assert found == pytest.approx(expected, rel=0.05 if step < 10 else 0.1, abs=5e-3)
    assert half[-1]["total"] < 0.9 * half[0]["total"]


def test_bf16_in_pieces_stays_near_fp32_in_pieces() -> None:
    single, half = losses("fp32", 4), losses("bf16", 4)
    for expected, found in zip(single[:10], half[:10], strict=True):
        assert found == pytest.approx(expected, rel=0.05, abs=5e-3)


def test_weights_stay_in_single_precision() -> None:
    student = trajectory(1, dtype=torch.float32, precision="bf16", steps=2, epochs=None)[1]
    assert {p.dtype for p in student.parameters()} == {torch.float32}
