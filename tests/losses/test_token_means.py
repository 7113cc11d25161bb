"""Means over tokens are exact: under padding, masks, pieces and processes, plain and lean."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine.accumulate import accumulated_step
from congener.losses import gkd_loss, skew_kl_loss, total_variation_loss
from congener.ops import vocabulary
from congener.system import System
from congener.types import Batch, Outputs, Progress, StepResult

LOSSES: dict[str, Callable[..., Tensor]] = {
    "forward": partial(gkd_loss, beta=0.0),
    "reverse": partial(gkd_loss, beta=1.0),
    "js": partial(gkd_loss, beta=0.3, temperature=1.5),
    "skew forward": skew_kl_loss,
    "skew reverse": partial(skew_kl_loss, direction="reverse"),
    "total variation": total_variation_loss,
}
BATCH, TOKENS, VOCAB = 8, 6, 9
LENGTHS = (4, 6, 0, 1, 5, 6, 0, 2)  # of the answers; two texts have none

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(params=["plain", "lean"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tokens make a chunk where the form is lean."""
    monkeypatch.setattr(vocabulary, "LEAN_FROM", 0 if request.param == "lean" else 10**9)
    monkeypatch.setattr(vocabulary, "CHUNK", 2 * VOCAB)


def texts() -> tuple[Tensor, Tensor, Tensor]:
    """Logits (batch, tokens, vocab) of student and teacher, and which tokens are answers."""
    generator = torch.Generator().manual_seed(40)
    shape = (BATCH, TOKENS, VOCAB)
    student, teacher = (
        2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher, torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]


def value_and_gradient(loss: Callable[..., Tensor], student: Tensor, *others: Any, **options: Any
                       ) -> tuple[Tensor, Tensor]:  # fmt: skip
    student = student.detach().requires_grad_()
    value = loss(student, *others, **options)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def token_by_token(loss: Callable[..., Tensor]) -> tuple[float, Tensor]:
    """The mean over the answers' tokens, each given to the loss alone, and its gradient."""
    student, teacher, mask = texts()
    count, values, gradient = int(mask.sum()), [], torch.zeros_like(student)
    for row, place in mask.nonzero().tolist():
        one = slice(place, place + 1)
        value, slope = value_and_gradient(loss, student[row, one], teacher[row, one])
        values.append(float(value))
        gradient[row, one] = slope / count
    assert count == sum(LENGTHS)
    return math.fsum(values) / count, gradient


def assert_same(actual: object, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_loss
def test_the_mean_is_over_tokens(loss: Callable[..., Tensor]) -> None:
    expected, slope = token_by_token(loss)
    student, teacher, mask = texts()
    value, gradient = value_and_gradient(loss, student, teacher, mask=mask)
    assert abs(float(value) - expected) <= 1e-12
    assert_same(gradient, slope)
    # selected before, as where a head sees the answers alone
    value, gradient = value_and_gradient(loss, student[mask], teacher[mask])
    assert abs(float(value) - expected) <= 1e-12
    assert_same(gradient, slope[mask])
    # and not over texts
    alone = [
        loss(student[k : k + 1], teacher[k : k + 1], mask=mask[k : k + 1])
        for k, length in enumerate(LENGTHS)
        if length
    ]
    assert abs(float(torch.stack(alone).mean()) - expected) > 1e-3


@each_loss
def test_padding_changes_nothing(loss: Callable[..., Tensor]) -> None:
    student, teacher, mask = texts()
    value, gradient = value_and_gradient(loss, student, teacher, mask=mask)
    pad = partial(nn.functional.pad, pad=(0, 0, 0, 5), value=torch.nan)
    longer = nn.functional.pad(mask, (0, 5))
    padded, slope = value_and_gradient(loss, pad(student), pad(teacher), mask=longer)
    assert_same(padded, value)
    assert_same(slope[:, :TOKENS], gradient)
    assert (slope[:, TOKENS:] == 0).all()
    # a text without an answer is as if absent
    answered = mask.any(dim=1)
    fewer, slope = value_and_gradient(
        loss, student[answered], teacher[answered], mask=mask[answered]
    )
    assert_same(fewer, value)
    assert_same(slope, gradient[answered])
    assert (gradient[~answered] == 0).all()


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_answer_at_all_gives_zero_that_goes_backward(
    loss: Callable[..., Tensor], reduction: str
) -> None:
    student, teacher, mask = texts()
    nothing = torch.zeros_like(mask)
    value, gradient = value_and_gradient(loss, student, teacher, mask=nothing, reduction=reduction)
    assert value == 0
    assert (gradient == 0).all()
    value, gradient = value_and_gradient(loss, student[nothing], teacher[nothing])
    assert value == 0
    assert gradient.shape == (0, VOCAB)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_teacher_that_excludes_tokens(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """As a sampling warp does; the student cannot exclude what it is taught to say."""
    student, teacher, mask = texts()
    teacher[..., 3:7] = -torch.inf
    teacher[0, 1] = -torch.inf
    teacher[0, 1, 2] = 0.5  # one token is all that is left
    wide, _ = value_and_gradient(loss, student, teacher, mask=mask)
    value, gradient = value_and_gradient(loss, student.to(dtype), teacher.to(dtype), mask=mask)
    assert value.isfinite()  # in sum, too
    assert gradient.isfinite().all()
    if dtype != torch.bfloat16 and not is_reverse(loss):
        assert_same(value.double(), wide, 1e-12 if dtype == torch.float64 else 1e-6)
    # what the student alone is left with goes to what the teacher leaves
    if not is_reverse(loss):
        assert (gradient[mask][:, 3:7].double() > -1e-12).all()


def is_reverse(loss: Callable[..., Tensor]) -> bool:
    """KL(q ‖ p) is infinite there, and a huge number of its type here."""
    return loss is LOSSES["reverse"]


class Answers(System):
    """A linear student of which a row of logits is asked for each token of an answer."""

    def __init__(self, loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(41)
        self.student = nn.Linear(4, VOCAB).to(dtype)
        self.teacher = None
        self.loss = loss

    def observe(self, batch: Batch) -> Outputs:
        return Outputs((batch["base"] + self.student(batch["x"]))[batch["mask"]])

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        value = self.loss(student.logits, batch["said"][batch["mask"]])
        return StepResult(value, {"loss": value})


def step(
    loss: Callable[..., Tensor], dtype: torch.dtype, pieces: int, rows: slice = slice(None)
) -> list[Tensor]:
    """The loss and the gradients of a step."""
    student, teacher, mask = texts()
    x = torch.randn(
        BATCH, TOKENS, 4, generator=torch.Generator().manual_seed(42), dtype=torch.float64
    )
    whole = {"base": student.to(dtype), "said": teacher.to(dtype), "x": x.to(dtype), "mask": mask}
    batch: Batch = {"index": torch.arange(BATCH)[rows]} | {k: v[rows] for k, v in whole.items()}
    system = Answers(loss, dtype)
    accelerator = Accelerator(cpu=True)
    total, _, _ = accumulated_step(system, batch, Progress(0, 1, 0), pieces, accelerator)
    gradients = [parameter.grad for parameter in system.parameters() if parameter.grad is not None]
    return [total.detach(), *gradients]


@each_loss
@pytest.mark.parametrize("pieces", [3, 8])
def test_pieces_with_other_numbers_of_tokens_are_one(
    loss: Callable[..., Tensor], pieces: int
) -> None:
    """Eight texts, one at a time, two of them without an answer."""
    assert_same(step(loss, torch.float64, pieces), step(loss, torch.float64, 1))
    found, expected = (step(loss, torch.float32, count) for count in (pieces, 1))
    assert_same(found, expected, 2e-6)


RANKS = {
    "as many texts": ([0, 1, 2, 3], [4, 5, 6, 7]),
    "ragged": ([0, 1], [2, 3, 4, 5, 6, 7]),
    "no answer on one": ([0, 1, 3, 4, 5, 7], [2, 6]),
}


def on_a_rank(rank: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    results: dict[str, Any] = {}
    for name, rows in RANKS.items():
        student, teacher, mask = (x[rows[rank]] for x in texts())
        for key, loss in LOSSES.items():
            results[name, key] = value_and_gradient(loss, student, teacher, mask=mask)
    for key, loss in LOSSES.items():
        results["step", key] = step(loss, torch.float64, 4, slice(rank * 4, rank * 4 + 4))
    return results


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Values, gradients of logits, and what a step in pieces leaves in the parameters."""
    ranks = in_two_processes(tmp_path / "ranks", on_a_rank)
    for key, loss in LOSSES.items():
        expected, slope = token_by_token(loss)
        for name, rows in RANKS.items():
            for result, own in zip(ranks, rows, strict=True):
                value, gradient = result[name, key]
                assert abs(float(value) - expected) <= 1e-12
                assert_same(gradient / 2, slope[own])  # DDP takes the mean over both
        whole = step(loss, torch.float64, 1)
        for result in ranks:
            assert_same(result["step", key], whole)
