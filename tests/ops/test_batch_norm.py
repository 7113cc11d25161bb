"""Batch normalisation over the samples that count; over processes, see the contract."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from congener.ops.batch_norm import BatchNorm

MASK = torch.tensor([True, False, True, True, True])


def maps(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(5, *shape, generator=generator, dtype=torch.float64) + 1


def norms(channels: int, **options: Any) -> tuple[BatchNorm, nn.BatchNorm2d]:
    ours, torchs = BatchNorm(channels, **options).double(), nn.BatchNorm2d(channels).double()
    with torch.no_grad():
        torchs.weight.copy_(torch.linspace(0.5, 2, channels))
        torchs.bias.copy_(torch.linspace(-1, 1, channels))
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def run(module: nn.Module, x: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of one number made of it."""
    x = x.clone().requires_grad_()
    out = module(x, *args)
    weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])


def test_without_a_mask_it_is_torchs() -> None:
    ours, torchs = norms(3)
    for _ in range(2):
        x = maps(0, 3, 4, 2)
        torch.testing.assert_close(run(ours, x), run(torchs, x))
        torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    torch.testing.assert_close(run(ours.eval(), x), run(torchs.eval(), x))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_masked_rows_are_as_if_absent() -> None:
    ours, torchs = norms(3)
    x = maps(1, 3, 4, 2)
    expected = torchs(x[MASK])
    x[~MASK] = torch.nan
    torch.testing.assert_close(ours(x, MASK)[MASK], expected)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    assert ours(x, MASK).isfinite().all()
    ours.load_state_dict(torchs.state_dict())
    torch.testing.assert_close(ours.eval()(x, MASK)[MASK], torchs.eval()(x[MASK]))


def test_no_spread_gives_the_bias() -> None:
    ours, _ = norms(3)
    for x in (maps(2, 3, 1, 1)[:1], torch.full((5, 3, 2, 2), 1e4, dtype=torch.float64)):
        out, *gradients = run(ours, x)
        torch.testing.assert_close(out, ours.bias.detach().reshape(1, 3, 1, 1).expand_as(out))
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_nothing_moves_no_statistics() -> None:
    ours, _ = norms(3)
    ours(maps(3, 3, 2, 2))
    before = {name: x.clone() for name, x in ours.state_dict().items() if "running" in name}
    assert (before["running_mean"] != 0).all()
    ours(maps(4, 3, 2, 2), torch.zeros(5, dtype=torch.bool))
    assert ours(maps(4, 3, 2, 2)[:0]).shape == (0, 3, 2, 2)
    after = {name: ours.state_dict()[name] for name in before}
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_precise_far_from_zero() -> None:
    x = maps(5, 3, 4, 4)
    ours, _ = norms(3)
    out = ours((x + 1e4).float())
    torch.testing.assert_close(out.double(), ours(x + 1e4).double(), rtol=0, atol=2e-3)


def test_half_is_normalised_in_float32_and_scopes_are_checked() -> None:
    assert BatchNorm(3)(maps(6, 3, 2, 2).half()).dtype == torch.float32
    with pytest.raises(ValueError, match="scope must be one of"):
        BatchNorm(3, scope="world")  # type: ignore[arg-type]
