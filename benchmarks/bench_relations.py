"""RKD, PKT and CCKD against the formulas as published code writes them: value and gradient.

python benchmarks/bench_relations.py [words]
"""

import math
from collections.abc import Callable
from functools import partial

import peers
import torch
import torch.nn.functional as F
from harness import Comparison, main, of_pair
from torch import Tensor

from congener import losses

Pair = tuple[Tensor, Tensor]


def features(batch: int, width: int) -> Pair:
    """A trained network's features, as far as they matter: some clusters, far from zero."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    centres = draw(10, width).repeat(batch // 10 + 1, 1)[:batch]
    teacher = 1 + centres + 0.5 * draw(batch, width)
    return teacher + 0.5 * draw(batch, width), teacher


def distances(points: Tensor) -> Tensor:
    squares = points.square().sum(dim=1)
    products = points @ points.T
    squared = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * products).clamp(min=1e-12)
    result = squared.sqrt().clone()
    places = range(len(points))
    result[places, places] = 0
    return result


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        t = distances(teacher)
        t = t / t[t > 0].mean()
    s = distances(student)
    return F.smooth_l1_loss(s / s[s > 0].mean(), t)


def angles(points: Tensor) -> Tensor:
    directions = F.normalize(points.unsqueeze(0) - points.unsqueeze(1), p=2, dim=2)
    return torch.bmm(directions, directions.transpose(1, 2)).view(-1)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    with torch.no_grad():
        t = angles(teacher)
    return F.smooth_l1_loss(angles(student), t)


def rkd(student: Tensor, teacher: Tensor) -> Tensor:
    return 25 * rkd_distance(student, teacher) + 50 * rkd_angle(student, teacher)


def choices(features: Tensor) -> Tensor:
    unit = features / (features.norm(dim=1, keepdim=True) + 1e-7)
    likeness = (unit @ unit.T + 1) / 2
    return likeness / likeness.sum(dim=1, keepdim=True)


def pkt(student: Tensor, teacher: Tensor) -> Tensor:
    s, t = choices(student), choices(teacher)
    return torch.mean(t * torch.log((t + 1e-7) / (s + 1e-7)))


def kernel(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=1)
    cosines = unit @ unit.T
    total = torch.zeros_like(cosines)
    for p in range(3):
        total = total + math.exp(-0.8) * 0.8**p / math.factorial(p) * cosines**p
    return total


def cckd(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(kernel(student), kernel(teacher))


def cckd_row_by_row(student: Tensor, teacher: Tensor) -> Tensor:
    """As torchdistill goes about it, of features of length 1, squared: a list of rows."""
    matrices = []
    for features in (student, teacher):
        unit = F.normalize(features, dim=1)
        rows = []
        for row in unit:
            powers = [
                math.exp(-0.8) * 0.8**p / math.factorial(p) * (unit @ row) ** p for p in range(3)
            ]
            rows.append(torch.stack(powers).sum(dim=0))
        matrices.append(torch.stack(rows))
    return F.mse_loss(*matrices)


def comparison(
    name: str, plain: Callable[..., Tensor], loss: Callable[..., Tensor], shape: tuple[int, int],
    goal: float | None, memory_ratio_goal: float | None = None, rtol: float = 1e-4,
    rounds: int = 9, peer: Callable[..., Tensor] | None = None, same_as_peer: bool = True,
) -> Comparison:  # fmt: skip
    return Comparison(
        name=f"{name} {shape[0]} x {shape[1]}",
        inputs=partial(features, *shape),
        plain=partial(of_pair, plain),
        ours=partial(of_pair, loss),
        goal=goal,
        memory_ratio_goal=memory_ratio_goal,
        rtol=rtol,
        rounds=rounds,
        peer=None if peer is None else partial(of_pair, peer),
        peer_package=peers.PACKAGE,
        same_as_peer=same_as_peer,
    )


DISTANCE, ANGLE = losses.rkd_distance_loss, losses.rkd_angle_loss

BENCHES = [
    comparison("RKD angle", rkd_angle, ANGLE, (64, 128), 0.25),
    comparison("RKD angle", rkd_angle, ANGLE, (256, 128), 0.17, 0.05),
    comparison("RKD angle", rkd_angle, ANGLE, (256, 512), 0.055, 0.05, rounds=5),
    comparison("RKD", rkd, losses.rkd_loss, (256, 128), None, peer=peers.rkd),
    comparison("RKD distance", rkd_distance, DISTANCE, (256, 128), 1.0),
    comparison("RKD distance", rkd_distance, DISTANCE, (4096, 128), 0.72, 0.1, rounds=5),
    comparison("PKT", pkt, losses.pkt_loss, (256, 128), None, peer=peers.pkt),
    comparison("PKT", pkt, losses.pkt_loss, (4096, 128), 0.8, 0.1, rounds=5, peer=peers.pkt),
    comparison("CCKD", cckd, losses.cckd_loss, (256, 128), None),
    comparison("CCKD", cckd, losses.cckd_loss, (4096, 128), 1.0, 0.1, rounds=5),
    comparison(
        "CCKD by rows",
        cckd_row_by_row,
        losses.cckd_loss,
        (256, 128),
        0.1,
        peer=peers.cckd,
        same_as_peer=False,
    ),
    comparison("CCKD by rows", cckd_row_by_row, losses.cckd_loss, (4096, 128), 0.1, 0.1, rounds=3),
]

if __name__ == "__main__":
    main(BENCHES)
