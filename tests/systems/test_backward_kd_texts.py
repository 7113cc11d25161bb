"""Backward-pass distillation of text: embeddings climb, the teacher reads them through a map."""

from typing import Any

import pytest
import torch
from tests.systems.test_backward_kd import NOW, build, moved, points
from tests.systems.tiny import TinyTask
from torch import Tensor, nn

from congener.errors import RecipeError, ShapeError
from congener.systems import BackwardKD
from congener.systems.backward_kd import embedding_map
from congener.types import Batch


class Embeddings(TinyTask):
    """Two tokens of three numbers each, embedded."""

    def collate(self, samples: Any) -> Batch:
        found = super().collate(samples)
        x = found.pop("image").reshape(-1, 2, 3)
        return found | {"embedding": x, "tokens": x.long(), "real": x[..., 0] > -9}

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return model(batch["embedding"])


class Reader(nn.Module):
    """A classifier of embeddings, mean over tokens after a non-linear layer."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.classifier = nn.Linear(width, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(x).tanh().mean(1))


def texts(**options: Any) -> BackwardKD:
    width = options["teacher_map"].shape[1]
    ascent = {"entry": "embedding", "step_size": 0.5, "steps": 2} | options.pop("ascent", {})
    return build(Reader(3, 1), Reader(width, 2), task=Embeddings(), ascent=ascent, **options)


def _matrices(*shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def test_embeddings_reach_the_teacher_through_the_map() -> None:
    mapping = _matrices((3, 5))[0]
    system = texts(teacher_map=mapping)
    batch = points(system)
    student, teacher = system.student, system.teacher.frozen.model
    z = batch["embedding"].clone()
    for _ in range(2):
        z.requires_grad_()
        d = ((student(z) - teacher(z @ mapping)) ** 2).sum()
        (slopes,) = torch.autograd.grad(d, z)
        z = (z + 0.5 * slopes).detach()
    seen = system.views(batch, NOW)
    torch.testing.assert_close(seen["auxiliary"], z)
    assert system.teacher is not None
    said = system.teacher(seen)
    torch.testing.assert_close(said.logits, teacher(batch["embedding"] @ mapping))
    torch.testing.assert_close(said.features["auxiliary"], teacher(z @ mapping))
    assert not said.logits.requires_grad
    torch.testing.assert_close(system.observe(seen).features["auxiliary"], student(z))


def test_padding_does_not_move() -> None:
    system = texts(teacher_map=_matrices((3, 5))[0], ascent={"mask": "real"})
    batch = points(system)
    batch["real"] = torch.arange(24).reshape(12, 2) % 3 > 0
    shift = moved(system, batch) - batch["embedding"]
    assert (shift[~batch["real"]] == 0).all()
    assert (shift[batch["real"]] != 0).any(1).all()


@pytest.mark.parametrize("normalise", ["none", "l2"])
def test_a_joint_rotation_of_the_embeddings_rotates_what_is_found(normalise: Any) -> None:
    """P7: the student's space and first layer turned alike; the map is found for the new space."""
    square, mine, theirs = _matrices((3, 3), (40, 3), (40, 5))
    turn = torch.linalg.qr(square)[0]
    ascent = {"normalise": normalise}
    system = texts(teacher_map=embedding_map(mine, theirs), ascent=ascent)
    turned = texts(teacher_map=embedding_map(mine @ turn, theirs), ascent=ascent)
    turned.student.layer.weight.data = turned.student.layer.weight.data @ turn
    batch = points(system)
    rotated = batch | {"embedding": batch["embedding"] @ turn}
    torch.testing.assert_close(moved(turned, rotated), moved(system, batch) @ turn)
    torch.testing.assert_close(turned(rotated, NOW)[0], system(batch, NOW)[0])


def test_embedding_map() -> None:
    """P7: the least squares' solution, the identity for equal embeddings, and any rank."""
    mine, theirs, narrow = _matrices((40, 3), (40, 5), (2, 3))
    found = embedding_map(mine, theirs)
    torch.testing.assert_close(found, torch.linalg.inv(mine.T @ mine) @ mine.T @ theirs)
    torch.testing.assert_close(embedding_map(mine, mine), torch.eye(3, dtype=torch.float64))
    turn = torch.linalg.qr(_matrices((5, 5))[0])[0]
    torch.testing.assert_close(embedding_map(mine, theirs @ turn), found @ turn)
    flat = torch.cat([mine, mine[:, :1]], 1)  # of deficient rank: the shortest solution
    torch.testing.assert_close(embedding_map(flat, theirs), torch.linalg.pinv(flat) @ theirs)
    torch.testing.assert_close(narrow @ embedding_map(narrow, theirs[:2]), theirs[:2])
    # Columns that nearly coincide: solved in float64 whatever the embeddings' type.
    close = mine.clone()
    close[:, 1] = close[:, 0] + 1e-3 * close[:, 1]
    single = close.float()
    precise = torch.linalg.pinv(single.double()) @ theirs.float().double()
    low = embedding_map(single.requires_grad_(), theirs.float())
    assert low.dtype == torch.float32
    assert not low.requires_grad
    torch.testing.assert_close(low, precise.float(), rtol=1e-6, atol=1e-6)


def test_tokens_cannot_climb() -> None:
    with pytest.raises(RecipeError, match=r"must be floating point, .*not torch.int64") as error:
        build(task=Embeddings(), ascent={"entry": "tokens"})
    assert "such as the embeddings of tokens" in str(error.value)


@pytest.mark.parametrize(("mine", "theirs"), [((4, 3), (5, 3)), ((4,), (4,))])
def test_embeddings_that_do_not_fit(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="of one vocabulary; take the tokens that both know"):
        embedding_map(torch.zeros(mine), torch.zeros(theirs))
