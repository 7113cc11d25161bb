"""Learning rates against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from congener.engine import FitConfig
from congener.engine.optim import build_optimizer, build_schedule
from congener.errors import RecipeError


def rates(count: int, *, per_epoch: int = 1, **settings: Any) -> list[float]:
    """The learning rate in force at each of ``count`` steps, and after them."""
    config = FitConfig(**settings)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], config)
    schedule = build_schedule(optimizer, config, steps=count, steps_per_epoch=per_epoch)
    found = [schedule.get_last_lr()[0]]
    for _ in range(count):
        assert optimizer.param_groups[0]["lr"] == found[-1]
        optimizer.step()
        schedule.step()
        found.append(schedule.get_last_lr()[0])
    return found


def test_constant() -> None:
    assert rates(4, steps=4, lr=0.3, schedule="constant") == [0.3] * 5


def test_cosine_ends_at_zero() -> None:
    half = 0.1 * math.sqrt(0.5)
    found = rates(4, epochs=4, lr=0.2, schedule="cosine")
    assert found == pytest.approx([0.2, 0.1 + half, 0.1, 0.1 - half, 0.0], abs=1e-15)


def test_cosine_is_that_of_torch() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17)
    wanted = []
    for _ in range(17):
        wanted.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert rates(17, steps=17, lr=0.05)[:-1] == pytest.approx(wanted)


def test_multistep_in_steps() -> None:
    found = rates(
        7, per_epoch=3, steps=7, lr=1.0, schedule="multistep", milestones=(2, 5), gamma=0.5
    )
    assert found == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_multistep_in_epochs() -> None:
    """Milestones (1, 3): after the first epoch of 3 steps, and after the third."""
    found = rates(
        12, per_epoch=3, epochs=4, lr=1.0, schedule="multistep", milestones=(1, 3), gamma=0.1
    )
    assert found == pytest.approx([1.0] * 3 + [0.1] * 6 + [0.01] * 4)


def test_convention_of_the_crd_benchmark() -> None:
    """lr_decay_epochs 150, 180, 210 of 240: the drop is in force from epoch 151, counted from 1."""
    per_epoch = 2
    found = rates(
        240 * per_epoch, per_epoch=per_epoch, epochs=240, lr=0.05, optimizer="sgd",
        schedule="multistep", milestones=(150, 180, 210),
    )  # fmt: skip
    for epoch in range(1, 241):
        theirs = 0.05 * 0.1 ** sum(epoch > drop for drop in (150, 180, 210))
        mine = found[(epoch - 1) * per_epoch : epoch * per_epoch]
        assert mine == pytest.approx([theirs] * per_epoch, rel=1e-12), epoch


def test_warm_up_then_cosine() -> None:
    found = rates(6, steps=6, lr=0.4, warmup=2)
    assert found == pytest.approx([0.2, 0.4, 0.4, 0.2 + 0.2 * math.sqrt(0.5), 0.2,
                                   0.2 - 0.2 * math.sqrt(0.5), 0.0], abs=1e-15)  # fmt: skip


def test_warm_up_then_multistep() -> None:
    found = rates(6, steps=6, lr=1.0, warmup=4, schedule="multistep", milestones=(5,))
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.1, 0.1])


def test_warm_up_longer_than_the_run() -> None:
    assert rates(2, steps=2, lr=1.0, warmup=10) == pytest.approx([0.1, 0.2, 0.3])


def test_optimisers_take_their_settings() -> None:
    values = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)]
    sgd = build_optimizer(
        values,
        FitConfig(steps=1, optimizer="sgd", lr=0.1, momentum=0.8, nesterov=True, weight_decay=5e-4),
    )
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    wanted = {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 5e-4}
    assert {key: group[key] for key in wanted} == wanted
    assert group["params"] == values[:1]
    adamw = build_optimizer(values, FitConfig(steps=1, lr=2e-3, weight_decay=0.03))
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.param_groups[0]["lr"], adamw.param_groups[0]["weight_decay"]) == (2e-3, 0.03)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_fused_is_an_option(kind: str) -> None:
    values = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    for fused in (False, True):
        config = FitConfig(steps=1, optimizer=kind, fused=fused)
        groups = build_optimizer(values, config).param_groups
        assert [bool(group["fused"]) for group in groups] == [fused]


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.complex64, "cpu"), (torch.float32, "meta")], ids=str
)
def test_fused_where_there_is_none_is_refused_before_the_first_step(
    kind: str, dtype: torch.dtype, device: str
) -> None:
    values = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2, dtype=dtype))]
    config = FitConfig(steps=1, optimizer=kind, fused=True)
    with pytest.raises(RecipeError) as error:
        build_optimizer(values, config, torch.device(device))
    said = str(error.value)
    assert said.startswith(f"fused: torch has no fused {kind} for {dtype} on {device} (")
    assert said.endswith("; leave `fused` out.")
