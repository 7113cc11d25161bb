"""SimKD: the projected map, pooled to one size, and the projector."""

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import SimKDLoss, SimKDProjector, simkd_loss

MASK = torch.tensor([True, False, True, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def mean_square(student: Tensor, teacher: Tensor) -> float:
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (2, 6)])
def test_oracle(shape: tuple[int, ...]) -> None:
    student, teacher = random(*shape), random(*shape, seed=1)
    assert golden.close(simkd_loss(student, teacher), mean_square(student, teacher))


def test_the_larger_map_is_averaged_to_the_smaller() -> None:
    """Blocks of 2 x 3 positions, on whichever side, and on both at once."""
    small = random(2, 3, 2, 2)
    blocks = small.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    noise = random(2, 3, 2, 2, 2, 3, seed=2)
    noise = noise - noise.mean(dim=(4, 5), keepdim=True)
    large = blocks + noise.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 4, 6)
    other = random(2, 3, 2, 2, seed=3)
    expected = mean_square(small, other)
    assert golden.close(simkd_loss(large, other), expected)
    assert golden.close(simkd_loss(other, large), expected)
    tall, wide = small.repeat_interleave(2, dim=2), other.repeat_interleave(3, dim=3)
    assert golden.close(simkd_loss(tall, wide), expected)


def build(factor: int = 2) -> SimKDLoss:
    torch.manual_seed(0)
    return SimKDLoss(3, 8, factor).double()


def test_projector() -> None:
    projector = build(4).projector
    assert isinstance(projector, SimKDProjector)
    convolutions = [m for m in projector.modules() if isinstance(m, torch.nn.Conv2d)]
    sizes = [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convolutions]
    assert sizes == [(3, 2, 1), (2, 2, 3), (2, 8, 1)]
    assert all(c.bias is None for c in convolutions)
    projected = projector(random(4, 3, 5, 2))
    assert projected.shape == (4, 8, 5, 2)
    assert projected.min() == 0


def test_the_projector_is_what_it_says() -> None:
    """The published stack, built from PyTorch's own layers."""
    projector = build().projector.eval()
    stack = []
    for block in (projector.reduce, projector.mix, projector.expand):
        norm = torch.nn.BatchNorm2d(block.conv.out_channels).double().eval()
        torch.nn.init.uniform_(block.bn.running_mean, -1.0, 0.0)
        torch.nn.init.uniform_(block.bn.running_var, 0.5, 1.5)
        norm.load_state_dict(block.bn.state_dict())
        stack += [block.conv, norm, torch.nn.ReLU()]
    feature = random(2, 3, 4, 4)
    expected = torch.nn.Sequential(*stack)(feature)
    assert expected.std() > 0.1
    torch.testing.assert_close(projector(feature), expected)


def test_a_larger_student_is_pooled_before_it_is_projected() -> None:
    module = build().eval()
    student, teacher = random(4, 3, 6, 4), random(4, 8, 3, 2)
    pooled = torch.nn.functional.avg_pool2d(student, 2)
    expected = simkd_loss(module.projector(pooled), teacher)
    torch.testing.assert_close(module(student, teacher), expected)
    after = simkd_loss(module.projector(student), teacher)
    assert not torch.isclose(after, expected, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_masked_samples_are_absent_from_the_projector_too(training: bool) -> None:
    student, teacher = random(4, 3, 3, 3), random(4, 8, 3, 3, seed=1)
    expected_module, module = build().train(training), build().train(training)
    expected = expected_module(student[MASK], teacher[MASK])
    expected.backward()
    student[~MASK], teacher[~MASK] = torch.nan, torch.inf
    student.requires_grad_()
    value = module(student, teacher, MASK)
    value.backward()
    torch.testing.assert_close(value, expected)
    assert not student.grad[~MASK].any()
    for found, wanted in zip(module.parameters(), expected_module.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    for found, wanted in zip(module.buffers(), expected_module.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)


def test_half_precision_runs_in_the_type_of_the_projector() -> None:
    module = SimKDLoss(3, 8)
    student, teacher = random(4, 3, 3, 3), random(4, 8, 3, 3)
    assert module(student.half(), teacher.bfloat16()).dtype == torch.float32


def test_errors() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3, 2, 2\).*\(2, 4, 2, 2\) must have as many"):
        simkd_loss(random(2, 3, 2, 2), random(2, 4, 2, 2))
    with pytest.raises(ShapeError, match="must be maps"):
        simkd_loss(random(2, 3, 2), random(2, 3, 2))
    with pytest.raises(ShapeError, match=r"\(batch, 3, height, width\)"):
        build()(random(2, 4, 2, 2), random(2, 8, 2, 2))
    for factor in (0, 9):
        with pytest.raises(ValueError, match="factor must lie between 1 and"):
            SimKDLoss(3, 8, factor)
