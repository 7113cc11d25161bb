"""The default system: its total, how losses are bound, and what it refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn

from congener.errors import RecipeError, TapError
from congener.losses import KDLoss, SPLoss
from congener.systems import Distillation
from congener.types import Outputs, Progress, Term

NOW = Progress(0, 1, 0)


class Gap(nn.Module):
    """Mean distance of two features."""

    name = "gap"

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        return (student_feature.mean() - teacher_feature.mean()).abs()


class AllGaps(nn.Module):
    def forward(
        self,
        student_features: list[Tensor],
        teacher_features: list[Tensor],
        labels: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        assert mask is None
        pairs = zip(student_features, teacher_features, strict=True)
        return torch.stack([s.mean() - 2 * t.mean() for s, t in pairs]).sum() + labels.sum()


class Demanding(nn.Module):
    def forward(self, student_logits: Tensor, epoch: int) -> Tensor:
        raise NotImplementedError


class Blind(nn.Module):
    def forward(self, mask: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def build(*terms: Term, teacher: bool = True, **options: Any) -> Distillation:
    net = teacher_net() if teacher else None
    return Distillation(student_net(), net, terms, task=TinyTask(), **options)


def observed(system: Distillation, batch: dict[str, Any]) -> tuple[Outputs, Outputs]:
    assert system.teacher is not None
    return system.observe(batch), system.teacher(batch)


def test_total_is_the_weighted_sum() -> None:
    system = build(
        Term(KDLoss(temperature=3), 0.7), Term(SPLoss(), 50.0, "hidden", "hidden.1"),
        task_weight=0.3,
    )  # fmt: skip
    batch = batch_of(system.task)
    student, teacher = observed(system, batch)
    total, terms, _ = system(batch, NOW)
    kd = 9 * F.kl_div(
        F.log_softmax(student.logits / 3, 1),
        F.softmax(teacher.logits / 3, 1),
        reduction="batchmean",
    )
    grams = [
        F.normalize(feature @ feature.T, dim=1)
        for feature in (student.features["hidden"], teacher.features["hidden.1"])
    ]
    sp = (grams[0] - grams[1]).square().mean()
    task = F.cross_entropy(student.logits, batch["labels"])
    torch.testing.assert_close(terms, {"task": task, "kd": kd, "sp": sp})
    torch.testing.assert_close(total, 0.3 * task + 0.7 * kd + 50 * sp)
    assert system.weights(NOW) == {"task": 0.3, "kd": 0.7, "sp": 50.0}


def test_student_alone_is_the_task_loss() -> None:
    system = build(teacher=False)
    batch = batch_of(system.task)
    total, terms, _ = system(batch, NOW)
    assert set(terms) == {"task"}
    torch.testing.assert_close(
        total, F.cross_entropy(system.student(batch["image"]), batch["labels"])
    )


def test_pairs_of_taps_are_summed() -> None:
    system = build(Term(Gap(), 1.0, ("hidden.0", "hidden"), ("hidden", "hidden.0")))
    batch = batch_of(system.task)
    student, teacher = observed(system, batch)
    _, terms, _ = system(batch, NOW)
    mine, theirs = student.features, teacher.features
    wanted = (mine["hidden.0"].mean() - theirs["hidden"].mean()).abs() + (
        mine["hidden"].mean() - theirs["hidden.0"].mean()
    ).abs()
    torch.testing.assert_close(terms["gap"], wanted)


def test_losses_over_lists_get_the_lists_and_the_labels() -> None:
    system = build(Term(AllGaps(), 1.0, ("hidden.0", "hidden"), ("hidden", "hidden.0")))
    batch = batch_of(system.task)
    student, teacher = observed(system, batch)
    mine = [student.features[path].mean() for path in ("hidden.0", "hidden")]
    theirs = [teacher.features[path].mean() for path in ("hidden", "hidden.0")]
    wanted = sum(mine) - 2 * sum(theirs) + batch["labels"].sum()
    torch.testing.assert_close(system(batch, NOW)[1]["AllGaps"], wanted)


def test_two_terms_of_one_loss_with_names_of_their_own() -> None:
    system = build(
        Term(Gap(), 1.0, "hidden", "hidden", name="late"),
        Term(Gap(), 2.0, "hidden.0", "hidden", name="early"),
    )
    assert set(system(batch_of(system.task), NOW)[1]) == {"task", "late", "early"}


def test_parameters_of_a_loss_are_trained_and_saved() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            return (self.scale * student_logits - teacher_logits).square().mean()

    system = build(Term(Scaled(), name="scaled"))
    system(batch_of(system.task), NOW)[0].backward()
    assert system.losses["scaled"].scale.grad.abs() > 0
    assert "losses.scaled.scale" in system.state_dict()
    assert not any(name.startswith("losses") for name in system.student.state_dict())


DIFFERENT = (
    "The terms are called gap, gap; give each a `name` of its own (and not 'task', which is the "
    "supervised loss)."
)


@pytest.mark.parametrize(
    ("terms", "teacher", "sentence"),
    [
        (
            [Term(SPLoss())],
            True,
            "The term 'sp' compares features, so it needs a `student` tap and a `teacher` tap for "
            "each (it has 0 and 0).",
        ),
        (
            [Term(SPLoss(), 1.0, ("hidden", "hidden.0"), "hidden")],
            True,
            "The term 'sp' compares features, so it needs a `student` tap and a `teacher` tap for "
            "each (it has 2 and 1).",
        ),
        (
            [Term(KDLoss(), 1.0, teacher="hidden")],
            True,
            "The term 'kd' compares logits and reads no taps; remove its `student` and `teacher`.",
        ),
        ([Term(Gap(), 1.0, "hidden", "hidden")] * 2, True, DIFFERENT),
        (
            [Term(KDLoss(), name="task")],
            True,
            "The terms are called task; give each a `name` of its own (and not 'task', which is "
            "the supervised loss).",
        ),
        (
            [Term(KDLoss())],
            False,
            "There are distillation terms but no teacher to distil from; name one.",
        ),
        (
            [Term(Demanding(), name="mine")],
            True,
            "The loss of the term 'mine' should take arguments among index, labels, mask, "
            "student_feature, student_features, student_logits, teacher_feature, "
            "teacher_features, teacher_logits; it asks for epoch.",
        ),
        (
            [Term(Blind())],
            True,
            "The loss of the term 'Blind' should take arguments among index, labels, mask, "
            "student_feature, student_features, student_logits, teacher_feature, teacher_features, "
            "teacher_logits; it asks for nothing.",
        ),
        (
            [Term(KDLoss(), name="a.b")],
            True,
            "A term cannot be called 'a.b'; give it another `name`.",
        ),
        (
            [Term(KDLoss(), name="keys")],
            True,
            "A term cannot be called 'keys'; give it another `name`.",
        ),
        (
            [Term(KDLoss(), name="training")],
            True,
            "A term cannot be called 'training'; give it another `name`.",
        ),
    ],
)
def test_terms_that_cannot_be_bound(terms: list[Term], teacher: bool, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        build(*terms, teacher=teacher)
    assert str(error.value) == sentence


@pytest.mark.parametrize(("mine", "theirs"), [("hiden", "hidden"), ("hidden", "hiden")])
def test_taps_that_do_not_exist(mine: str, theirs: str) -> None:
    with pytest.raises(TapError, match="no module 'hiden' to tap; did you mean 'hidden'"):
        build(Term(SPLoss(), 1.0, mine, theirs))


def test_unlabelled_samples_reach_the_terms_but_not_the_task_loss() -> None:
    system = build(Term(KDLoss(temperature=1), 1.0))
    system.student.eval()  # batch normalisation would couple the samples
    batch = batch_of(system.task)
    batch["labels"] = torch.where(torch.arange(12) % 3 == 0, batch["labels"], -100)
    labelled = batch["labels"] != -100
    student, teacher = observed(system, batch)
    logits = student.logits.detach().requires_grad_()
    _, terms = system.score(Outputs(logits), teacher, batch, NOW)
    torch.testing.assert_close(
        terms["task"], F.cross_entropy(logits[labelled], batch["labels"][labelled])
    )
    (of_task,) = torch.autograd.grad(terms["task"], logits, retain_graph=True)
    (of_kd,) = torch.autograd.grad(terms["kd"], logits)
    assert (of_task[~labelled] == 0).all()
    assert (of_task[labelled] != 0).any(1).all()
    assert (of_kd != 0).any(1).all()


def test_batch_without_any_label() -> None:
    system = build(Term(KDLoss(), 1.0))
    batch = batch_of(system.task) | {"labels": torch.full((12,), -100)}
    total, terms, _ = system(batch, NOW)
    assert terms["task"].item() == 0
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.student.parameters())
