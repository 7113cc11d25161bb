"""KD of dense detectors: its formula, location by location, and its normalisation and limits."""

from math import exp, log

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.maps import rows_of_boxes
from congener.errors import ShapeError
from congener.losses import DetectionKDLoss, detection_kd_loss

Row = list[float]


def sigmoid(z: float) -> float:
    return 1 / (1 + exp(-z))


def binary(p: float, q: float) -> float:
    return -p * log(q) - (1 - p) * log(1 - q)


def giou(a: Row, b: Row) -> float:
    """Rectangles by their corners, in plain numbers."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * high
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return wide * high / union - (hull - union) / hull


def location(student: Row, teacher: Row, activation: str, beta: float) -> tuple[Row, float]:
    """The three terms of a location, without weights, and the teacher's score there."""
    classes = len(student) - 9
    if activation == "sigmoid":
        p, t = ([sigmoid(z) for z in row[:classes]] for row in (student, teacher))
        of_class = [binary(y, x) for x, y in zip(p, t, strict=True)]
        score = max(t)
    else:
        sums = [sum(exp(z) for z in row[:classes]) for row in (student, teacher)]
        p, t = (
            [exp(z) / s for z in row[:classes]]
            for row, s in zip((student, teacher), sums, strict=True)
        )
        of_class = [-y * log(x) for x, y in zip(p, t, strict=True)]
        score = max(t[1:])
    far = sum(abs(x - y) ** beta * h for x, y, h in zip(p, t, of_class, strict=True))
    q, wanted = sigmoid(student[classes]), sigmoid(teacher[classes])
    divergence = wanted * log(wanted / q) + (1 - wanted) * log((1 - wanted) / (1 - q))
    place = slice(classes + 1, classes + 5)
    return [far, score * (1 - giou(student[place], teacher[place])), score * divergence], score


def oracle(
    student: Tensor,
    teacher: Tensor,
    weights: tuple[float, float, float] = (1, 1, 1),
    activation: str = "sigmoid",
    beta: float = 2.0,
) -> float:
    total = scores = 0.0
    for rows in zip(student.tolist(), teacher.tolist(), strict=True):
        for s, t in zip(*rows, strict=True):
            terms, score = location(s, t, activation, beta)
            total += sum(w * term for w, term in zip(weights, terms, strict=True))
            scores += score
    return total / max(1.0, scores)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("weights", [(1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.5, 2.0, 3.0)])
def test_oracle(weights: tuple[float, float, float], beta: float, activation: str) -> None:
    student, teacher = rows_of_boxes(0)
    expected = oracle(student, teacher, weights, activation, beta)
    names = ("class_weight", "box_weight", "quality_weight")
    options = {**dict(zip(names, weights, strict=True)), "activation": activation, "beta": beta}
    assert expected > 0
    assert golden.close(detection_kd_loss(student, teacher, **options), expected)  # type: ignore[arg-type]
    assert golden.close(DetectionKDLoss(**options)(student, teacher), expected)  # type: ignore[arg-type]


def test_defaults() -> None:
    student, teacher = rows_of_boxes(1)
    assert golden.close(DetectionKDLoss()(student, teacher), oracle(student, teacher))


def test_scores_below_one_do_not_magnify_an_empty_scene() -> None:
    """The teacher sees next to nothing anywhere: what it asks for is not divided by that."""
    student, teacher = rows_of_boxes(2)
    teacher[..., :3] -= 20
    expected = oracle(student, teacher)
    assert golden.close(detection_kd_loss(student, teacher), expected)
    scores = teacher[..., :3].sigmoid().amax(dim=2).sum()
    assert scores < 1e-3
    assert golden.close(detection_kd_loss(student[:3], teacher[:3], box_weight=0)
                        + detection_kd_loss(student[3:], teacher[3:], box_weight=0),
                        oracle(student, teacher, (1, 0, 1)))  # fmt: skip


def test_boxes_count_where_the_teacher_sees_an_object() -> None:
    student, teacher = rows_of_boxes(3)
    teacher[:, 1:, :3] = -40
    own = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detection_kd_loss(own, teacher), own)
    assert gradient[:, 0, 3:8].abs().max() > 1e-4
    assert gradient[:, 1:, 3:8].abs().max() < 1e-12
    assert gradient[:, 1:, :3].abs().max() > 1e-4


def test_references_are_not_read() -> None:
    student, teacher = rows_of_boxes(4)
    own = student.clone().requires_grad_()
    loss = detection_kd_loss(own, teacher)
    (gradient,) = torch.autograd.grad(loss, own)
    student[..., -4:], teacher[..., -4:] = 7.0, -3.0
    assert detection_kd_loss(student, teacher) == loss
    assert not gradient[..., -4:].any()


def test_a_quality_that_means_nothing_adds_nothing() -> None:
    student, teacher = rows_of_boxes(5)
    student[..., 3], teacher[..., 3] = 0, 0
    without = detection_kd_loss(student, teacher, quality_weight=0)
    assert detection_kd_loss(student, teacher, quality_weight=5) == without


def test_the_background_of_softmax_is_no_score() -> None:
    student, teacher = rows_of_boxes(6)
    teacher[..., 0] += 60
    found = detection_kd_loss(student, teacher, activation="softmax", class_weight=0)
    assert 0 < float(found) < 1e-12


def test_what_does_not_fit_is_told() -> None:
    student, teacher = rows_of_boxes(7)
    way_out = r"\(7, 3, 12\).*\(7, 4, 12\) must have one shape.*same classes.*strides and anchors"
    with pytest.raises(ShapeError, match=way_out):
        detection_kd_loss(student[:, :3], teacher)
    with pytest.raises(ShapeError, match="at least 10 columns"):
        detection_kd_loss(student[..., :9], teacher[..., :9])
    with pytest.raises(ShapeError, match="at least 11 columns"):
        detection_kd_loss(student[..., :10], teacher[..., :10], activation="softmax")
    for beta in (0.5, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="beta must be finite and at least 1"):
            DetectionKDLoss(beta=beta)
    for name in ("class_weight", "box_weight", "quality_weight"):
        with pytest.raises(ValueError, match=f"{name}.* must be finite and not negative"):
            DetectionKDLoss(**{name: -1.0})  # type: ignore[arg-type]
