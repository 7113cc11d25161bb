"""The supervised loss of metric learning against loops over its formula."""

import math
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.errors import NonFiniteLossError
from congener.tasks.retrieval.contrast import contrast


def oracle(embedding: Tensor, labels: Tensor, temperature: float) -> float:
    rows = [(e, label) for e, label in zip(embedding.tolist(), labels.tolist(), strict=True)]
    rows = [row for row in rows if row[1] >= 0]

    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    values = []
    for i, (mine, label) in enumerate(rows):
        others = [(cosine(mine, e) / temperature, k) for j, (e, k) in enumerate(rows) if j != i]
        positives = [s for s, k in others if k == label]
        if positives:
            total = math.log(sum(math.exp(s) for s, _ in others))
            values.append(sum(total - s for s in positives) / len(positives))
    return sum(values) / len(values)


def drawn(seed: int, labels: list[int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    return embedding, torch.tensor(labels)


MIXED = [0, 1, 0, -100, 2, 1, 0, -100, 3]


@pytest.mark.parametrize("labels", [MIXED, [0, 0, 1, 1, 2, 2], [4, 4, 4], [0, 0, 1]])
@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_oracle(labels: list[int], temperature: float) -> None:
    embedding, identity = drawn(0, labels)
    found = contrast(embedding, identity, temperature)
    assert float(found) == pytest.approx(oracle(embedding, identity, temperature), rel=1e-12)


def test_gradient() -> None:
    embedding, labels = drawn(1, MIXED)
    torch.autograd.gradcheck(
        lambda x: contrast(x, labels, 0.5), embedding.requires_grad_(), eps=1e-6
    )


def test_an_image_without_a_label_takes_no_part() -> None:
    embedding, labels = drawn(2, MIXED)
    embedding[3] = torch.nan
    embedding.requires_grad_()
    value = contrast(embedding, labels, 0.1)
    known = labels >= 0
    assert value.item() == pytest.approx(contrast(embedding[known], labels[known], 0.1).item())
    value.backward()
    assert embedding.grad is not None
    assert not embedding.grad[~known].any()
    assert embedding.grad[known].isfinite().all()


@pytest.mark.parametrize("labels", [[0, 1, 2], [-100, -100], [0, -100]])
def test_nothing_to_learn_is_zero_that_back_propagates(labels: list[int]) -> None:
    embedding, identity = drawn(3, labels)
    embedding.requires_grad_()
    value = contrast(embedding, identity, 0.1)
    assert value == 0
    value.backward()
    assert embedding.grad is not None
    assert not embedding.grad.any()


def test_a_known_image_that_is_not_a_number_is_told() -> None:
    embedding, labels = drawn(4, MIXED)
    embedding[0] = torch.nan
    with pytest.raises(NonFiniteLossError, match="NaN for sample 0"):
        contrast(embedding, labels, 0.1)


def test_extremes_stay_finite() -> None:
    embedding, labels = drawn(5, MIXED)
    embedding[0] = 0
    embedding[1] *= 1e4
    embedding.requires_grad_()
    value = contrast(embedding, labels, 0.01)
    value.backward()
    assert value.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    embedding, labels = drawn(6, MIXED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = contrast(embedding.bfloat16(), labels, 0.1)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(contrast(embedding, labels, 0.1)), rel=0.02)


def _of_a_share(rank: int) -> tuple[Tensor, Tensor]:
    PartialState(cpu=True)
    embedding, labels = drawn(7, MIXED)
    mine = slice(0, 7) if rank == 0 else slice(7, 9)
    leaf = embedding[mine].requires_grad_()
    value = contrast(leaf, labels[mine], 0.2)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def test_two_processes_are_one(tmp_path: Path) -> None:
    embedding, labels = drawn(7, MIXED)
    embedding.requires_grad_()
    whole = contrast(embedding, labels, 0.2)
    whole.backward()
    whole = whole.detach()
    found = in_two_processes(tmp_path, _of_a_share)
    assert all(float(value) == pytest.approx(float(whole)) for value, _ in found)
    torch.testing.assert_close(torch.cat([grad for _, grad in found]) / 2, embedding.grad)
