"""ReviewKD: scales and their weights, and the fusion from deep to shallow."""

import math
from typing import Any

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import ReviewKDLoss, hcl_loss

MASK = torch.tensor([True, False, True, True])


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pool(grid: Any, size: int) -> list[list[float]]:
    """Means over ``size`` x ``size`` windows, which overlap where the size does not divide."""
    height, width = len(grid), len(grid[0])

    def window(i: int, length: int) -> range:
        return range(i * length // size, -((-(i + 1) * length) // size))

    result = []
    for i in range(size):
        rows, line = window(i, height), []
        for j in range(size):
            columns = window(j, width)
            values = [grid[y][x] for y in rows for x in columns]
            line.append(sum(values) / len(values))
        result.append(line)
    return result


def hcl(students: list[Tensor], teachers: list[Tensor]) -> float:
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        samples, channels, height = student.shape[:3]
        scales = [None] + [size for size in (4, 2, 1) if size < height]
        weights = [1 / 2**k for k in range(len(scales))]
        for weight, size in zip(weights, scales, strict=True):
            squares = []
            for i in range(samples):
                for c in range(channels):
                    a, b = student[i][c].tolist(), teacher[i][c].tolist()
                    if size is not None:
                        a, b = pool(a, size), pool(b, size)
                    squares += [
                        (p - q) ** 2
                        for u, v in zip(a, b, strict=True)
                        for p, q in zip(u, v, strict=True)
                    ]
            total += weight / sum(weights) * sum(squares) / len(squares)
    return total


@pytest.mark.parametrize("sizes", [[(8, 8)], [(5, 3), (2, 2)], [(4, 7), (3, 1), (1, 1)], [(9, 6)]])
def test_oracle(sizes: list[tuple[int, int]]) -> None:
    students = [random(3, 2, *size, seed=i) for i, size in enumerate(sizes)]
    teachers = [random(3, 2, *size, seed=9 + i) for i, size in enumerate(sizes)]
    assert golden.close(hcl_loss(students, teachers), hcl(students, teachers))


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8])
def test_a_constant_error_counts_alike_at_all_sizes(height: int) -> None:
    teacher = random(2, 3, height, height)
    assert golden.close(hcl_loss([teacher + 3], [teacher]), 9.0)


@pytest.mark.parametrize(("height", "share"), [(8, 8 / 15), (4, 4 / 7), (2, 2 / 3)])
def test_an_error_that_cancels_nearby_is_seen_at_the_finest_scale_alone(
    height: int, share: float
) -> None:
    teacher = random(2, 3, height, height)
    signs = (-1.0) ** torch.arange(height, dtype=torch.float64)
    assert golden.close(hcl_loss([teacher + 5 * signs], [teacher]), 25 * share)


def test_levels_add_up_and_samples_too() -> None:
    students = [random(4, 2, 6, 6), random(4, 5, 3, 3), random(4, 7)]
    teachers = [x.flip(0) for x in students]
    per_level = [hcl_loss([s], [t]) for s, t in zip(students, teachers, strict=True)]
    torch.testing.assert_close(hcl_loss(students, teachers), torch.stack(per_level).sum())
    rows = hcl_loss(students, teachers, reduction="none")
    for i in range(4):
        lone = hcl_loss([x[i : i + 1] for x in students], [x[i : i + 1] for x in teachers])
        torch.testing.assert_close(rows[i], lone)


def test_a_pooled_feature_is_a_map_of_one_position() -> None:
    student, teacher = random(3, 4), random(3, 4, seed=1)
    as_map = hcl_loss([student[..., None, None]], [teacher[..., None, None]])
    torch.testing.assert_close(hcl_loss([student], [teacher]), as_map)
    torch.testing.assert_close(as_map, torch.nn.functional.mse_loss(student, teacher))


def levels(batch: int = 4) -> tuple[list[Tensor], list[Tensor]]:
    student = [random(batch, 3, 6, 4), random(batch, 5, 3, 2), random(batch, 6)]
    teacher = [random(batch, 4, 8, 6), random(batch, 7, 3, 2), random(batch, 9)]
    return student, teacher


def build(**options: Any) -> ReviewKDLoss:
    torch.manual_seed(0)
    return ReviewKDLoss((3, 5, 6), (4, 7, 9), **options).double()


def test_fused_features_have_the_teachers_shapes() -> None:
    student, teacher = levels()
    module = build(mid_channels=2)
    fused = module.projector(student, teacher)
    assert [x.shape for x in fused] == [x.shape for x in teacher]
    torch.testing.assert_close(module.eval()(student, teacher), hcl_loss(
        module.projector(student, teacher), teacher))  # fmt: skip


def test_what_is_deeper_reaches_what_is_shallower_alone() -> None:
    student, teacher = levels()
    student = [x.requires_grad_() for x in student]
    fused = build().eval().projector(student, teacher)
    for level, feature in enumerate(fused):
        gradients = torch.autograd.grad(
            feature.square().sum(), student, retain_graph=True, allow_unused=True
        )
        assert [g is not None and bool(g.any()) for g in gradients] == [
            source >= level for source in range(3)
        ]


def test_attention_weighs_both_levels() -> None:
    """At weights of 0 both shares are one half; at a large bias of one share, it is 1."""
    student, _ = levels()
    module = build().eval()
    shallow = module.projector.levels[0]
    torch.nn.init.zeros_(shallow.attention.weight)
    own, deeper = random(4, 6, 6, 4), random(4, 6, 3, 2, seed=1)
    widened = deeper.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    shallow.reduce = torch.nn.Module()
    shallow.reduce.forward = lambda feature, mask: own  # type: ignore[method-assign]
    for bias, expected in (
        ((0.0, 0.0), (own + widened) / 2),
        ((50.0, -50.0), own),
        ((-50.0, 50.0), widened),
    ):
        shallow.attention.bias.data = torch.tensor(bias, dtype=torch.float64)
        _, mixed = shallow(student[0], deeper, torch.Size((6, 4)), None)
        torch.testing.assert_close(mixed, expected)


def test_the_deepest_level_has_no_attention() -> None:
    levels_of = build().projector.levels
    assert [level.attention is None for level in levels_of] == [False, False, True]
    assert ReviewKDLoss((3,), (4,)).projector.levels[0].attention is None


def test_width_of_the_middle() -> None:
    widths = {None: 6, 2: 2}
    for given, found in widths.items():
        assert build(mid_channels=given).projector.levels[0].reduce.conv.out_channels == found
    wide = ReviewKDLoss((4, 600), (4, 4)).projector.levels[0]
    assert wide.reduce.conv.out_channels == 512


def test_convolutions_start_as_published() -> None:
    """Uniform within ±√(3 / fan-in), and without bias."""
    torch.manual_seed(0)
    block = ReviewKDLoss((64,), (32,), 48).projector.levels[0]
    for conv, fan_in in ((block.reduce.conv, 64), (block.expand.conv, 48 * 9)):
        bound = math.sqrt(3 / fan_in)
        assert conv.bias is None
        assert 0.99 * bound < conv.weight.abs().max() <= bound


@pytest.mark.parametrize("training", [True, False])
def test_masked_samples_are_absent_from_the_projectors_too(training: bool) -> None:
    student, teacher = levels()
    expected_module, module = build().train(training), build().train(training)
    expected = expected_module([x[MASK] for x in student], [x[MASK] for x in teacher])
    expected.backward()
    for x in student:
        x[~MASK] = torch.nan
        x.requires_grad_()
    value = module(student, teacher, MASK)
    value.backward()
    torch.testing.assert_close(value, expected)
    for found, wanted in zip(module.parameters(), expected_module.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad)
    for x in student:
        assert not x.grad[~MASK].any()
    for (name, found), wanted in zip(
        module.named_buffers(), expected_module.buffers(), strict=True
    ):
        torch.testing.assert_close(found, wanted, msg=name)


def test_one_sample_and_none_can_be_trained_on() -> None:
    for batch in (1, 0):
        value = build()(*levels(batch))
        value.backward()
        assert value.isfinite()
        assert bool(value > 0) is (batch == 1)


def test_errors() -> None:
    student, teacher = levels()
    with pytest.raises(ShapeError, match="1 levels and teacher_features of 2"):
        hcl_loss(student[:1], teacher[:2])
    with pytest.raises(ShapeError, match="of 0 levels"):
        hcl_loss([], [])
    with pytest.raises(
        ShapeError, match=r"\(4, 5, 3, 2\) and teacher_feature \(4, 7, 3, 2\).*at level 1"
    ):
        hcl_loss([teacher[0], student[1]], teacher[:2])
    with pytest.raises(ShapeError, match="one batch size"):
        hcl_loss([teacher[0], teacher[1][:2]], [teacher[0], teacher[1][:2]])
    with pytest.raises(ShapeError, match="must be maps"):
        hcl_loss([random(2, 3, 4)], [random(2, 3, 4)])
    with pytest.raises(ShapeError, match=r"\(4, 3, 4\) must be maps"):
        build()(student, [random(4, 3, 4), *teacher[1:]])
    with pytest.raises(ShapeError, match=r"\(batch, 3, height, width\)"):
        build()([student[1], student[1], student[2]], teacher)
    with pytest.raises(ShapeError, match=r"of 2 levels .* levels, 3;"):
        build()(student[:2], teacher[:2])
    for channels in (((3,), (4, 7)), ((), ())):
        with pytest.raises(ValueError, match="as many levels, at least one"):
            ReviewKDLoss(*channels)
