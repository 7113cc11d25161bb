"""A batch cut into pieces trains as the whole one, for a loss that couples its samples too."""

from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyTask, student_net, teacher_net
from torch import nn

from congener.engine import FitConfig, fit
from congener.losses import KDLoss, SPLoss
from congener.runlog import RunLog
from congener.systems import Distillation
from congener.types import Term


def trajectory(
    pieces: int, *, dtype: torch.dtype = torch.float64, dropout: float = 0.0, norm: bool = False,
    **settings: Any,
) -> tuple[list[dict[str, float]], nn.Module]:  # fmt: skip
    """The losses of each step, and the student in the end."""
    task = TinyTask(count=50)
    for split in task.splits.values():
        split.images = split.images.to(dtype)
    student = student_net(norm=norm, dropout=dropout).to(dtype)
    terms = [Term(SPLoss(), 50.0, "hidden", "hidden"), Term(KDLoss(temperature=4), 0.9)]
    system = Distillation(student, teacher_net().to(dtype), terms, task=task, task_weight=0.1)
    config = FitConfig(
        **{
            "epochs": 10, "batch_size": 16, "accumulate": pieces, "optimizer": "sgd", "lr": 0.05,
            "log_every": 1, "clip": 5.0, "threads": 1, "device": "cpu",
        } | settings
    )  # fmt: skip
    events: list[dict[str, Any]] = []
    log = RunLog(None, (events.append,))
    fit(system, task, config, train=task.splits["train"], test=task.splits["test"], log=log)
    steps = [{"total": e["total"]} | e["terms"] for e in events if e["event"] == "step"]
    return steps, student


@pytest.mark.parametrize("pieces", [2, 4, 5])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_pieces_are_the_whole_batch(pieces: int, optimizer: str) -> None:
    """Batches of 16 and, ragged, 2 of 50 samples; 5 pieces of 16 are ragged themselves."""
    settings = {"optimizer": optimizer, "lr": 0.05 if optimizer == "sgd" else 0.01}
    whole, student = trajectory(1, **settings)
    cut, other = trajectory(pieces, **settings)
    assert len(whole) == len(cut) == 40
    assert whole[-2]["total"] < 0.9 * whole[0]["total"]
    for expected, found in zip(whole, cut, strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-8, atol=1e-10)


def test_pieces_are_the_whole_batch_in_single_precision() -> None:
    """Sums in another order: 1e-4 relative after 40 steps of plain SGD."""
    whole, _ = trajectory(1, dtype=torch.float32)
    cut, _ = trajectory(4, dtype=torch.float32)
    assert whole != cut  # they do compute differently
    for expected, found in zip(whole, cut, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_mean_over_pieces_would_be_another_loss() -> None:
    """What the engine does not do, and the tests above could tell: SP of the pieces, averaged."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 8, generator=generator)
    whole = SPLoss()(student, teacher)
    pieces = zip(student.split(4), teacher.split(4), strict=True)
    averaged = torch.stack([SPLoss()(s, t) for s, t in pieces]).mean()
    assert abs(averaged - whole) > 0.1 * whole


def test_second_forward_repeats_the_first_ones_dropout() -> None:
    """With one piece the algorithm must be the plain step, dropout included."""
    from congener.engine import loop

    plain, _ = trajectory(1, dropout=0.5)
    step = loop.accumulated_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            loop,
            "accumulated_step",
            lambda a, b, c, _, e, **options: step(a, b, c, 1, e, **options),
        )
        cached, _ = trajectory(2, dropout=0.5)
    for expected, found in zip(plain, cached, strict=True):
        assert found == pytest.approx(expected, rel=1e-9)


def test_batch_norm_buffers_are_touched_once_for_each_piece() -> None:
    _, student = trajectory(4, norm=True, steps=3, epochs=None)
    assert student.state_dict()["hidden.1.num_batches_tracked"] == 3 * 4
    _, student = trajectory(1, norm=True, steps=3, epochs=None)
    assert student.state_dict()["hidden.1.num_batches_tracked"] == 3
