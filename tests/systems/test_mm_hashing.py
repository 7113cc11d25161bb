"""MM-NN hashing as a system: the step term by term, its pairs, its teacher, and what is refused."""

from itertools import pairwise
from math import dist
from typing import Any

import pytest
import torch
from tests.systems.tiny import (
    CoupledNet,
    TinyPairTask,
    batch_of,
    coupled_net,
    coupled_teacher,
    student_net,
)
from torch import Tensor, nn

from congener.engine import FitConfig
from congener.engine.accumulate import accumulated_step
from congener.engine.machine import build_accelerator
from congener.errors import RecipeError
from congener.losses import CCKDLoss, MMHashingLoss, SPLoss
from congener.ops.keyed_random import keyed_uniform
from congener.systems import Distillation, MMHashing
from congener.teachers import fingerprint
from congener.types import Batch, Outputs, Progress, Term

NOW = Progress(0, 1, 0)
OPTIONS: dict[str, Any] = {
    "margin": (3.0, 2.5, 1.5), "first_weight": 0.7, "second_weight": 0.2, "negative_weight": 1.3,
}  # fmt: skip
Pairs = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def build(
    student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any
) -> MMHashing:
    options = {"task": TinyPairTask()} | options
    return MMHashing(student or coupled_net(norm=False), teacher, **options).train()


def oracle(a: Tensor, b: Tensor, pairs: Pairs, margin: float, beta: float) -> float:
    """Half the mean square over like pairs, and half that of the unlike ones' shortfall."""
    x, y = a.tolist(), b.tolist()
    like = [dist(x[i], y[j]) ** 2 for i, j in pairs[0]]
    unlike = [max(0.0, margin - dist(x[i], y[j])) ** 2 for i, j in pairs[1]]
    return (sum(like) / max(len(like), 1) + beta * sum(unlike) / max(len(unlike), 1)) / 2


def expected(system: MMHashing, batch: Batch, pairs: Pairs) -> dict[str, float]:
    x, y = system.student(batch["image"]).unbind(1)
    return {
        "between": oracle(x, y, pairs, 3.0, 1.3),
        "first": oracle(x, x, pairs, 2.5, 1.3),
        "second": oracle(y, y, pairs, 1.5, 1.3),
    }


def values(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def all_pairs(labels: Tensor) -> Pairs:
    n = [i for i in range(len(labels)) if labels[i] >= 0]
    same = [(i, j) for i in n for j in n if labels[i] == labels[j]]
    return same, [(i, j) for i in n for j in n if labels[i] != labels[j]]


def test_step_is_the_paper_s() -> None:
    system = build(**OPTIONS)
    batch = batch_of(system.task)
    total, terms, _ = system(batch, NOW)
    wanted = expected(system, batch, all_pairs(batch["labels"]))
    assert values(terms) == pytest.approx(wanted)
    assert total.item() == pytest.approx(
        wanted["between"] + 0.7 * wanted["first"] + 0.2 * wanted["second"]
    )
    assert system.weights(NOW) == {"between": 1.0, "first": 0.7, "second": 0.2}


def test_without_a_teacher_it_is_the_loss() -> None:
    margins = {"margin": 3.0, "first_margin": 2.5, "second_margin": 1.5}
    system = build(**OPTIONS)
    batch = batch_of(system.task)
    loss = MMHashingLoss(**margins, **{k: v for k, v in OPTIONS.items() if k != "margin"})
    x, y = system.student(batch["image"]).unbind(1)
    torch.testing.assert_close(system(batch, NOW)[0], loss(x, y, batch["labels"]))
    plain = build()
    x, y = plain.student(batch["image"]).unbind(1)
    torch.testing.assert_close(plain(batch, NOW)[0], MMHashingLoss()(x, y, batch["labels"]))


def test_classes_of_several_kinds() -> None:
    system = build()
    batch = batch_of(system.task)
    total = system(batch, NOW)[0]
    tags = nn.functional.one_hot(batch["labels"]).to(torch.int8)
    torch.testing.assert_close(system(batch | {"labels": tags}, NOW)[0], total)


def test_a_term_of_weight_0_is_left_out_and_its_network_learns_across_alone() -> None:
    system = build(first_weight=0.0, second_weight=0.0)
    batch = batch_of(system.task)
    _, terms, _ = system(batch, NOW)
    assert terms.keys() == system.weights(NOW).keys() == {"between"}
    within = build(first_weight=0.0, second_weight=0.5)
    assert within(batch, NOW)[1].keys() == {"between", "second"}


def listed(batch: Batch, step: int, labels: list[int]) -> Pairs:
    """n aligned pairs, and n unlike ones by a walk of the step's circle."""
    draws = keyed_uniform(batch["index"], seed=0, epoch=step, count=1).flatten().tolist()
    circle = sorted(range(len(draws)), key=draws.__getitem__)
    unlike = []
    for place, i in enumerate(circle):
        ahead = (j for j in circle[place + 1 :] + circle[:place] if labels[j] != labels[i])
        unlike += [(i, j) for j in list(ahead)[:1]]
    return [(i, i) for i in circle], unlike


@pytest.mark.parametrize("pairs", ["labels", "aligned"])
@pytest.mark.parametrize("step", [0, 5])
def test_a_list_of_pairs_follows_the_step(pairs: str, step: int) -> None:
    system = build(pairs=pairs, sampling="list", **OPTIONS)
    batch = batch_of(system.task)
    labels = batch["labels" if pairs == "labels" else "index"].tolist()
    terms = system(batch, Progress(step, 9, 0))[1]
    wanted = expected(system, batch, listed(batch, step, labels))
    assert values(terms) == pytest.approx(wanted)
    assert values(system(batch, Progress(step + 1, 9, 0))[1]) != pytest.approx(wanted)
    if pairs == "aligned":
        circle = [i for i, _ in listed(batch, step, labels)[0]]
        assert listed(batch, step, labels)[1] == list(pairwise([*circle, circle[0]]))


def test_the_list_is_of_the_samples_wherever_they_are_in_the_batch() -> None:
    system = build(sampling="list")
    batch = batch_of(system.task)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    mixed = {name: value[order] for name, value in batch.items()}
    torch.testing.assert_close(system(mixed, NOW)[0], system(batch, NOW)[0])


def test_aligned_pairs_need_no_labels() -> None:
    system = build(pairs="aligned", **OPTIONS)
    batch = batch_of(system.task)
    wanted = expected(system, batch, all_pairs(batch["index"]))
    without = {name: value for name, value in batch.items() if name != "labels"}
    assert values(system(without, NOW)[1]) == pytest.approx(wanted)
    assert system.distils
    assert not build().distils
    assert build(teacher=coupled_teacher()).distils


def soft_oracle(x: Tensor, y: Tensor, p: Tensor, q: Tensor) -> float:
    n = len(x)
    d = [[dist(a, b) for b in q.tolist()] for a in p.tolist()]
    mean = sum(d[i][j] for i in range(n) for j in range(n) if i != j) / (n * n - n)
    s = {(i, j): max(0.0, 1 - d[i][j] / mean) for i in range(n) for j in range(n)}
    gap = {(i, j): dist(x[i].tolist(), y[j].tolist()) for i, j in s}
    like = sum(s[k] * gap[k] ** 2 for k in s) / sum(s.values())
    short = sum((1 - s[k]) * max(0.0, 3.0 - gap[k]) ** 2 for k in s)
    return (like + 1.3 * short / sum(1 - v for v in s.values())) / 2


def test_teacher_of_other_bits_says_which_pairs_are_alike() -> None:
    teacher = coupled_teacher()
    system = build(teacher=teacher, soft_weight=0.6, **OPTIONS)
    batch = batch_of(system.task)
    batch["labels"] = torch.where(torch.arange(12) < 5, batch["labels"], -100)
    total, terms, _ = system(batch, NOW)
    x, y = system.student(batch["image"]).unbind(1)
    p, q = teacher(batch["image"]).unbind(1)
    wanted = expected(system, batch, all_pairs(batch["labels"]))
    wanted["soft"] = soft_oracle(x, y, p, q)
    assert values(terms) == pytest.approx(wanted)
    weights = {"between": 1.0, "first": 0.7, "second": 0.2, "soft": 0.6}
    assert system.weights(NOW) == weights
    assert total.item() == pytest.approx(sum(weights[name] * wanted[name] for name in weights))


def test_unlabelled_samples_teach_by_the_teacher_alone() -> None:
    system = build(teacher=coupled_teacher())
    batch = batch_of(system.task)
    bare = torch.arange(12) >= 5
    batch["labels"] = batch["labels"].masked_fill(bare, -100)
    codes, said = system.observe(batch), system.teacher(batch)
    terms = system.score(codes, said, batch, NOW).terms
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, codes.logits, retain_graph=True)
        assert gradient[bare].any() == (name == "soft")
        assert gradient[~bare].flatten(1).any(1).all()
    nobody = batch | {"labels": torch.full((12,), -100)}
    alone = system.score(codes, said, nobody, NOW)
    assert all(alone.terms[name] == 0 for name in ("between", "first", "second"))
    torch.testing.assert_close(alone.total, terms["soft"])


def test_a_teacher_that_is_not_followed_is_not_asked() -> None:
    teacher = coupled_teacher()
    system = build(teacher=teacher, soft_weight=0.0)
    assert system.teacher is None
    assert not system.distils
    assert "soft" not in system(batch_of(system.task), NOW)[1]
    followed = build(teacher=teacher)
    before = fingerprint(teacher)
    followed(batch_of(system.task), NOW)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert fingerprint(teacher) == before
    assert followed.needs_live_teacher() == ""


@pytest.mark.parametrize("options", [{}, {"sampling": "list"}, {"pairs": "aligned"}], ids=str)
def test_pieces_are_the_whole(options: dict[str, Any]) -> None:
    gradients = []
    for pieces in (1, 5):
        system = build(teacher=coupled_teacher(), **options)
        accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
        now = Progress(3, 9, 0)
        total, _, _ = accumulated_step(system, batch_of(system.task), now, pieces, accelerator)
        gradients.append([total.detach(), *(p.grad for p in system.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_saturated_codes_and_half_precision_stay_finite() -> None:
    system = build(teacher=coupled_teacher())
    batch = batch_of(system.task)
    said = system.teacher(batch)
    for scale in (0.0, 1e4):
        raw = (scale * torch.randn(12, 2, 5)).to(torch.bfloat16).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            total, terms = system.score(Outputs(raw.tanh()), said, batch, NOW)
        assert total.dtype == torch.float32
        assert all(term.isfinite() for term in terms.values())
        total.backward()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()


def test_codes_are_features_of_any_other_system() -> None:
    taps = ("first", "second")
    terms = [
        Term(SPLoss(), 1.0, taps, taps),
        Term(CCKDLoss(), 1.0, "first", "second", name="across"),
    ]
    teacher = coupled_teacher()
    system = Distillation(coupled_net(norm=False), teacher, terms, task=TinyPairTask())
    batch = batch_of(system.task)
    total, found, _ = system(batch, NOW)
    x, y = system.student(batch["image"]).unbind(1)
    p, q = teacher(batch["image"]).unbind(1)
    torch.testing.assert_close(found["sp"], SPLoss()(x, p) + SPLoss()(y, q))
    torch.testing.assert_close(found["across"], CCKDLoss()(x, q))
    torch.testing.assert_close(found["task"], system.task.loss(torch.stack((x, y), 1), batch))
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in system.parameters())


class Told(TinyPairTask):
    """Labels of another kind."""

    def __init__(self, labels: Any) -> None:
        super().__init__()
        self.told = labels

    def collate(self, samples: Any) -> Batch:
        found = super().collate(samples) | {"labels": self.told}
        return {key: value for key, value in found.items() if value is not None}


class Unlabelled(TinyPairTask):
    """No training sample has a label."""

    def labels(self, split: str) -> torch.Tensor:
        return torch.full((12,), -100)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"first_weight": -1.0}, ValueError, "first_weight must be finite and not negative"),
        ({"negative_weight": torch.nan}, ValueError, "negative_weight must be finite and not neg"),
        ({"soft_weight": -1.0}, ValueError, "soft_weight must be finite and not negative"),
        ({"task": Unlabelled()}, RecipeError, "no training sample has one; set pairs to 'aligned'"),
        ({"pairs": "label"}, ValueError, "pairs must be one of 'labels', 'aligned', not 'label'"),
        ({"sampling": "some"}, ValueError, "sampling must be one of 'all', 'list', not 'some'"),
        ({"margin": -1.0}, ValueError, "margin must be finite and not negative, not -1.0"),
        ({"margin": (1.0, torch.nan, 1.0)}, ValueError, "margin must be finite and not negative"),
        ({"margin": [1.0, 2.0]}, RecipeError,
         r"one number, or three of L_xy, L_x and L_y, not \[1.0, 2.0\]."),
        ({"margin": (1.0, 4.5, 1.0)}, RecipeError,
         "Codes of 5 bits are less than 4.47 apart, which no margin of 4.5 fits; lower `margin`"),
        ({"student": student_net()}, RecipeError,
         r"codes of two modalities, \(batch, 2, bits\), but the student gives \(1, 3\); couple"),
        ({"teacher": student_net()}, RecipeError, r"but the teacher gives \(1, 3\); couple two"),
        ({"task": Told(None)}, RecipeError,
         r"class numbers \(batch,\) or 0 and 1 \(batch, classes\), not nothing; set pairs to 'al"),
        ({"task": Told(torch.zeros(1, 3))}, RecipeError, r"not float32 \(1, 3\); set pairs"),
    ],
)  # fmt: skip
def test_bad_requests_are_told(options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        build(**options)
    if "task" in options:
        assert build(pairs="aligned", **options).pairs == "aligned"


def test_what_it_shows_of_itself() -> None:
    assert repr(build(sampling="list")).startswith(
        "MMHashing(\n  margin=2.0, first_weight=0.3, second_weight=0.3, negative_weight=1.0, "
        "pairs='labels', sampling='list', soft_weight=1.0\n"
    )
    assert isinstance(build().student, CoupledNet)
