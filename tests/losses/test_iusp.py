"""IUSP: SP over the frames of each utterance, whatever their number."""

from math import sqrt
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from tests.losses import golden
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from torch.nn.functional import normalize

from congener.errors import ShapeError
from congener.losses import IUSPLoss, iusp_loss, sp_loss
from congener.ops.gram import cheapest_form

Rows = list[list[float]]


def utterances(seed: int, frames: int = 6, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Features (batch, frames, 4) and (batch, frames, 5)."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, frames, 4, generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, frames, 5, generator=generator, dtype=torch.float64)
    return student, teacher


def oracle(student: Rows, teacher: Rows) -> float:
    """One utterance, number by number."""

    def dot(u: list[float], v: list[float]) -> float:
        return sum(a * b for a, b in zip(u, v, strict=True))

    def likeness(features: Rows, i: int, j: int) -> float:
        length = sqrt(sum(dot(features[i], other) ** 2 for other in features))
        return dot(features[i], features[j]) / length if length else 0.0

    frames = range(len(student))
    pairs = [(i, j) for i in frames for j in frames]
    total = sum((likeness(teacher, i, j) - likeness(student, i, j)) ** 2 for i, j in pairs)
    return total / len(student) ** 2


@pytest.mark.parametrize("frames", [1, 2, 6, 11])
def test_oracle(frames: int) -> None:
    student, teacher = utterances(0, frames)
    each = [oracle(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    found = iusp_loss(student, teacher, reduction="none")
    torch.testing.assert_close(found, torch.tensor(each, dtype=torch.float64))
    assert golden.close(IUSPLoss()(student, teacher), sum(each) / 3)
    assert golden.close(IUSPLoss(reduction="sum")(student, teacher), sum(each))


def test_golden_value_of_sp_with_frames_for_samples() -> None:
    student, teacher = golden.features()
    assert golden.close(iusp_loss(student[None], teacher[None]), 0.1859099836915271)


def test_each_utterance_is_sp_of_its_frames() -> None:
    student, teacher = utterances(1)
    expected = [sp_loss(s, t) for s, t in zip(student, teacher, strict=True)]
    torch.testing.assert_close(iusp_loss(student, teacher, reduction="none"), torch.stack(expected))


def test_a_batch_is_the_mean_of_its_parts() -> None:
    student, teacher = utterances(2, batch=5)
    parts = [iusp_loss(student[:2], teacher[:2]), iusp_loss(student[2:], teacher[2:])]
    expected = (2 * parts[0] + 3 * parts[1]) / 5
    torch.testing.assert_close(iusp_loss(student, teacher), expected)


@pytest.mark.parametrize("factor", [-3.0, 0.01, 250.0])
def test_scale_of_an_utterance_changes_nothing(factor: float) -> None:
    student, teacher = utterances(3)
    scales = torch.tensor([1.0, factor, factor**2], dtype=torch.float64).reshape(3, 1, 1)
    expected = iusp_loss(student, teacher, reduction="none")
    torch.testing.assert_close(iusp_loss(scales * student, teacher, reduction="none"), expected)
    torch.testing.assert_close(iusp_loss(student, scales * teacher, reduction="none"), expected)
    assert iusp_loss(teacher * scales, teacher) < 1e-15


def test_scale_of_a_frame_changes_it() -> None:
    student, teacher = utterances(4)
    scales = torch.linspace(0.5, 3, 6, dtype=torch.float64).unsqueeze(1)
    assert not torch.isclose(
        iusp_loss(scales * student, teacher), iusp_loss(student, teacher), rtol=1e-3
    )


def test_rotated_and_padded_dims_change_nothing() -> None:
    student, teacher = utterances(5)
    expected = iusp_loss(student, teacher)
    rotation = torch.linalg.qr(utterances(6, frames=4, batch=1)[0][0])[0]
    torch.testing.assert_close(iusp_loss(student @ rotation, teacher), expected)
    padded = torch.nn.functional.pad(teacher, (0, 3))
    torch.testing.assert_close(iusp_loss(student, padded), expected)


def test_order_of_frames_matters_on_one_side_only() -> None:
    student, teacher = utterances(7)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    expected = iusp_loss(student, teacher)
    torch.testing.assert_close(iusp_loss(student[:, order], teacher[:, order]), expected)
    assert not torch.isclose(iusp_loss(student[:, order], teacher), expected, rtol=1e-3)


@pytest.mark.parametrize("frames", [1, 2, 5, 16])
def test_bounds(frames: int) -> None:
    for seed in range(5):
        student, teacher = utterances(seed, frames)
        assert 0 <= iusp_loss(student, teacher) <= 4 / frames
        assert 0 <= iusp_loss(student.relu(), teacher.relu()) <= 2 / frames
    apart = iusp_loss(torch.eye(frames)[None], torch.ones(1, frames, 1))
    assert apart == 0 if frames == 1 else 0.25 < apart * frames / 2 < 1


def test_maps_are_channels_by_frequencies_in_each_frame() -> None:
    generator = torch.Generator().manual_seed(8)
    maps = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    _, teacher = utterances(8, frames=5, batch=2)
    frames = torch.stack([maps[:, :, t, :].reshape(2, 12) for t in range(5)], dim=1)
    expected = iusp_loss(frames, teacher)
    torch.testing.assert_close(iusp_loss(maps, teacher), expected)
    torch.testing.assert_close(iusp_loss(teacher, maps), iusp_loss(teacher, frames))
    # reading the map as it lies would mix frames
    assert not torch.isclose(iusp_loss(maps.reshape(2, 5, 12), teacher), expected, rtol=1e-3)


def test_mask_of_frames() -> None:
    student, teacher = utterances(9)
    lengths = [6, 4, 1]
    mask = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    expected = [
        iusp_loss(student[b : b + 1, :n], teacher[b : b + 1, :n]) for b, n in enumerate(lengths)
    ]
    student, teacher = student.clone(), teacher.clone()
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    student.requires_grad_()
    found = iusp_loss(student, teacher, mask=mask, reduction="none")
    torch.testing.assert_close(found, torch.stack(expected))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert (gradient[~mask] == 0).all()
    assert gradient[mask].isfinite().all()
    assert gradient[mask].abs().max() > 1e-3
    # not a prefix: the frames that count are as if alone
    mask = torch.tensor([[True, False, True, True, False, True]]).expand(3, 6)
    student, teacher = utterances(9)
    torch.testing.assert_close(
        iusp_loss(student, teacher, mask=mask), iusp_loss(student[mask].reshape(3, 4, 4),
                                                          teacher[mask].reshape(3, 4, 5))
    )  # fmt: skip


def test_utterance_without_frames_is_as_if_absent() -> None:
    student, teacher = utterances(10)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1] = False
    rest = torch.tensor([0, 2])
    expected = iusp_loss(student[rest], teacher[rest])
    torch.testing.assert_close(iusp_loss(student, teacher, mask=mask), expected)
    torch.testing.assert_close(iusp_loss(student, teacher, mask=mask.any(dim=1)), expected)
    assert iusp_loss(student, teacher, mask=torch.zeros_like(mask)) == 0


def test_the_longer_sequence_is_averaged_before_the_product() -> None:
    student, teacher = utterances(11, frames=3)
    long = utterances(12, frames=9)[1]
    pooled = long.reshape(3, 3, 3, 5).mean(dim=2)
    torch.testing.assert_close(iusp_loss(student, long), iusp_loss(student, pooled))
    torch.testing.assert_close(iusp_loss(long, teacher), iusp_loss(pooled, teacher))


def test_masks_of_unlike_lengths() -> None:
    student, _ = utterances(13, frames=3)
    long = utterances(14, frames=6)[1]
    # of the second window's two frames the last is padding: its mean is the first
    by_long = torch.tensor([[True, True, True, False, False, False]]).expand(3, 6)
    pooled = torch.stack((long[:, :2].mean(dim=1), long[:, 2]), dim=1)
    expected = iusp_loss(student[:, :2], pooled)
    spoilt = long.masked_fill(~by_long.unsqueeze(2), torch.nan)
    torch.testing.assert_close(iusp_loss(student, spoilt, mask=by_long), expected)
    by_short = torch.tensor([[True, True, False]]).expand(3, 3)
    pooled = long[:, :4].reshape(3, 2, 2, 5).mean(dim=2)
    spoilt = long.clone()
    spoilt[:, 4:] = torch.nan
    expected = iusp_loss(student[:, :2], pooled)
    torch.testing.assert_close(iusp_loss(student, spoilt, mask=by_short), expected)


def test_a_frame_counts_where_both_networks_have_one_that_does() -> None:
    # 5 frames are averaged in windows [0, 2), [1, 4), [3, 5) to 3; the mask is of those 3.
    student, teacher = utterances(17, 5)[0], utterances(17, 3)[1]
    mask = torch.tensor([[True, False, False]]).expand(3, 3)
    assert iusp_loss(student, teacher, mask=mask) < 1e-12  # one frame is like itself
    assert iusp_loss(teacher, student, mask=mask) < 1e-12
    # The middle of frame 4 of 6 lies in frame 3 of 4, which does not count.
    student, teacher = utterances(18, 6)[0], utterances(18, 4)[1]
    mask = torch.tensor([[True, True, True, False]]).expand(3, 4)
    expected = iusp_loss(student, teacher, mask=mask)
    student[:, 4:] = torch.nan
    torch.testing.assert_close(iusp_loss(student, teacher, mask=mask), expected)


def test_silent_frames_in_half_precision() -> None:
    student, teacher = utterances(19)
    student[:, 2] = 0
    for dtype in (torch.float16, torch.bfloat16):
        own = student.to(dtype).requires_grad_()
        iusp_loss(own, teacher.to(dtype)).backward()
        assert own.grad is not None
        assert own.grad.isfinite().all()
        assert own.grad.abs().max() < 1


def test_silent_frames() -> None:
    """A silent frame is unlike all: in the student alone it adds |row of the teacher|² = 1."""
    student, teacher = utterances(15)
    student[:, 2] = 0
    rest = [0, 1, 3, 4, 5]
    found = 36 * iusp_loss(student, teacher, reduction="none")
    for b in range(3):
        t, s = (x[b] @ x[b].T for x in (teacher, student))
        t, s = (x / x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (t, s))
        assert golden.close(found[b], 1 + (t - s).square().sum(dim=1)[rest].sum().item())
    student = torch.zeros(3, 6, 4, requires_grad=True)
    both = iusp_loss(student, torch.zeros(3, 6, 5))
    both.backward()
    assert both == 0
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("frames", [300, 700])
def test_long_utterances_without_the_matrix(frames: int) -> None:
    student, teacher = utterances(16, frames)
    mask = torch.arange(frames) < torch.tensor([frames, frames - 90, 5]).unsqueeze(1)
    own = student.clone().requires_grad_()
    loss = iusp_loss(own, teacher, mask=mask)
    (gradient,) = torch.autograd.grad(loss, own)
    own = student.clone().requires_grad_()
    expected = torch.zeros((), dtype=torch.float64)
    for b in range(3):
        s, t = (x[b, mask[b]] for x in (own, teacher))
        s, t = (normalize(x @ x.T, dim=1) for x in (s, t))
        expected = expected + (t - s).square().mean() / 3
    (expected_gradient,) = torch.autograd.grad(expected, own)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)


def test_wrong_shapes_are_told() -> None:
    student, teacher = utterances(17)
    with pytest.raises(ShapeError, match=r"\(3, 6, 4\) and teacher_feature \(3, 6\)"):
        iusp_loss(student, teacher[..., 0])
    with pytest.raises(ShapeError, match=r"\(3, 0, 4\) .* with a frame at least"):
        iusp_loss(student[:, :0], teacher)
    with pytest.raises(ShapeError, match=r"mask \(3, 5\) must be .*\(3,\), \(3, 6\)"):
        iusp_loss(student, teacher, mask=torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\(3, 6\), \(3, 9\)"):
        iusp_loss(student, utterances(0, 9)[1], mask=torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask must be boolean"):
        iusp_loss(student, teacher, mask=torch.ones(3, 6))
    with pytest.raises(ValueError, match="average must be one of 'pairs', 'frames'"):
        iusp_loss(student, teacher, average="frame")  # type: ignore[arg-type]


def test_one_frame_is_like_itself_whatever_it_holds() -> None:
    student, teacher = utterances(20, frames=1)
    student.requires_grad_()
    for average in ("pairs", "frames"):
        loss = iusp_loss(student, teacher, average=average)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.abs() < 1e-15
        assert gradient.abs().max() < 1e-15


def test_rows_or_columns_may_be_normalised() -> None:
    """G is symmetric, so that the peer's division of columns gives the same number."""
    student, teacher = utterances(21)
    grams = [x @ x.mT for x in (student, teacher)]
    s, t = (g / g.norm(dim=1, keepdim=True) for g in grams)
    torch.testing.assert_close(iusp_loss(student, teacher), (t - s).square().mean())


def test_average_over_frames_is_that_over_pairs_times_their_number() -> None:
    student, teacher = utterances(22)
    lengths = torch.tensor([6, 3, 1])
    mask = torch.arange(6) < lengths.unsqueeze(1)
    by_pairs = iusp_loss(student, teacher, mask=mask, reduction="none")
    found = iusp_loss(student, teacher, average="frames", mask=mask, reduction="none")
    torch.testing.assert_close(found, lengths * by_pairs)
    expected = IUSPLoss(average="frames")(student, teacher, mask)
    torch.testing.assert_close(expected, found.mean())
    for side in (student, student.relu()):
        assert iusp_loss(side, teacher, average="frames") <= 4


def test_average_over_frames_does_not_depend_on_their_number() -> None:
    """Six events in noise, for 50 to 800 frames: one weight does for all."""
    generator = torch.Generator().manual_seed(23)
    events = torch.randn(6, 8, generator=generator)
    by_frames, by_pairs = {}, {}
    for frames in (50, 200, 800):
        teacher = events[torch.arange(frames) % 6].expand(4, -1, -1)
        noise = 0.7 * torch.randn(4, frames, 8, generator=generator)
        by_frames[frames] = iusp_loss(teacher + noise, teacher, average="frames").item()
        by_pairs[frames] = iusp_loss(teacher + noise, teacher).item()
    assert by_frames[800] == pytest.approx(by_frames[50], rel=0.1)
    assert by_pairs[800] == pytest.approx(by_pairs[50] / 16, rel=0.1)


@pytest.mark.parametrize(
    ("frames", "dims", "form"), [(200, 64, "dense"), (1000, 64, "moments"), (1000, 600, "tiled")]
)
def test_each_form_is_the_definition(frames: int, dims: int, form: str) -> None:
    """Value and gradient, in float64, of the form that the shape asks for."""
    assert cheapest_form(frames, dims) == form
    generator = torch.Generator().manual_seed(24)
    teacher = torch.randn(frames, dims, generator=generator, dtype=torch.float64).relu()
    student = teacher + torch.randn(frames, dims, generator=generator, dtype=torch.float64)
    student, teacher = student[None].requires_grad_(), teacher[None, :, :48]
    loss = iusp_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss, student)
    s, t = (normalize(x @ x.mT, dim=2) for x in (student, teacher))
    expected = (t - s).square().mean()
    (expected_gradient,) = torch.autograd.grad(expected, student)
    assert (loss - expected).abs() < 1e-9 * expected
    assert (gradient - expected_gradient).abs().max() < 1e-9 * expected_gradient.abs().max()


class Heard(nn.Module):
    """A network of sound: convolutions (batch, 4, frames / stride, 3), and a GRU over them."""

    def __init__(self, stride: int, dims: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(1, 4, (stride, 3), stride=(stride, 3))
        self.recurrent = nn.GRU(12, dims, batch_first=True)
        self.double()

    def forward(self, bands: Tensor) -> tuple[Tensor, Tensor]:
        maps: Tensor = self.convolution(bands.unsqueeze(1)).relu()
        states: Tensor = self.recurrent(maps.transpose(1, 2).flatten(2))[0]
        return maps, states


@pytest.mark.parametrize("taps", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_networks_of_unlike_resolution_and_clips_of_unlike_length(taps: tuple[int, int]) -> None:
    """Padding counts nothing, for maps and states, where the student has twice the frames."""
    student, teacher = Heard(2, 5, seed=0), Heard(4, 7, seed=1)
    generator = torch.Generator().manual_seed(25)
    lengths = [16, 12, 4]
    bands = torch.randn(3, 16, 9, generator=generator, dtype=torch.float64)
    each = [
        iusp_loss(student(bands[b : b + 1, :n])[taps[0]], teacher(bands[b : b + 1, :n])[taps[1]])
        for b, n in enumerate(lengths)
    ]
    expected = torch.stack(each).mean()
    wanted = torch.autograd.grad(expected, [*student.convolution.parameters()])
    mask = torch.arange(8) < torch.tensor(lengths).unsqueeze(1) / 2
    features = student(bands)[taps[0]], teacher(bands)[taps[1]]
    padded = iusp_loss(*features, mask=mask)
    torch.testing.assert_close(padded, expected)
    found = torch.autograd.grad(padded, [*student.convolution.parameters()])
    torch.testing.assert_close(found, wanted)
    assert max(float(x.abs().max()) for x in found) > 1e-6
    assert not torch.isclose(iusp_loss(*features), expected, rtol=1e-3)  # the mask counts


SHARES = (slice(0, 4), slice(4, 5))
"""Four clips on one process, one on the other."""


def clips() -> tuple[Tensor, Tensor, Tensor]:
    """Of 6, 4, 0, 2 and 3 frames."""
    student, teacher = utterances(26, batch=5)
    return student, teacher, torch.arange(6) < torch.tensor([6, 4, 0, 2, 3]).unsqueeze(1)


def value_and_gradient(own: slice, scope: Literal["global", "local"]) -> tuple[Tensor, Tensor]:
    student, teacher, mask = (x[own] for x in clips())
    student.requires_grad_()
    loss = iusp_loss(student, teacher, mask=mask, scope=scope)
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


def on_a_process(rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    dist.init_process_group("gloo")
    return {scope: value_and_gradient(SHARES[rank], scope) for scope in ("global", "local")}


def test_two_processes_weigh_their_clips_by_number(tmp_path: Path) -> None:
    """Of five clips four count, three of them on one process: no mean of means."""
    found = in_two_processes(tmp_path, on_a_process)
    value, gradient = value_and_gradient(slice(None), "local")
    for result in found:
        torch.testing.assert_close(result["global"][0], value)
    averaged = torch.cat([result["global"][1] for result in found]) / 2  # what DDP makes of them
    torch.testing.assert_close(averaged, gradient)
    local = [result["local"][0] for result in found]
    torch.testing.assert_close((3 * local[0] + local[1]) / 4, value)
    assert not torch.isclose(sum(local) / 2, value, rtol=1e-2)
