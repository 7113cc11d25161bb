"""LD in a recipe: distributions of boxes, compared at the locations that find objects."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from tests.systems.scenes import LEVEL, TinyScenes
from tests.systems.tiny import TinyPictureTask, batch_of, conv_net, conv_teacher
from tests.trajectory.processes import in_two_processes
from tests.trajectory.whole_runs import losses
from torch import Tensor, nn

from congener.cli import main
from congener.errors import RecipeError
from congener.losses import LDLoss, ld_loss
from congener.systems import Distillation
from congener.task import Task
from congener.tasks.detection.rows import split_rows
from congener.types import Batch, Progress, Term

NOW = Progress(0, 1, 0)
EDGES = "head.regression_head.distribution"


def detector(width: int, bins: int = 6, **options: Any) -> Any:
    torch.manual_seed(4)
    network = TinyScenes(**options).build_model(
        "small_cnn", norm="none", widths=(width,) * 3, levels=1, channels=32, convolutions=1,
        **({"bins": bins} if bins else {}),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(width)
    for layer in (
        network.head.regression_head.bbox_reg,
        network.head.classification_head.cls_logits,
    ):
        nn.init.normal_(layer.weight, std=0.05, generator=generator)
    nn.init.constant_(network.head.classification_head.cls_logits.bias, -1.0)
    return network


def build(*, loss: nn.Module | None = None, **options: Any) -> Distillation:
    term = Term(loss or LDLoss(), 1.0, EDGES, EDGES, **options)
    return Distillation(detector(8), detector(16), [term], task=TinyScenes())


def scenes(task: Task, count: int = 12) -> Batch:
    return task.prepare(batch_of(task, count, "train"), train=False, seed=0, epoch=0)


def with_labels(batch: Batch, label: int, images: Any = slice(None)) -> Batch:
    labels = batch["labels"].clone()
    labels[images] = label
    return dict(batch) | {"labels": labels}


def gradients(system: Distillation, batch: Batch) -> tuple[Tensor, Tensor, set[str]]:
    """The term, what it asks of the student's weights, and whose that are."""
    system.zero_grad()
    value = system(batch, NOW)[1]["ld"]
    value.backward()
    named = [
        (n, p.grad.flatten()) for n, p in system.student.named_parameters() if p.grad is not None
    ]
    return value.detach(), torch.cat([g for _, g in named]), {n for n, g in named if g.any()}


def near_objects(batch: Batch, stride: int) -> Tensor:
    """FCOS's rule of a single level: within a box, and at most 1½ strides off its middle."""
    side = 32 // stride
    found = torch.zeros(len(batch["labels"]), side * side, dtype=torch.bool)
    for image in range(len(found)):
        each = (batch[k][image].tolist() for k in ("boxes", "labels", "crowd"))
        for box, label, crowd in zip(*each, strict=True):
            for place in range(side * side):
                x, y = stride * (place % side), stride * (place // side)
                inside = box[0] < x < box[2] and box[1] < y < box[3]
                off = max(abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2))
                found[image, place] |= label >= 0 and not crowd and inside and off < 1.5 * stride
    return found


def test_ld_compares_the_locations_that_find_objects() -> None:
    system = build()
    task = system.task
    batch = scenes(task)
    crowd = batch["crowd"].clone()
    crowd[2, 0] = True
    batch = dict(batch) | {"crowd": crowd}
    assert system.teacher is not None
    mine, theirs = system.observe(batch), system.teacher(batch)
    stride = 32 // int(mine.features[EDGES].shape[1] ** 0.5)
    found = near_objects(batch, stride)
    assert 5 < found.sum() < found.numel() / 2
    assert found[2].any()
    scores = split_rows(mine.logits).classes.sigmoid().amax(2)
    expected = ld_loss(
        mine.features[EDGES][found], theirs.features[EDGES][found], scores[found].detach()
    )
    value, slopes, whose = gradients(system, batch)
    torch.testing.assert_close(value, expected.detach())
    assert value > 0
    assert slopes.isfinite().all()
    assert "head.regression_head.bbox_reg.weight" in whose
    assert not {name for name in whose if "classification" in name or "ctrness" in name}


def test_where_nobody_annotated_the_teacher_tells() -> None:
    system = build()
    batch = with_labels(scenes(system.task), -100, slice(6, None))
    assert system.teacher is not None
    mine, theirs = system.observe(batch), system.teacher(batch)
    known = system.task.locations(mine.logits, theirs.logits, batch)
    assert known is not None
    found, scores = known
    sure = split_rows(theirs.logits).classes.sigmoid().amax(2) >= 0.5
    assert 0 < sure[6:].sum() < sure[6:].numel()
    assert torch.equal(found[6:], sure[6:])
    whole = system.task.locations(mine.logits, theirs.logits, scenes(system.task))
    assert whole is not None
    assert torch.equal(found[:6], whole[0][:6])
    assert not torch.equal(found[6:], whole[0][6:])
    torch.testing.assert_close(scores, split_rows(mine.logits).classes.sigmoid().amax(2))
    assert not scores.requires_grad


@pytest.mark.parametrize("label", [-1, -100])
def test_no_location_is_a_defined_loss(label: int) -> None:
    system = build()
    batch = with_labels(scenes(system.task), label)
    networks: tuple[Any, ...] = system.student, system.teacher.model  # type: ignore[union-attr]
    for network in networks:
        nn.init.constant_(network.head.classification_head.cls_logits.bias, -20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, slopes, whose = gradients(system, batch)
    assert value == 0
    assert not whose
    assert slopes.isfinite().all()


def _share(rank: int, batch: Batch) -> tuple[Tensor, Tensor]:
    """The first has all objects."""
    PartialState(cpu=True)
    rows = slice(0, 8) if rank == 0 else slice(8, 12)
    return gradients(build(), {name: value[rows] for name, value in batch.items()})[:2]


def test_ranks_agree_with_one_process_where_one_has_no_object(tmp_path: Path) -> None:
    system = build()
    batch = with_labels(scenes(system.task), -1, slice(8, 12))
    value, slopes, _ = gradients(system, batch)
    (a, mine), (b, theirs) = in_two_processes(tmp_path, _share, batch)
    assert value > 0
    torch.testing.assert_close(a, value)
    torch.testing.assert_close(b, value)
    torch.testing.assert_close((mine + theirs) / 2, slopes, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "tap", "says"),
    [
        (6, 6, LEVEL, r"distributions of edges, \(batch, 16, 4, bins\), .* with `bins: 17`"),
        (6, 7, EDGES, r"taps give \(1, 16, 4, 6\) and \(1, 16, 4, 7\)"),
        (6, 6, None, "needs a `student` tap"),
    ],
)
def test_what_is_no_distribution_is_refused(
    student: int, teacher: int, tap: Any, says: str
) -> None:
    term = Term(LDLoss(), 1.0, tap, tap)
    with pytest.raises(RecipeError, match=says):
        Distillation(detector(8, student), detector(16, teacher), [term], task=TinyScenes())


def test_other_networks_have_no_locations() -> None:
    says = "take the task 'detection' with the detector 'fcos'"
    level = Term(LDLoss(), 1.0, LEVEL, LEVEL)
    student, teacher = (detector(width, 0, detector="retinanet") for width in (8, 16))
    with pytest.raises(RecipeError, match=says):
        Distillation(student, teacher, [level], task=TinyScenes(detector="retinanet"))
    layer = Term(LDLoss(), 1.0, "layer1", "layer1")
    with pytest.raises(RecipeError, match=says):
        Distillation(conv_net(), conv_teacher(), [layer], task=TinyPictureTask())


RECIPE = """
task: {name: detection, data: {name: digit_scenes, scenes: 60, test: 20, labelled: 40}}
teacher: {name: small_cnn, channels: 32, bins: 17, train: {steps: 3, batch_size: 8, device: cpu}}
student: {name: small_cnn, widths: [8, 12, 16, 16], channels: 32, convolutions: 1, bins: 17}
arms:
  ld: {terms: [{loss: detection_kd}, {loss: ld, weight: 0.25, student: TAP, teacher: TAP}]}
train: {steps: 4, batch_size: 8, lr: 0.01, log_every: 1, threads: 1, device: cpu}
alone: false
""".replace("TAP", EDGES)


def test_a_recipe_distils_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    monkeypatch.setattr("sys.argv", ["congener", "run", str(recipe), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    logged = losses(out, "ld/0")
    assert len(logged) == 4
    assert all(each["ld"] > 0 for each in logged)
    assert json.loads((out / "metrics.json").read_text())
