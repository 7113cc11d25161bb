"""A batch in eight pieces is the batch in one: value and gradient of every loss."""

from math import prod
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from congener.conformance.table import LOSSES, LossCase
from congener.engine.accumulate import accumulated_step
from congener.ops.collectives import lone_sample_expected
from congener.system import System
from congener.types import Batch, Outputs, Progress, StepResult

ROWS = 8


class Lone(System):
    """A linear student whose outputs have the shape of the loss' inputs."""

    def __init__(self, case: LossCase, shape: tuple[int, ...]) -> None:
        super().__init__()
        torch.manual_seed(31)
        self.student = nn.Linear(4, prod(shape))
        self.teacher = None
        self.case, self.shape = case, shape

    def observe(self, batch: Batch) -> Outputs:
        return Outputs(batch["base"] + self.student(batch["x"]).unflatten(1, self.shape))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        value = self.case.call(student.logits, batch["teacher"])
        return StepResult(value, {"loss": value})


def step(case: LossCase, dtype: torch.dtype, pieces: int) -> tuple[Tensor, list[Tensor]]:
    base, teacher = (x.to(dtype) for x in case.make(30, batch=ROWS))
    generator = torch.Generator().manual_seed(32)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64).to(dtype)
    system = Lone(case, tuple(base.shape[1:])).to(dtype)
    batch = {"index": torch.arange(ROWS), "x": x, "base": base, "teacher": teacher}
    accelerator = Accelerator(cpu=True)
    total, _, _ = accumulated_step(system, batch, Progress(0, 1, 0), pieces, accelerator)
    gradients: list[Any] = [parameter.grad for parameter in system.parameters()]
    return total.detach(), gradients


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest error, relative to the largest entry."""
    pairs = zip(found, expected, strict=True)
    size = max(float(x.abs().max()) for x in expected)
    return max(float((a - b).abs().max()) for a, b in pairs) / max(size, 1e-3)


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_eight_pieces_are_one(case: LossCase) -> None:
    """To 1e-10 in float64; in float32 to 1e-6, or to a few times its own distance from float64."""
    exact, exact_gradients = step(case, torch.float64, 1)
    assert max(float(x.abs().max()) for x in exact_gradients) > 1e-3
    value, gradients = step(case, torch.float64, 8)
    assert error([value], [exact]) <= 1e-10
    assert error(gradients, exact_gradients) <= 1e-10
    value, gradients = step(case, torch.float32, 1)
    pieces_value, pieces_gradients = step(case, torch.float32, 8)
    noise = error([value], [exact])
    assert error([pieces_value], [value]) <= max(1e-6, 4 * noise)
    noise = error(gradients, exact_gradients)
    assert error(pieces_gradients, gradients) <= max(1e-6, 4 * noise)


@lone_sample_expected()
def test_the_mean_over_pieces_would_be_seen() -> None:
    case = LOSSES["sp"]
    value, gradients = step(case, torch.float64, 1)
    student, teacher = case.make(30, batch=ROWS)
    alone = [case.call(student[i : i + 1], teacher[i : i + 1]) for i in range(ROWS)]
    assert error([torch.stack(alone).mean()], [value]) > 0.1
    assert gradients[0].abs().max() > 1e-3
