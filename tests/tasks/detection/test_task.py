"""Detection: batches, preparation, what a network says, labels made up, anchors, and refusals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.systems.scenes import TinyScenes, detector, squares
from torch import Tensor, nn
from torch.utils.data import Dataset

from congener.engine import FitConfig, fit, predict
from congener.errors import DataError, NonFiniteLossError, RecipeError
from congener.systems.distillation import Distillation
from congener.task import Task
from congener.tasks.detection import Detection, models
from congener.tasks.detection.geometry import moved_boxes, moved_images
from congener.tasks.detection.metrics import BoxMetrics
from congener.tasks.detection.rows import split_rows
from congener.types import Batch

SQUARES = squares(20, 10)
NETWORK: dict[str, Any] = {"widths": (8, 8, 8), "levels": 1, "channels": 32, "convolutions": 1}


def detection(**options: Any) -> Detection:
    return Detection(SQUARES, **options)


def raw_batch(task: Detection, *rows: int) -> Batch:
    data: Any = task.splits["train"]
    return task.collate(data.__getitems__(list(rows or range(8))))


def ready(task: Detection, *rows: int, train: bool = False, epoch: int = 0) -> Batch:
    return task.prepare(raw_batch(task, *rows), train=train, seed=1, epoch=epoch)


def with_crowd(batch: Batch) -> Batch:
    """The first box of each image is a region that does not count."""
    crowd = torch.zeros_like(batch["crowd"])
    crowd[:, 0] = batch["labels"][:, 0] >= 0
    return batch | {"crowd": crowd}


def test_what_a_task_knows() -> None:
    task = detection()
    assert (task.categories, task.size) == (("red", "green", "blue"), (32, 32))
    assert task.normalisation == (SQUARES.mean, SQUARES.std)
    assert set(task.splits) == {"train", "test"}
    assert task.labelled is not None
    assert task.labelled.tolist() == [n for n in range(20) if n % 5 != 3]
    assert detection().labelled.equal(task.labelled)  # type: ignore[union-attr]
    assert Detection(squares(20, 10, unlabelled=False)).labelled is None
    assert not task.augments
    assert detection(augment="flip").augments
    assert set(Detection(replace(SQUARES, teacher=SQUARES.train)).splits) == {
        "train", "test", "teacher",
    }  # fmt: skip


def test_pixels_are_normalised_by_the_data_s_mean_and_deviation() -> None:
    task = detection()
    raw = raw_batch(task)
    before = {key: value.clone() for key, value in raw.items()}
    batch = task.prepare(raw, train=True, seed=0, epoch=0)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (SQUARES.mean, SQUARES.std))
    torch.testing.assert_close(batch["image"], (raw["image"] / 255 - mean) / std)
    assert all(torch.equal(raw[key], before[key]) for key in before)
    assert all(torch.equal(batch[key], raw[key]) for key in raw if key != "image")
    assert torch.equal(batch["geometry"], torch.tensor([[0.0, 0, 0, 32, 32]]).expand(8, 5))


def test_images_and_boxes_move_alike_in_training_only() -> None:
    task = detection(augment={"name": "crop_flip", "scale": 0.5})
    raw = raw_batch(task)
    batch = task.prepare(raw, train=True, seed=1, epoch=2)
    geometry = batch["geometry"]
    assert len(set(map(tuple, geometry.tolist()))) > 4
    still = detection().normalised
    assert torch.equal(batch["image"], still(moved_images(raw["image"], geometry)))
    boxes, labels = moved_boxes(raw["boxes"], raw["labels"], geometry, task.size)
    assert torch.equal(batch["boxes"], boxes)
    assert torch.equal(batch["labels"], labels)
    assert not torch.equal(boxes, raw["boxes"])
    assert (labels == -100).sum() == (raw["labels"] == -100).sum() > 0
    test = task.prepare(raw, train=False, seed=1, epoch=2)
    assert torch.equal(test["image"], still(raw["image"]))
    assert torch.equal(test["boxes"], raw["boxes"])
    again = task.prepare(raw, train=True, seed=1, epoch=3)
    assert not torch.equal(again["geometry"], geometry)


def test_an_image_moves_alike_in_any_batch() -> None:
    task = detection(augment="crop_flip")
    batch = ready(task, train=True)
    alone = ready(task, 5, train=True)
    for key in ("image", "boxes", "labels", "geometry"):
        assert torch.equal(alone[key][0], batch[key][5])


def test_a_crowd_moves_with_its_image_and_leaves_with_its_box() -> None:
    task = detection(augment={"name": "crop_flip", "scale": 0.3, "flip": 1.0})
    raw = with_crowd(raw_batch(task, *range(20)))
    batch = task.prepare(raw, train=True, seed=0, epoch=0)
    gone = raw["crowd"] & (batch["labels"] < 0)
    assert gone.any()
    assert torch.equal(batch["crowd"], raw["crowd"] & ~gone)
    assert batch["crowd"].any()
    assert (batch["boxes"][gone] == 0).all()


def test_a_crowd_is_no_object_to_an_augmentation() -> None:
    task = detection(augment={"name": "sample_specific", "small": 1.0, "noise": 1.0, "flip": 0.0})
    raw = raw_batch(task, 1)  # with one object, which is larger than a pixel
    crowded = with_crowd(raw)
    cropped = task.prepare(raw, train=True, seed=0, epoch=0)
    noisy = task.prepare(crowded, train=True, seed=0, epoch=0)
    whole = torch.tensor([[0.0, 0, 0, 32, 32]])
    assert not torch.equal(cropped["geometry"], whole)
    assert torch.equal(noisy["geometry"], whole)
    assert not torch.equal(noisy["image"], task.prepare(raw, train=False, seed=0, epoch=0)["image"])
    assert noisy["crowd"].any()


def test_other_images_of_the_samples_move_as_theirs_did() -> None:
    task = detection(augment="crop_flip")
    raw = raw_batch(task)
    batch = task.prepare(raw, train=True, seed=1, epoch=0)
    negative = 255 - raw["image"]
    moved = task.moved(task.normalised(negative), batch)
    wanted = task.prepare(raw | {"image": negative}, train=True, seed=1, epoch=0)["image"]
    torch.testing.assert_close(moved, wanted, rtol=0, atol=0.03)  # by bytes, and by floats
    still = ready(task)
    assert torch.equal(task.moved(still["image"], still), still["image"])


def test_objects_are_the_true_boxes_that_count() -> None:
    task = detection()
    batch = ready(task)
    counts = [len(each) for each in task.objects(batch)]
    assert counts == [0, 1, 2, 0, 1, 2, 0, 1]  # of which the fourth is not annotated
    assert torch.equal(task.objects(batch)[2], batch["boxes"][2])
    crowded = task.objects(with_crowd(batch))
    assert [len(each) for each in crowded] == [0, 0, 1, 0, 0, 1, 0, 0]
    assert torch.equal(crowded[5], batch["boxes"][5, 1:])


@pytest.mark.parametrize("design", models.DESIGNS)
def test_an_image_without_objects_is_learnt_from_and_one_not_annotated_is_not(design: str) -> None:
    task = detection(detector=design)
    torch.manual_seed(0)
    options = {"widths": (8, 8, 8)} if design == "ssdlite" else NETWORK
    network = task.build_model("small_cnn", **options).eval()
    parameters = list(network.parameters())

    def learnt(*rows: int) -> tuple[float, float]:
        batch = ready(task, *rows)
        loss = task.loss(task.call(network, batch).logits, batch)
        slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)
        return loss.item(), sum(s.abs().sum().item() for s in slopes if s is not None)

    empty, unknown = learnt(0), learnt(3)
    assert unknown == (0, 0)
    assert (empty[1] > 0) == (design != "ssdlite")
    both, without = learnt(1, 2, 3), learnt(1, 2)
    assert both == pytest.approx(without, rel=1e-5)
    assert without[1] > 0


def test_the_loss_is_the_sum_of_its_parts() -> None:
    task = detection()
    batch = ready(task)
    logits = task.logits(task.call(detector(), batch))
    parts = task.losses(logits, batch)
    assert set(parts) == {"classification", "box", "quality"}
    torch.testing.assert_close(task.loss(logits, batch), torch.stack([*parts.values()]).sum())
    assert torch.equal(task.class_loss(logits, batch), parts["classification"])


class Says(nn.Module):
    """Finds what it is told to."""

    def __init__(self, *found: list[tuple[int, float, tuple[float, ...]]]) -> None:
        super().__init__()
        self.found = found


class Told(Detection):
    def respond(self, model: Any, batch: Batch) -> list[dict[str, Tensor]]:
        assert set(batch) == {"image"}
        assert len(batch["image"]) == len(model.found)
        assert not torch.is_grad_enabled()
        return [
            {
                "labels": torch.tensor([label for label, _, _ in each], dtype=torch.int64),
                "scores": torch.tensor([score for _, score, _ in each]),
                "boxes": torch.tensor([box for _, _, box in each]).view(-1, 4),
            }
            for each in model.found
        ]


BOX = (1.0, 2.0, 11.0, 12.0)


def test_images_without_annotation_get_what_a_detector_is_sure_of() -> None:
    task = Told(SQUARES)
    batch = with_crowd(ready(task, 2, 3, 4, 8, 13))
    batch["crowd"][1] = True
    before = {key: value.clone() for key, value in batch.items()}
    teacher = Says(
        [(0, 0.9, BOX), (1, 0.5, BOX), (2, 0.8, BOX), (2, 0.49, BOX)], [], [(1, 0.2, BOX)]
    )
    found = task.pseudo_labelled(batch, teacher)
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert found["labels"].tolist() == [
        [*before["labels"][0].tolist(), -1], [0, 1, 2], [*before["labels"][2].tolist(), -1],
        [-1, -1, -1], [-1, -1, -1],
    ]  # fmt: skip
    assert found["boxes"].shape == (5, 3, 4)
    assert torch.equal(found["boxes"][1], torch.tensor([BOX] * 3))
    assert torch.equal(found["boxes"][0, :2], before["boxes"][0])
    assert (found["boxes"][3:] == 0).all()
    assert not found["crowd"][1].any()
    assert torch.equal(found["crowd"][[0, 2], :2], before["crowd"][[0, 2]])
    known = ready(task, 0, 1)
    assert task.pseudo_labelled(known, Says()) is known


def test_what_is_sure_of_nothing_makes_images_empty() -> None:
    task = Told(SQUARES)
    batch = ready(task, 3)
    found = task.pseudo_labelled(batch, Says([]))
    assert found["labels"].tolist() == [[-1, -1]]
    assert (batch["labels"] == -100).all()


@pytest.mark.parametrize("design", models.DESIGNS)
def test_pseudo_labels_are_classes_of_the_data(design: str) -> None:
    task = detection(detector=design)
    torch.manual_seed(2)
    options = {"widths": (8, 8, 8)} if design == "ssdlite" else NETWORK
    network = task.build_model("small_cnn", **options).eval()
    last = network.roi_heads if design == "faster_rcnn" else network.head.classification_head
    for layer in last.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.7)
    found = task.pseudo_labelled(ready(task, 3, 8, 13, 18), network)
    assert found["labels"].max() in (0, 1, 2)
    assert found["labels"].min() >= -1
    assert (found["labels"] >= 0).any()


@pytest.mark.parametrize("design", models.DESIGNS)
def test_a_row_for_each_image_tells_its_classes(design: str) -> None:
    task = detection(detector=design, **({"proposals": 5} if design == "faster_rcnn" else {}))
    options = {"widths": (8, 8, 8)} if design == "ssdlite" else NETWORK
    network = task.build_model("small_cnn", **options)
    batch = ready(task, 0, 1, 2, 3)
    logits = task.call(network.eval(), batch).logits
    last = task.proposals if design == "faster_rcnn" else 0
    assert not last or logits[:, -last:].any(2).all()
    classes = split_rows(logits[:, -last:]).classes
    background = design in ("ssdlite", "faster_rcnn")
    chances = classes.softmax(2)[..., 1:] if background else classes.sigmoid()
    rows, labels = task.per_sample(logits, batch)
    assert torch.equal(rows, chances.amax(1))
    assert rows.shape == (4, 3)
    first = batch["labels"][:, 0].tolist()
    assert labels.tolist() == [-100, first[1], first[2], -100]
    second = int(batch["labels"][2, 1])
    assert task.per_sample(logits, with_crowd(batch))[1].tolist() == [-100, -100, second, -100]


class Widening(Dataset[Any]):
    """As many rows of boxes as the fullest image of a batch, as where images are in files."""

    def __len__(self) -> int:
        return 6

    def __getitems__(self, rows: list[int]) -> Batch:
        batch = SQUARES.test.__getitems__(rows)
        width = max(1, int((batch["labels"] >= 0).sum(1).max()))
        return batch | {key: batch[key][:, :width] for key in ("boxes", "labels", "crowd")}


def test_a_data_set_is_looked_through_whatever_the_rows_of_its_batches() -> None:
    task = detection()
    found = predict(task.build_model("small_cnn", **NETWORK), task, Widening(), batch_size=1)
    assert found.labels.shape == (6,)
    assert found.logits.shape == (6, 3)


def test_boxes_of_a_place_of_ssdlite_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"depend on all its levels.*'fcos', 'retinanet' or"):
        detection(detector="ssdlite").anchors(torch.zeros(1, 8, 8, 8))


def test_metrics_are_those_of_the_pack() -> None:
    found = detection().metrics(torch.device("cpu"))
    assert isinstance(found, BoxMetrics)
    assert isinstance(TinyScenes(), Task)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"detector": "fcs"}, "detector must be one of 'fcos', .* 'faster_rcnn', not 'fcs'"),
        ({"data": "digit_scene"}, "no data set named 'digit_scene'; did you mean 'digit_scenes'"),
        ({"data": {"scenes": 3}}, "without a 'name'"),
        ({"data": {"name": "digit_scenes", "scene": 3}}, "'scene'; did you mean 'scenes'"),
        ({"augment": "crop"}, "no augmentation named 'crop'; did you mean 'crop_flip'"),
        ({"augment": {"name": "flip", "flips": 1}}, "no argument 'flips'; did you mean 'flip'"),
        ({"augment": {"name": "flip", "flip": 2.0}}, "flip=2.0 must be from 0 to 1"),
        ({"augment": {"name": "flip", "flip": "x"}}, "'flip' .* expected a number"),
        ({"augment": {"name": "flip", "seed": 1}}, "takes no argument 'seed'"),
        ({"anchor_scale": 2.0}, "Only 'retinanet' and 'faster_rcnn' take .*, not 'fcos'"),
        ({"detector": "ssdlite", "anchor_scale": 2.0}, "Only 'retinanet' and .* not 'ssdlite'"),
        ({"detector": "retinanet", "anchor_scale": 0.5}, "anchor_scale=0.5 must be 1 or more"),
        ({"detector": "retinanet", "anchor_scale": float("nan")}, "must be 1 or more"),
        ({"detector": "retinanet", "anchor_scale": float("inf")}, "must be 1 or more"),
    ],
)
def test_a_task_that_cannot_be_says_why(options: dict[str, Any], says: str) -> None:
    with pytest.raises((RecipeError, DataError), match=says):
        Detection(**{"data": SQUARES, **options})


def item(**changes: Any) -> dict[str, Any]:
    sample = {
        "image": torch.zeros(3, 32, 32, dtype=torch.uint8), "boxes": torch.zeros(2, 4),
        "labels": torch.full((2,), -1), "crowd": torch.zeros(2, dtype=torch.bool), "index": 0,
    }  # fmt: skip
    found = sample | changes
    return {key: value for key, value in found.items() if value is not None}


def test_samples_are_stacked() -> None:
    batch = detection().collate([item(), item(index=4)])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["index"].tolist() == [0, 4]
    assert batch["labels"].tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([item(), item(image=torch.zeros(3, 32, 30, dtype=torch.uint8))], "images of one size"),
        ([item(), item(labels=torch.full((3,), -1))], "as many rows of boxes"),
        ([item(crowd=None)], "no 'crowd'; expected mappings with the keys"),
        ([item(index=None)], "no 'index'; expected"),
        ([item(image=torch.zeros(3, 32, 32))], r"type torch.float32 .* expected bytes"),
        ([item(image=torch.full((3, 32, 32), torch.nan))], r"type torch.float32 .* bytes"),
        ([item(image=torch.zeros(3, 32, 48, dtype=torch.uint8))], r"\(3, 32, 48\); .*size of the"),
        ([item(image=torch.zeros(1, 32, 32, dtype=torch.uint8))], r"shape \(1, 32, 32\)"),
    ],
)
def test_samples_that_make_no_batch_say_why(samples: list[Any], says: str) -> None:
    with pytest.raises(DataError, match=f"(?s){says}"):
        detection().collate(samples)


def test_a_network_that_is_no_detector_says_so() -> None:
    with pytest.raises(DataError, match="returned Tensor; expected what a detector says"):
        detection().logits(torch.zeros(2, 3))


def broken() -> nn.Module:
    network = detector()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    return network


def test_a_diverged_network_finds_no_peace() -> None:
    """Its scores are above no threshold, so that it would seem to find nothing."""
    task = detection()
    with pytest.raises(DataError, match="answers with NaN: its weights, or the images"):
        task.respond(broken().eval(), ready(task))
    config = FitConfig(steps=1, batch_size=4, lr=0.1, device="cpu", threads=1)
    system = Distillation(broken(), None, [], task=task)
    with pytest.raises(NonFiniteLossError, match="'task' became nan at step 0"):
        fit(system, task, config, train=task.splits["train"], test=None)
