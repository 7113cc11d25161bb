"""Terms that look at objects or at proposals of an image instead of the image."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tests.systems.scenes import LEVEL, TinyScenes, detecting_teacher, detector
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor
from torchvision.ops import roi_align

from congener.assembly import Assembly
from congener.errors import RecipeError, ShapeError
from congener.losses import (
    CCKDLoss,
    CKDLoss,
    DISTLoss,
    DKDLoss,
    KDLoss,
    NDLoss,
    RKDLoss,
    SPLoss,
    kd_loss,
    sp_loss,
)
from congener.ops import collectives
from congener.recipe import parse_recipe
from congener.systems import Distillation
from congener.tasks.detection.regions import PROPOSALS, mean_in_boxes, proposed_classes
from congener.tasks.detection.rows import join_rows
from congener.types import Batch, Progress, Term

NOW = Progress(0, 1, 0)


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What warns once in a process shall warn in each test."""
    monkeypatch.setattr(collectives, "_WARNED", set())


def batch_with(task: TinyScenes, count: int = 12) -> Batch:
    return task.prepare(batch_of(task, count, "train"), train=False, seed=0, epoch=0)


def without_objects(batch: Batch, images: Any = slice(None)) -> Batch:
    labels = batch["labels"].clone()
    labels[images] = -1
    return dict(batch) | {"labels": labels}


def build(*terms: Term, **options: Any) -> Distillation:
    return Distillation(
        detector(norm=False), detecting_teacher(), terms, task=TinyScenes(), **options
    )


def objects(loss: Any, **options: Any) -> Term:
    return Term(loss, 1.0, LEVEL, LEVEL, at="objects", **options)


def gradients(system: Distillation, name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """A term and what it asks of all weights of the student."""
    system.zero_grad()
    value = system(batch, NOW)[1][name]
    value.backward()
    weights = [p for p in system.student.parameters() if p.grad is not None]
    return value.detach(), torch.cat([p.grad.flatten() for p in weights if p.grad is not None])


# Objects


def test_a_box_that_covers_cells_holds_their_mean() -> None:
    """The map's cells are 4 pixels wide and 8 high."""
    feature = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    feature.requires_grad_()
    boxes = [
        torch.tensor([[8.0, 8, 16, 24], [0, 0, 24, 40]]),
        torch.tensor([[20.0, 32, 24, 40]]),
    ]
    found = mean_in_boxes(feature, boxes, (40, 24))
    expected = torch.stack(
        [feature[0, :, 1:3, 2:4].mean((1, 2)), feature[0].mean((1, 2)), feature[1, :, 4, 5]]
    )
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found[0].sum(), feature)
    expected = torch.zeros_like(feature)
    expected[0, :, 1:3, 2:4] = 0.25
    torch.testing.assert_close(slope, expected)


def test_between_cells_a_map_is_read_bilinearly() -> None:
    """The mean of a ramp over a box is the ramp at its centre; cell i has its centre at i + ½."""
    columns, rows = torch.arange(8.0), torch.arange(6.0)
    ramp = (columns + 10 * rows[:, None])[None, None]
    boxes = torch.tensor([[3.0, 4, 10, 7], [6, 6, 7, 7]])  # of an image twice as large
    found = mean_in_boxes(ramp, [boxes], (12, 16))
    middles = (boxes[:, :2] + boxes[:, 2:]) / 4 - 0.5
    torch.testing.assert_close(found[:, 0], middles[:, 0] + 10 * middles[:, 1])


def test_objects_are_at_least_float32_and_may_be_none() -> None:
    box = [torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(0, 4)]
    for given, wanted in (
        (torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2
    ):  # fmt: skip
        assert mean_in_boxes(torch.ones(2, 3, 2, 2, dtype=given), box, (4, 4)).dtype == wanted
    nothing = mean_in_boxes(torch.ones(2, 3, 2, 2), [torch.zeros(0, 4)] * 2, (4, 4))
    assert nothing.shape == (0, 3)


def test_what_is_no_map_has_no_objects() -> None:
    boxes = [torch.zeros(1, 4)] * 2
    with pytest.raises(ShapeError, match=r"is \(2, 3\), which is no map .* tap a pyramid's level"):
        mean_in_boxes(torch.ones(2, 3), boxes, (4, 4))
    with pytest.raises(ShapeError, match=r"boxes of 2 images is \(1, 3, 2, 2\)"):
        mean_in_boxes(torch.ones(1, 3, 2, 2), boxes, (4, 4))
    with pytest.raises(ShapeError, match=r"must be \(boxes, 4\)"):
        mean_in_boxes(torch.ones(2, 3, 2, 2), [torch.zeros(4)] * 2, (4, 4))


def test_the_objects_are_the_annotated_ones_that_count() -> None:
    task = TinyScenes()
    batch = batch_with(task, 6)
    labels, crowd = batch["labels"].clone(), batch["crowd"].clone()
    assert (labels[2] >= 0).all()
    crowd[2, 1] = True
    labels[5] = -100
    batch = dict(batch) | {"labels": labels, "crowd": crowd}
    feature = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    kept = ((labels >= 0) & ~crowd).nonzero()
    boxes = batch["boxes"][kept[:, 0], kept[:, 1]]
    with_image = torch.cat((kept[:, :1].float(), boxes), 1)
    expected = roi_align(feature, with_image, 1, spatial_scale=8 / 32, aligned=True).flatten(1)
    assert len(expected) == int((labels >= 0).sum()) - 1
    torch.testing.assert_close(task.at_objects(feature, batch), expected)


def test_a_term_at_objects_compares_them_across_images() -> None:
    task = TinyScenes()
    batch = batch_with(task)
    system = build(objects(SPLoss()), objects(SPLoss(), name="again", layer_weights=(0.5,)))
    assert system.teacher is not None
    mine, theirs = system.observe(batch).features[LEVEL], system.teacher(batch).features[LEVEL]
    rows = [task.at_objects(x, batch) for x in (mine, theirs)]
    assert len(rows[0]) == int((batch["labels"] >= 0).sum())
    assert len(rows[0]) not in (0, 12 * 2)
    terms = system(batch, NOW)[1]
    torch.testing.assert_close(terms["sp"], sp_loss(*rows))
    torch.testing.assert_close(terms["again"], 0.5 * sp_loss(*rows))
    assert gradients(system, "sp", batch)[1].any()


@pytest.mark.parametrize("loss", [SPLoss, CCKDLoss, RKDLoss])
def test_a_batch_with_no_object_or_one_is_defined(loss: type) -> None:
    """Nor does it warn: how many objects there are is the images' doing."""
    system = build(objects(loss(), name="x"))
    batch = batch_with(system.task)
    none = without_objects(batch)
    one = without_objects(batch, slice(2, None))
    assert len(system.task.objects(one)[1]) == int((one["labels"] >= 0).sum()) == 1
    for few in (none, one):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value, slopes = gradients(system, "x", few)
        torch.testing.assert_close(value, torch.tensor(0.0))
        torch.testing.assert_close(slopes, torch.zeros_like(slopes))
    assert gradients(system, "x", batch)[1].any()
    assert not collectives._WARNED


def test_a_batch_of_one_image_still_warns_without_regions() -> None:
    system = build(Term(SPLoss(), 1.0, LEVEL, LEVEL))
    with pytest.warns(UserWarning, match="sp relates the samples of a batch"):
        system(batch_with(system.task, 1), NOW)


# Proposals


def scored(places: int, columns: int = 3) -> tuple[Tensor, Tensor]:
    """Dense rows of two images, and of a teacher who thinks otherwise."""
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(2, places, 4, generator=generator)
    mine, theirs = torch.randn(2, 2, places, columns, generator=generator)
    quality = 9 * torch.randn(2, places, generator=generator)
    return join_rows(mine, quality, boxes, boxes), join_rows(theirs, None, boxes, boxes)


def best(scores: Tensor) -> Tensor:
    """Of each image, the locations with the highest scores."""
    return scores.argsort(dim=1, descending=True)[:, :PROPOSALS]


@pytest.mark.parametrize("places", [PROPOSALS + 9, PROPOSALS, 5])
@pytest.mark.parametrize("background", [False, True])
def test_proposals_are_where_the_student_is_surest(places: int, background: bool) -> None:
    mine, theirs = scored(places)
    classes = mine[..., :3]
    scores = classes.sigmoid().amax(2)
    if background:
        scores = classes.softmax(2)[..., 1:].amax(2)
    chosen = best(scores)
    found = proposed_classes(mine, theirs, background=background)
    for got, rows in zip(found, (mine, theirs), strict=True):
        expected = torch.cat([rows[image, chosen[image], :3] for image in range(2)])
        assert got.shape == (2 * min(places, PROPOSALS), 3)
        torch.testing.assert_close(got, expected)


def test_what_is_not_proposed_gets_no_gradient() -> None:
    mine, theirs = scored(PROPOSALS + 9)
    mine.requires_grad_()
    proposed_classes(mine, theirs, background=True)[0].sum().backward()
    expected = torch.zeros_like(mine)
    for image, places in enumerate(best(mine.detach()[..., :3].softmax(2)[..., 1:].amax(2))):
        expected[image, places, :3] = 1
    assert mine.grad is not None
    assert torch.equal(mine.grad, expected)


def test_networks_of_other_locations_have_no_common_proposals() -> None:
    mine, theirs = scored(8)
    with pytest.raises(ShapeError, match=r"\(2, 8, 12\) and the teacher's \(2, 7, 12\).* strides"):
        proposed_classes(mine, theirs[:, :7], background=False)


def test_a_term_at_proposals_learns_their_classes() -> None:
    second = detector(8)
    for weight in second.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    terms = Term(KDLoss(), at="proposals"), Term(KDLoss(), of="second", at="proposals", name="b")
    system = build(*terms, teachers={"second": second})
    assert system.teacher is not None
    batch = batch_with(system.task)
    mine, theirs = system.observe(batch).logits, system.teacher(batch)
    found = system(batch, NOW)[1]
    for name, said in (("kd", theirs.logits), ("b", theirs.members["second"].logits)):
        pair = system.task.at_proposals(mine, said)
        torch.testing.assert_close(found[name], kd_loss(*pair))
    assert not torch.isclose(found["kd"], found["b"])
    assert gradients(system, "kd", batch)[1].any()


@pytest.mark.parametrize(("detector_", "background"), [("fcos", False), ("ssdlite", True)])
def test_a_background_is_no_proposal(detector_: Any, background: bool) -> None:
    task = TinyScenes(detector=detector_)
    mine, theirs = scored(PROPOSALS + 9, 4)
    found = task.at_proposals(mine, theirs)
    assert torch.equal(found[1], proposed_classes(mine, theirs, background=background)[1])
    assert not torch.equal(found[1], proposed_classes(mine, theirs, background=not background)[1])


# Ranks


def several() -> Distillation:
    return build(
        objects(SPLoss()), objects(CCKDLoss()), objects(RKDLoss()),
        *(Term(loss, at="proposals") for loss in (KDLoss(), DISTLoss(), CKDLoss())),
    )  # fmt: skip


NAMES = ("sp", "cckd", "rkd", "kd", "dist", "ckd")


def _share(rank: int, batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The first has all objects."""
    PartialState(cpu=True)
    rows = slice(0, 8) if rank == 0 else slice(8, 12)
    system, mine = several(), {name: value[rows] for name, value in batch.items()}
    assert bool((mine["labels"] >= 0).any()) == (rank == 0)
    return [gradients(system, name, mine) for name in NAMES]


def test_ranks_agree_with_one_process_where_one_has_no_object(tmp_path: Path) -> None:
    system = several()
    batch = without_objects(batch_with(system.task), slice(8, 12))
    whole = [gradients(system, name, batch) for name in NAMES]
    first, second = in_two_processes(tmp_path, _share, batch)
    for (value, slopes), (a, mine), (b, theirs) in zip(whole, first, second, strict=True):
        assert value != 0
        torch.testing.assert_close(a, value)
        torch.testing.assert_close(b, value)
        torch.testing.assert_close((mine + theirs) / 2, slopes, rtol=1e-4, atol=1e-5)


# What is refused, and recipes


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (objects(DKDLoss()), "among .*student_feature.* at objects; it asks for student_logits"),
        (objects(NDLoss()), "at objects; it asks for labels, class_means"),
        (Term(DKDLoss(), at="proposals"), "teacher_logits at proposals; it asks for labels"),
        (Term(SPLoss(), 1.0, LEVEL, LEVEL, at="proposals"), "it asks for student_feature"),
        (Term(SPLoss(), at="objects"), "needs a `student` tap"),
        (Term(KDLoss(), 1.0, LEVEL, LEVEL, at="proposals"), "reads no taps"),
        (Term(KDLoss(), at="boxes"), "looks at 'boxes'; expected 'objects' or 'proposals'"),  # type: ignore[arg-type]
    ],
)
def test_a_loss_that_asks_for_more_is_refused(term: Term, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(term)


@pytest.mark.parametrize("at", ["objects", "proposals"])
def test_a_task_without_regions_is_refused_before_training(at: Any) -> None:
    term = Term(KDLoss(), at=at)
    message = f"the term 'kd' looks at {at}, and the task TinyTask has none; take the task 'det"
    with pytest.raises(RecipeError, match=f"(?i){message}"):
        Distillation(student_net(), teacher_net(), [term], task=TinyTask())
    asked = {"objects": TinyTask().at_objects, "proposals": TinyTask().at_proposals}[at]
    with pytest.raises(RecipeError, match=f"TinyTask has no {at}"):
        asked(torch.zeros(1, 1), {})  # type: ignore[operator]


def recipe_of(*terms: Any) -> Assembly:
    return Assembly(
        parse_recipe(
            {
                "task": TinyScenes(),
                "student": detector(),
                "teacher": detecting_teacher(),
                "train": {"steps": 1, "batch_size": 4},
                "terms": list(terms),
            }
        )
    )


def test_a_recipe_says_at_and_its_widths_are_those_of_rows() -> None:
    taps = {"student": LEVEL, "teacher": LEVEL, "at": "objects"}
    whole = recipe_of(
        {"loss": "sp", **taps},
        {"loss": "fitnets", **taps},
        {"loss": "neighbour_correlation", **taps},
        {"loss": "dist", "at": "proposals"},
    )
    whole.check()
    system = whole.sketch("distilled", whole.teacher())
    assert isinstance(system, Distillation)
    assert [bound.term.at for bound in system.terms] == ["objects"] * 3 + ["proposals"]
    widths = [
        p.shape[1] for p in system.losses["neighbour_correlation"].parameters() if p.dim() > 1
    ]
    assert widths[0] == 32


def test_a_recipe_with_another_region_is_refused() -> None:
    with pytest.raises(RecipeError, match="'objects' or 'proposals'"):
        recipe_of({"loss": "kd", "at": "boxes"})
