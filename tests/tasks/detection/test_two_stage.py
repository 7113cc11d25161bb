"""Faster R-CNN: it is torchvision's, samples by image alone, and teacher and student look alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from tests.systems.scenes import squares
from tests.tasks.detection.test_models import BODIES, both_kinds, described
from tests.tasks.detection.test_models import detection as rectangles
from tests.tasks.detection.test_two_stage_losses import made_up
from torch import Tensor, nn
from torchvision.models import detection as theirs
from torchvision.models.detection import _utils
from torchvision.ops import box_iou

from congener.engine import FitConfig, fit
from congener.errors import DataError, RecipeError, ShapeError
from congener.losses import DetectionKDLoss, KDLoss, SPLoss
from congener.systems.distillation import Distillation
from congener.systems.ikd import IKD
from congener.systems.pseudo_label import PseudoLabel
from congener.task import Task
from congener.tasks.detection import Detection, models
from congener.tasks.detection.criteria import BACKGROUND, LEFT_OUT, sampled
from congener.tasks.detection.rows import split_rows
from congener.types import Batch, Progress, Term

NETWORK: dict[str, Any] = {"widths": (8, 8, 8), "levels": 1, "channels": 16, "box_width": 32}
SQUARES = squares(20, 10)
LEVEL = "backbone.fpn.layer_blocks.0"
NOW = Progress(0, 10, 0)


def detection(**given: Any) -> Detection:
    options: dict[str, Any] = {
        "detector": "faster_rcnn",
        "anchor_scale": 2.0,
        "proposals": 24,
    } | given
    return Detection(SQUARES, **options)


def build(task: Detection, name: str = "small_cnn", *, seed: int = 3, **arguments: Any) -> Any:
    """A network that is sure of something at once, with statistics of what it has seen."""
    torch.manual_seed(seed)
    network: Any = task.build_model(name, **arguments)
    nn.init.normal_(network.roi_heads.box_predictor.cls_score.weight, std=0.3)
    nn.init.normal_(network.rpn.head.cls_logits.weight, std=0.3)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    return network


def ready(task: Detection, *rows: int, train: bool = True, epoch: int = 0) -> Batch:
    data: Any = task.splits["train"]
    raw = task.collate(data.__getitems__(list(rows or range(8))))
    return task.prepare(raw, train=train, seed=1, epoch=epoch)


def proposals(task: Detection, rows: Tensor) -> Any:
    return split_rows(rows[:, -task.proposals :])


@contextmanager
def drawn_alike(batch: Batch) -> Iterator[None]:
    """Within it torchvision samples the places that we do: first anchors, then proposals."""
    stages = iter(("anchors", "proposals"))

    def sample(self: Any, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        lengths = [len(each) for each in matched]
        found = nn.utils.rnn.pad_sequence([m.float() for m in matched], True, -1)
        classes = torch.where(found >= 1, 0, torch.where(found == 0, BACKGROUND, LEFT_OUT))
        chosen = sampled(
            classes, batch["draw"], self.batch_size_per_image, self.positive_fraction,
            stage=next(stages),  # type: ignore[arg-type]
        )  # fmt: skip
        some = [each[:length] for each, length in zip(chosen, lengths, strict=True)]
        return (
            [a & (m >= 1) for a, m in zip(some, matched, strict=True)],
            [a & (m == 0) for a, m in zip(some, matched, strict=True)],
        )

    with mock.patch.object(_utils.BalancedPositiveNegativeSampler, "__call__", sample):
        yield


NAMES = {
    "loss_classifier": "classification", "loss_box_reg": "box", "loss_objectness": "objectness",
    "loss_rpn_box_reg": "rpn_box",
}  # fmt: skip


def slopes(values: dict[str, Tensor], network: nn.Module) -> list[Tensor]:
    """Of each loss by each parameter."""
    return [
        torch.zeros_like(parameter) if slope is None else slope
        for value in values.values()
        for parameter, slope in zip(
            network.parameters(),
            torch.autograd.grad(
                value, list(network.parameters()), retain_graph=True, allow_unused=True
            ),
            strict=True,
        )
    ]


@pytest.mark.parametrize(("body", "kept"), [*((body, 64) for body in BODIES), ("small_cnn", 8)])
def test_a_network_is_torchvision_s(body: str, kept: int) -> None:
    task = rectangles("faster_rcnn", anchor_scale=2, proposals=kept)
    network = build(task, body, **BODIES[body], channels=16, box_width=32)
    assert type(network) is theirs.FasterRCNN
    batch, images, targets = both_kinds(task)
    targets = [each | {"labels": each["labels"] + 1} for each in targets]
    network.train()
    with drawn_alike(batch):
        expected = network(images, targets)
    expected = {ours: expected[name] for name, ours in NAMES.items()}
    found = task.losses(task.call(network, batch).logits, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-5, atol=1e-6)
        assert value > 0
    for own, other in zip(slopes(found, network), slopes(expected, network), strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(own, other, rtol=1e-3, atol=2e-5 * scale + 1e-7)
    network.eval()
    with torch.no_grad():
        wanted, answers = network(images), task.respond(network, batch)
    assert sum(len(each["boxes"]) for each in wanted) > 2
    for mine, plain in zip(answers, wanted, strict=True):
        torch.testing.assert_close(mine["boxes"], plain["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(mine["scores"], plain["scores"], rtol=0, atol=1e-5)
        assert torch.equal(mine["labels"], plain["labels"] - 1)


def test_a_resnet50_has_the_names_and_shapes_of_torchvision_s() -> None:
    with torch.device("meta"):
        mine = models.build(
            "torchvision:resnet50", {"levels": 4}, design="faster_rcnn", num_classes=90,
            size=(512, 512), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.2),
        )  # fmt: skip
        plain = theirs.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert described(mine) == described(plain)
    assert mine.rpn.anchor_generator.aspect_ratios[0] == (0.5, 1.0, 2.0)  # type: ignore[index, union-attr]
    assert models.anchors_of("faster_rcnn", [8, 16]).sizes == ((32,), (64,))


def test_what_is_trained_here_runs_in_plain_torchvision() -> None:
    task = detection()
    student = build(task, **NETWORK)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    config = FitConfig(steps=3, batch_size=8, lr=1e-3, device="cpu", threads=1)
    fit(Distillation(student, None, [], task=task), task, config, train=task.splits["train"],
        test=None)  # fmt: skip
    assert all(not value.equal(before[name]) for name, value in student.state_dict().items())
    mean, std = task.normalisation or ((), ())
    plain: Any = theirs.FasterRCNN(
        build(task, seed=9, **NETWORK).backbone, 4, min_size=32, max_size=32, image_mean=mean,
        image_std=std,
        rpn_anchor_generator=theirs.anchor_utils.AnchorGenerator(((16,),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=theirs.faster_rcnn.MultiScaleRoIAlign(["0"], 7, 2),
        box_head=theirs.faster_rcnn.TwoMLPHead(16 * 49, 32), size_divisible=1,
    )  # fmt: skip
    plain.roi_heads.box_predictor = theirs.faster_rcnn.FastRCNNPredictor(32, 4)
    plain.load_state_dict(student.state_dict())
    raw: Any = task.splits["train"]
    images = [image / 255 for image in raw.__getitems__([1, 2])["image"]]
    with torch.no_grad():
        wanted = plain.eval()(images)
        answers = task.respond(student.eval(), ready(task, 1, 2, train=False))
    for mine, each in zip(answers, wanted, strict=True):
        torch.testing.assert_close(mine["boxes"], each["boxes"], rtol=0, atol=1e-3)
        assert torch.equal(mine["labels"], each["labels"] - 1)


def test_what_rows_say() -> None:
    task = detection()
    network = build(task, **NETWORK)
    batch = ready(task, 1, 2, 3)
    said = task.call(network, batch)
    count = said.logits.shape[1] - task.proposals
    assert count == len(said.anchors) == 3 * 4 * 4
    first = split_rows(said.logits[:, :count])
    maps = list(network.backbone(batch["image"]).values())
    (objectness,), (deltas,) = network.rpn.head(maps)
    flat = objectness.permute(0, 2, 3, 1).reshape(3, -1)
    torch.testing.assert_close(first.classes.softmax(2)[..., 0], 1 - flat.sigmoid())
    chances = first.classes.softmax(2)[..., 1:]
    torch.testing.assert_close(chances[..., 0], flat.sigmoid())
    assert not chances[..., 1:].any()
    deltas = deltas.view(3, 3, 4, 4, 4).permute(0, 3, 4, 1, 2).reshape(-1, 4)
    boxes = network.rpn.box_coder.decode_single(deltas, said.anchors.repeat(3, 1))
    torch.testing.assert_close(first.boxes, boxes.view(3, -1, 4))
    assert torch.equal(first.references, said.anchors.expand(3, -1, -1))

    second = proposals(task, said.logits)
    assert not first.quality.any()
    assert not second.quality.any()
    for image in (1, 2):
        there = second.references[image].any(1)
        places = second.references[image][there]
        assert there.int().diff().le(0).all()
        assert not said.logits[image, count:][~there].any()
        pooled = network.roi_heads.box_roi_pool(
            network.backbone(batch["image"][image, None]), [places], [(32, 32)]
        )
        logits, deltas = network.roi_heads.box_predictor(network.roi_heads.box_head(pooled))
        torch.testing.assert_close(second.classes[image][there], logits)
        best = logits[:, 1:].argmax(1)
        if image == 1:  # it is annotated
            overlap, which = box_iou(places, batch["boxes"][1]).max(1)
            matched = batch["labels"][1][which]
            assert not torch.equal(best[overlap >= 0.5], matched[overlap >= 0.5])
            best = torch.where(overlap >= 0.5, matched, best)
        decoded = network.roi_heads.box_coder.decode_single(deltas, places).view(-1, 4, 4)
        expected = decoded[torch.arange(len(best)), best + 1]
        torch.testing.assert_close(second.boxes[image][there], expected)
    found = torch.autograd.grad(
        second.references.sum(), list(network.parameters()), allow_unused=True
    )
    assert not any(slope.any() for slope in found if slope is not None)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_what_is_sampled_follows_the_image_alone() -> None:
    task = detection(proposals=12)
    network = build(task, **NETWORK)
    whole = task.call(network, ready(task, 1, 2, 4, 5)).logits
    same(task.call(network, ready(task, 5, 4)).logits, whole[[3, 2]])
    again = proposals(task, task.call(network, ready(task, 1, 2, 4, 5)).logits).references
    assert torch.equal(again, proposals(task, whole).references)
    later = proposals(task, task.call(network, ready(task, 1, 2, 4, 5, epoch=1)).logits).references
    assert not torch.equal(again, later)
    assert torch.is_tensor(ready(task)["draw"])
    assert "draw" not in ready(task, train=False)
    assert "draw" not in ready(detection(detector="fcos", anchor_scale=4.0, proposals=128))

    draw = torch.tensor([5, 9])
    classes = torch.randint(-2, 2, (2, 300), generator=torch.Generator().manual_seed(0))
    chosen = sampled(classes, draw, 40, 0.25, stage="proposals")
    assert (chosen & (classes >= 0)).sum(1).tolist() == [10, 10]
    assert (chosen & (classes == BACKGROUND)).sum(1).tolist() == [30, 30]
    assert torch.equal(sampled(classes[1:], draw[1:], 40, 0.25, stage="proposals"), chosen[1:])
    assert not torch.equal(sampled(classes, draw, 40, 0.25, stage="anchors"), chosen)
    few = classes.masked_fill((classes >= 0) & (torch.arange(300) > 8), BACKGROUND)
    chosen = sampled(few, draw, 40, 0.25, stage="proposals")
    assert chosen.sum(1).tolist() == [40, 40]
    assert torch.equal(chosen & (few >= 0), few >= 0)


def holds(regions: Tensor, box: Tensor) -> bool:
    return bool((regions == box).all(1).any())


def test_true_boxes_are_among_what_is_learnt_from_but_no_crowd() -> None:
    task = detection()
    network = build(task, **NETWORK)
    batch = ready(task, 2, 3, 5)
    batch["crowd"][2, 0] = True
    found = proposals(task, task.call(network, batch).logits).references
    true = batch["boxes"]
    assert [holds(found[0], box) for box in true[0]] == [True, True]
    assert [holds(found[2], box) for box in true[2]] == [False, True]
    centres = (found[2, :, :2] + found[2, :, 2:]) / 2
    inside = ((centres > true[2, 0, :2]) & (centres < true[2, 0, 2:])).all(1)
    assert not (inside & (box_iou(found[2], true[2, 1:])[:, 0] < 0.5)).any()

    near = batch["boxes"].clone()
    near[2, 0] = near[2, 1] + torch.tensor([1.0, 0, 1, 0])
    found = proposals(task, task.call(network, batch | {"boxes": near}).logits).references
    assert [holds(found[2], box) for box in near[2]] == [False, True]

    for other in (batch | {"labels": torch.full_like(batch["labels"], -100)},
                  {key: value for key, value in batch.items() if key != "draw"}):  # fmt: skip
        best = proposals(task, task.call(network, other).logits).references
        assert not any(holds(best[0], box) for box in true[0])
        first, _ = network.rpn(
            theirs.image_list.ImageList(batch["image"], [task.size] * 3),
            network.backbone(batch["image"]),
            [{"boxes": torch.ones(1, 4)}] * 3,
        )
        count = min(24, len(first[0]))
        torch.testing.assert_close(best[0, :count], first[0][:count])


def test_images_without_any_proposal() -> None:
    task = detection()
    network = build(task, **NETWORK)
    batch = ready(task, 0, 3)
    nothing = batch | {"proposals": torch.zeros(2, 24, 4)}
    rows = task.call(network, nothing).logits
    absent = proposals(task, rows)
    assert not absent.references.any()
    assert torch.equal(absent.classes.softmax(2), torch.eye(4)[0].expand(2, 24, 4))
    losses = task.losses(rows, nothing)
    assert losses["classification"] == losses["box"] == 0
    assert losses["objectness"] > 0
    assert all(s.isfinite().all() for s in slopes(losses, network))
    assert task.per_sample(rows, batch)[0].tolist() == [[0.0] * 3] * 2
    mine, theirs_ = task.at_proposals(rows, rows)
    assert mine.shape == theirs_.shape == (0, 4)


def test_given_proposals_are_taken_as_they_are() -> None:
    task = detection()
    network = build(task, **NETWORK)
    batch = ready(task, 1, 2)
    given = torch.zeros(2, 24, 4)
    given[:, 3:9] = torch.tensor([2.0, 3, 19, 21]) + torch.arange(6.0)[:, None]
    rows = task.call(network, batch | {"proposals": given}).logits
    assert torch.equal(proposals(task, rows).references, given)
    said = proposals(task, rows).classes.softmax(2)
    assert (said[..., 0] < 1).sum(1).tolist() == [6, 6]
    with pytest.raises(ShapeError, match=r"proposals .*\(2, 7, 4\) must be \(2, 24, 4\)"):
        task.call(network, batch | {"proposals": given[:, :7]})


def test_rows_without_a_proposal_are_as_if_absent() -> None:
    values = []
    for kept in (6, 24):
        task = detection(proposals=kept)
        networks = build(task, **NETWORK), build(task, **NETWORK | {"channels": 64})
        given = torch.zeros(2, kept, 4)
        given[:, :6] = torch.tensor([2.0, 3, 19, 21]) + torch.arange(6.0)[:, None]
        batch = ready(task, 1, 2) | {"proposals": given}
        rows = [task.call(network, batch).logits for network in networks]
        values.append(DetectionKDLoss(activation="softmax")(*rows))
    torch.testing.assert_close(*values)
    assert values[0] > 0


@pytest.mark.parametrize(("design", "fits"), [
    ("faster_rcnn", "softmax"), ("ssdlite", "softmax"), ("fcos", "sigmoid"),
])  # fmt: skip
def test_a_loss_of_rows_must_know_of_the_background(design: str, fits: str) -> None:
    task = Detection(SQUARES, detector=design)  # type: ignore[arg-type]
    network = task.build_model("small_cnn")
    for given in ("sigmoid", "softmax"):
        asked = [Term(DetectionKDLoss(activation=given))]
        if given == fits:
            Distillation(network, network, asked, task=task)
            continue
        with pytest.raises(RecipeError, match=f"has activation={given!r}.*`activation: {fits}`"):
            Distillation(network, network, asked, task=task)


def terms(*kinds: str) -> list[Term]:
    known = {
        "rows": Term(DetectionKDLoss(activation="softmax")),
        "proposals": Term(KDLoss(2.0), at="proposals"),
        "objects": Term(SPLoss(), student=LEVEL, teacher=LEVEL, at="objects"),
    }
    return [known[kind] for kind in kinds]


def distilled(task: Detection, *kinds: str, norm: str = "group", **options: Any) -> Distillation:
    student = build(task, norm=norm, **NETWORK)
    teacher = build(task, seed=5, **NETWORK)
    return Distillation(student, teacher, terms(*kinds), task=task, **options)


def test_the_teacher_looks_where_the_student_does() -> None:
    task = detection()
    system = distilled(task, "rows", "proposals", norm="batch")
    assert "the student's proposals" in system.needs_live_teacher()
    before = {name: value.clone() for name, value in system.student.state_dict().items()}
    batch = ready(task)
    seen = system.views(batch, NOW)
    assert not seen["proposals"].requires_grad
    assert system.student.training
    after = system.student.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    said = system.observe(seen).logits
    teacher: Any = system.teacher
    taught = teacher(seen).logits
    assert torch.equal(proposals(task, said).references, seen["proposals"])
    assert torch.equal(proposals(task, taught).references, seen["proposals"])
    assert torch.equal(proposals(task, task.call(system.student, batch).logits).references,
                       seen["proposals"])  # fmt: skip
    own = teacher(batch).logits
    with pytest.raises(ShapeError, match="speak of other places of the image"):
        task.at_proposals(said, own)
    mine, theirs_ = task.at_proposals(said, taught)
    assert mine.shape == theirs_.shape
    assert len(mine) == int(seen["proposals"].any(2).sum())  # of fewer than 32 of an image, all
    for kind in ("rows", "proposals"):
        _, found, _ = distilled(task, kind)(batch, NOW)
        assert all(value > 0 for value in found.values())


def test_who_compares_features_keeps_the_teacher_s_answers() -> None:
    task = detection()
    system = distilled(task, "objects")
    batch = ready(task)
    assert system.views(batch, NOW) is batch
    assert not system.needs_live_teacher()
    assert Task.shared(task, system.student, batch) is batch
    dense = detection(detector="fcos", anchor_scale=4.0, proposals=128)
    assert dense.shares == ""
    assert dense.shared(system.student, batch) is batch


def test_the_surest_of_many_proposals_are_compared() -> None:
    task = detection(proposals=40)
    rows, _ = made_up((1, 1))
    rows = torch.cat((rows, rows), 1)
    rows[0, 126:] = 0  # 6 of 40 places are left
    rows[1, -40:, 0] = torch.arange(40.0)  # the background's
    mine, other = task.at_proposals(rows, rows + torch.tensor([1.0] * 4 + [0] * 9))
    assert mine.shape == (6 + 32, 4)
    torch.testing.assert_close(other, mine + 1)
    surest = rows[1, -40:, :4].softmax(1)[:, 1:].amax(1).topk(32).indices
    assert torch.equal(mine[6:], rows[1, -40:, :4][surest])


@pytest.mark.parametrize("kind", ["rows", "none"])
def test_pieces_make_a_whole(kind: str) -> None:
    found = []
    for pieces in (1, 8):
        task = detection()
        kinds = () if kind == "none" else ("rows", "proposals", "objects")
        system = distilled(task, *kinds)
        config = FitConfig(steps=2, batch_size=8, accumulate=pieces, lr=1e-2, optimizer="sgd",
                           device="cpu", threads=1)  # fmt: skip
        fit(system, task, config, train=task.splits["train"], test=None)
        found.append([p.detach().clone() for p in system.student.parameters()])
    untouched = build(detection(), norm="group", **NETWORK).parameters()
    assert all(not torch.equal(a, b) for a, b in zip(found[0], untouched, strict=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_what_people_do_not_see_is_learnt_too(norm: str) -> None:
    task = detection()
    student = build(task, norm=norm, **NETWORK)
    teacher = build(task, seed=5, **NETWORK)
    system = IKD(student, teacher, terms("rows", "proposals"), task=task, alpha=0.01, online=True)
    batch = ready(task)
    seen = system.views(batch, NOW)
    assert {"proposals", "adversarial"} <= set(seen)
    teacher.eval()

    def loss(images: Tensor) -> Tensor:
        shown = task.pseudo_labelled(batch, teacher) | {"image": images}
        return task.class_loss(task.call(teacher, shown).logits, shown)

    with torch.no_grad():
        assert loss(seen["adversarial"]) > loss(batch["image"])
    total, found, _ = system(batch, NOW)
    assert set(found) == {"task", "detection_kd", "kd", "adversarial"}
    assert all(value > 0 for value in found.values())
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


def test_pseudo_labels_are_learnt_from() -> None:
    task = detection()
    teacher = build(task, seed=5, **NETWORK)
    nn.init.normal_(teacher.roi_heads.box_predictor.cls_score.weight, std=3)
    system = PseudoLabel(build(task, **NETWORK), teacher, task=task)
    batch = ready(task, 3, 8)
    seen = system.views(batch, NOW)
    assert (seen["labels"] >= 0).any()
    total, _, _ = system(batch, NOW)
    assert total > 0


def test_what_cannot_be_says_so() -> None:
    with pytest.raises(RecipeError, match="proposals=0 must be 1 or more"):
        detection(proposals=0)
    with pytest.raises(RecipeError, match="Only 'faster_rcnn' takes `proposals`, not 'fcos'"):
        detection(detector="fcos", anchor_scale=4, proposals=7)
    with pytest.raises(RecipeError, match="Only 'faster_rcnn' takes `box_width`, not 'fcos'"):
        detection(detector="fcos", anchor_scale=4, proposals=128).build_model(
            "small_cnn", box_width=8
        )
    task = detection()
    network = build(task, **NETWORK).eval()
    nn.init.constant_(network.rpn.head.cls_logits.bias, torch.nan)
    with pytest.raises(DataError, match="answers with NaN"), torch.no_grad():
        task.respond(network, ready(task))
