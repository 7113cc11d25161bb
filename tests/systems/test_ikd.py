"""Inconsistent knowledge distillation: its adversarial term, its images, and its levels."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.systems.scenes import LEVEL, TinyScenes, squares
from tests.systems.tiny import TinyPictureTask, conv_net, conv_teacher, prepared_batch
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig, fit, prepare
from congener.engine.accumulate import accumulated_step
from congener.errors import RecipeError, ShapeError, StaleCache
from congener.losses import DetectionKDLoss, FGFILoss, KDLoss
from congener.ops.adversarial import Attack, attacked
from congener.systems import IKD, Distillation
from congener.tasks.detection import Detection
from congener.teachers import TeacherStore, fingerprint
from congener.types import Batch, Progress, Term

NOW, LATER = Progress(0, 9, 0), Progress(5, 9, 1)
CONFIG = FitConfig(steps=4, batch_size=16, lr=5e-3, threads=1, device="cpu")
TWO = [LEVEL, "backbone.fpn.layer_blocks.1"]


def network(width: int = 8, *, seed: int = 4, norm: str = "none", **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    options = {"levels": 2, "channels": 32, "convolutions": 1} | options
    return TinyScenes(20).build_model("small_cnn", widths=(width,) * 3, norm=norm, **options)


def ikd(
    task: Any = None, student: nn.Module | None = None, teacher: nn.Module | None = None,
    terms: Any = (), **options: Any,
) -> IKD:  # fmt: skip
    options = {"alpha": 1e-3, "attack": {"steps": 2}, "online": True} | options
    return IKD(
        student or network(), teacher or network(16, seed=5), terms,
        task=task or TinyScenes(20), **options,
    ).train()  # fmt: skip


def terms() -> list[Term]:
    return [
        Term(DetectionKDLoss(), 0.5), Term(FGFILoss(32, 32), 0.1, LEVEL, LEVEL, name="near"),
    ]  # fmt: skip


def levels_of(net: nn.Module, images: Tensor) -> list[Tensor]:
    return list(net.backbone(images).values())


def adversarial(system: IKD, batch: Batch) -> float:
    return system(batch, NOW)[1]["adversarial"].item()


# The term


def test_of_unchanged_images_it_is_plain_mimicry_of_features() -> None:
    system = ikd(attack={"steps": 0}, teacher=network(16, seed=5, channels=64))
    batch = prepared_batch(system.task, 6)
    teacher = system.teacher.frozen.model
    wanted = torch.zeros(())
    for mine, theirs, loss in zip(
        levels_of(system.student, batch["image"]), levels_of(teacher, batch["image"]),
        system.alignments, strict=True,
    ):  # fmt: skip
        aligned = torch.einsum("oc,nchw->nohw", loss.align.weight[:, :, 0, 0], mine)
        if loss.align.bias is not None:
            aligned = aligned + loss.align.bias[:, None, None]
        wanted = wanted + 1e-3 * (aligned - theirs).square().sum() / 6
    total, found, _ = system(batch, NOW)
    assert found["adversarial"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert total.item() == pytest.approx((found["task"] + wanted).item(), rel=1e-5)


def test_it_is_of_the_adversarial_images() -> None:
    system = ikd()
    batch = prepared_batch(system.task, 6)
    images = system.views(batch, NOW)["adversarial"]
    assert not torch.equal(images, batch["image"])
    nets = system.student, system.teacher.frozen.model
    pairs = zip(*(levels_of(net, images) for net in nets), strict=True)
    wanted = sum(1e-3 * (a - b).square().sum().item() / 6 for a, b in pairs)
    assert adversarial(system, batch) == pytest.approx(wanted, rel=1e-5)
    clean = Distillation(system.student, None, [], task=system.task)
    assert system(batch, NOW)[1]["task"].item() == pytest.approx(
        clean(batch, NOW)[0].item(), rel=1e-6
    )


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    system = ikd(student=network(), teacher=network())
    total, found, _ = system(prepared_batch(system.task, 6), NOW)
    assert found["adversarial"].item() == 0
    slopes = torch.autograd.grad(
        found["adversarial"], list(system.student.backbone.parameters()), retain_graph=True
    )
    assert not any(slope.any() for slope in slopes)
    assert total.item() == found["task"].item()


def test_levels_add_up_and_alpha_is_a_factor() -> None:
    parts = [
        adversarial(ikd(student_levels=[level], teacher_levels=[level]), BATCH) for level in TWO
    ]
    whole = adversarial(ikd(), BATCH)
    assert whole == pytest.approx(sum(parts), rel=1e-5)
    assert min(parts) > 0
    assert adversarial(ikd(alpha=3e-3), BATCH) == pytest.approx(3 * whole, rel=1e-5)


BATCH = prepared_batch(TinyScenes(20), 6)


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_pieces_are_the_whole_batch(pieces: int) -> None:
    whole, cut = (ikd(teacher=network(16, seed=5, channels=64)) for _ in range(2))
    cut.alignments.load_state_dict(whole.alignments.state_dict())
    total, wanted, _ = whole(BATCH, NOW)
    total.backward()
    found, each, _ = accumulated_step(cut, BATCH, NOW, pieces, Accelerator(cpu=True))
    assert found.item() == pytest.approx(total.item(), rel=1e-5)
    assert each.keys() == wanted.keys() == {"task", "adversarial"}
    assert each["adversarial"].item() == pytest.approx(wanted["adversarial"].item(), rel=1e-5)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"folder": "unused"}], ids=["", "folder"])
def test_without_alpha_it_is_the_distillation_it_stands_on(options: Any, tmp_path: Path) -> None:
    def trained(make: Any, **given: Any) -> list[str]:
        task, student = TinyScenes(40), network(norm="batch")
        teacher = network(16, seed=5, channels=32)
        torch.manual_seed(0)
        system = make(student, teacher, terms(), task=task, task_weight=0.7, **given)
        prepare(system, task, CONFIG)
        fit(system, task, CONFIG, train=task.splits["train"], test=None)
        return [fingerprint(system.student), str(torch.get_rng_state().sum().item())]

    options = {name: tmp_path / value for name, value in options.items()}
    assert trained(IKD, alpha=0.0, **options) == trained(Distillation)
    assert not any(tmp_path.iterdir())


# Who runs, and when


@pytest.fixture
def rows() -> dict[str, list[int]]:
    """How many images each network's body was given, call by call."""
    return {"student": [], "teacher": []}


def watched(system: IKD, seen: dict[str, list[int]]) -> None:
    nets = {"student": system.student, "teacher": system.teacher.frozen.model}
    for name, net in nets.items():
        net.backbone.register_forward_hook(
            lambda _net, given, _said, name=name: seen[name].append(len(given[0]))
        )


@pytest.mark.parametrize(
    ("norm", "student"), [("none", [12]), ("group", [12]), ("batch", [6, 6])], ids=str
)
def test_one_call_where_no_layer_couples_samples(
    rows: dict[str, list[int]], norm: str, student: list[int]
) -> None:
    system = ikd(student=network(norm=norm), teacher=network(16, norm="batch"), attack={"steps": 0})
    batch = system.views(BATCH, NOW)
    watched(system, rows)
    taught = system.teacher(batch)
    assert rows["teacher"] == [12]
    system.observe(batch)
    assert rows["student"] == student
    for module in system.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    system.observe(batch)
    assert rows["student"] == [*student, 12]
    assert len(taught.logits) == 6


def test_one_call_is_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for couples in (False, True):
        monkeypatch.setattr("congener.systems.ikd._couples", lambda _net, c=couples: c)
        system = ikd(student=network(norm="group"), terms=terms())
        for loss in system.losses.values():
            for number, parameter in enumerate(loss.parameters()):
                nn.init.constant_(parameter, 0.01 * (number + 1))
        total, found, _ = system(BATCH, NOW)
        slopes = torch.autograd.grad(total, list(system.student.parameters()))
        results.append((found, slopes))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
    assert results[0][0].keys() == {"task", "detection_kd", "near", "adversarial"}


def test_the_clean_images_alone_move_running_statistics() -> None:
    system = ikd(student=network(norm="batch"))
    batch = system.views(BATCH, NOW)
    moved = {}
    for name in ("image", "adversarial"):
        net = deepcopy(system.student)
        net.backbone(batch[name])
        moved[name] = fingerprint_of_buffers(net)
    system(BATCH, NOW)
    assert fingerprint_of_buffers(system.student) == moved["image"] != moved["adversarial"]


def fingerprint_of_buffers(net: nn.Module) -> list[list[float]]:
    return [value.flatten().tolist() for value in net.buffers()]


@pytest.mark.parametrize("online", [True, False])
def test_until_an_epoch(rows: dict[str, list[int]], online: bool) -> None:
    task = TinyScenes(20)
    system = ikd(task, until=1, online=online)
    prepare(system, task, CONFIG)
    watched(system, rows)
    assert system(BATCH, NOW)[1].keys() == {"task", "adversarial"}
    assert rows["student"] == [12]
    rows["student"].clear()
    rows["teacher"].clear()
    total, found, _ = system(BATCH, LATER)
    assert found.keys() == {"task"}
    assert total.item() == found["task"].item()
    assert rows == {"student": [6], "teacher": [6]}


@pytest.mark.parametrize("online", [True, False])
def test_nothing_of_the_teacher_changes(online: bool) -> None:
    teacher = network(16, norm="batch").train()
    before = fingerprint(teacher)
    task = TinyScenes(20)
    system = ikd(task, teacher=teacher, online=online)
    prepare(system, task, CONFIG)
    system.train()(BATCH, NOW)[0].backward()
    assert fingerprint(teacher) == before
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    trained = {id(p) for p in system.parameters()}
    assert trained.isdisjoint(id(p) for p in teacher.parameters())


# Adversarial images


class Still(Detection):
    """Scenes that training shows as they are."""

    def __init__(self, augment: Any = "none", **options: Any) -> None:
        super().__init__(squares(32, 8, **options), augment=augment)


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_kept_is_what_is_made_in_each_step(folder: bool, tmp_path: Path) -> None:
    task = Still(unlabelled=False)
    batch = prepared_batch(task, 16)
    kept, online = ikd(task, online=False), ikd(task)
    prepare(kept, task, CONFIG, folder=tmp_path if folder else None)
    found, wanted = (system.views(batch, NOW)["adversarial"] for system in (kept, online))
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted.half().float() if folder else wanted)
    assert (wanted - batch["image"]).abs().max() > 0.01
    some = {k: v[[9, 2]] for k, v in batch.items()}
    assert torch.equal(kept.views(some, NOW)["adversarial"], found[[9, 2]])


@pytest.mark.parametrize("augment", ["none", "flip", "crop_flip"])
def test_they_move_as_the_clean_images_do(augment: str, tmp_path: Path) -> None:
    task = Still(augment)
    system = ikd(task, online=False, attack={"steps": 0})
    prepare(system, task, CONFIG, folder=tmp_path)
    rounding = 1 / 255 / min(task.normalisation[1])  # of bytes, which move in two passes
    for epoch in range(3):
        raw = {k: v for k, v in prepared_batch(task, 16).items() if k != "geometry"}
        raw["image"] = task.splits["train"].images[:16]
        batch = task.prepare(raw, train=True, seed=1, epoch=epoch)
        found = system.views(batch, NOW)["adversarial"]
        if augment == "crop_flip":
            assert (found - batch["image"]).abs().max() < rounding + 1e-3
        else:
            assert torch.equal(found, batch["image"].half().float())


def with_sure_boxes(monkeypatch: pytest.MonkeyPatch, score: float) -> None:
    box = {
        "boxes": torch.tensor([[4.0, 4, 20, 20], [1.0, 1, 9, 9]]),
        "labels": torch.tensor([1, 2]), "scores": torch.tensor([score, 0.49]),
    }  # fmt: skip

    def respond(_task: Any, _model: nn.Module, batch: Batch) -> Any:
        return [box] * len(batch["image"])

    monkeypatch.setattr(Detection, "respond", respond)


@pytest.mark.parametrize("score", [0.5, 0.49])
def test_without_labels_an_image_is_attacked_by_what_its_teacher_is_sure_of(
    monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    """Where it is sure of nothing, that is what it is attacked by: an image without objects."""
    task = Still()
    system = ikd(task)
    batch = prepared_batch(task, 16)
    unknown = (batch["labels"] == -100).all(1)
    assert unknown.tolist() == [number % 5 == 3 for number in range(16)]
    before = {k: v.clone() for k, v in batch.items()}
    with_sure_boxes(monkeypatch, score)
    found = system.views(batch, NOW)["adversarial"]
    assert all(torch.equal(batch[k], v) for k, v in before.items())
    labels, boxes = batch["labels"].clone(), batch["boxes"].clone()
    labels[unknown] = -1
    boxes[unknown] = 0
    if score >= 0.5:
        labels[unknown, 0] = 1
        boxes[unknown, 0] = torch.tensor([4.0, 4, 20, 20])
    known = batch | {"labels": labels, "boxes": boxes}
    teacher = system.teacher.frozen.model

    def loss(images: Tensor) -> Tensor:
        logits = task.call(teacher, {"image": images}).logits
        return task.losses(logits, known)["classification"]

    wanted = attacked(batch["image"], loss, batch["index"], seed=0, settings=Attack(steps=2))
    assert torch.equal(found, wanted)
    assert ((found != batch["image"]).flatten(1).any(1)).all()
    with torch.no_grad():
        assert loss(found) > loss(batch["image"])


def test_an_ssd_learns_nothing_of_an_empty_image_so_it_stays() -> None:
    task = Detection(squares(20, 8, unlabelled=False), detector="ssdlite")
    torch.manual_seed(0)
    nets = [
        task.build_model("small_cnn", widths=(8, 8, 16, 16), levels=2, norm="none").eval()
        for _ in range(2)
    ]
    taps = [name for name, each in nets[0].named_modules() if isinstance(each, nn.Conv2d)][3:4]
    system = ikd(task, *nets, student_levels=taps, teacher_levels=taps)
    batch = prepared_batch(task, 6)
    empty = (batch["labels"] < 0).all(1)
    moved = (system.views(batch, NOW)["adversarial"] != batch["image"]).flatten(1).any(1)
    assert empty.any()
    assert torch.equal(moved, ~empty)


def test_not_prepared_is_told() -> None:
    system = ikd(online=False)
    with pytest.raises(RecipeError, match=r"are not there; call congener\.engine\.prepare before"):
        fit(system, system.task, CONFIG, train=system.task.splits["train"], test=None)


def test_another_teacher_or_another_attack_is_refused_in_a_folder_of_ones_own(
    tmp_path: Path,
) -> None:
    task = TinyScenes(20)
    folder = tmp_path / "images"

    def ready(**options: Any) -> IKD:
        system = ikd(task, online=False, folder=folder, **options)
        prepare(system, task, CONFIG, folder=tmp_path / "stages")
        return system

    ready()
    assert ready(alpha=1.0)._read is not None  # what the images do not depend on
    assert not (tmp_path / "stages").exists()
    for options in ({"teacher": network(16, seed=6)}, {"attack": {"steps": 1}}):
        with pytest.raises(StaleCache, match="made with another teacher, other data or other set"):
            ready(**options)


def _waits(*_given: Any) -> None:
    raise AssertionError


def _prepared_here(_rank: int, folder: Path) -> tuple[Tensor, list[int]]:
    Accelerator(cpu=True)
    task = Still()
    system = ikd(task, online=False, folder=folder)
    asked: list[int] = []
    attack = system._attacker

    class Counted:
        frozen = attack.frozen

        def __call__(self, batch: Batch) -> Any:
            asked.append(len(batch["image"]))
            return attack(batch)

        def to(self, device: torch.device) -> Any:
            return attack.to(device)

    system._attacker = Counted()
    with pytest.MonkeyPatch.context() as patch:  # one that waited for the other would for ever
        patch.setattr(torch.distributed, "all_reduce", _waits)
        prepare(system, task, CONFIG)
    batch = prepared_batch(task, 32)
    return system.views(batch, NOW)["adversarial"], asked


def test_two_processes_attack_images_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None waits for what another one says about other images."""
    monkeypatch.setitem(TeacherStore.create.__func__.__kwdefaults__, "shard_bytes", 25_000)
    monkeypatch.setattr("congener.engine.answers.POLL", 0.01)
    one, _ = _prepared_here(0, tmp_path / "one")
    (first, some), (second, others) = in_two_processes(
        tmp_path / "processes", _prepared_here, tmp_path / "two"
    )
    assert torch.equal(first, one)
    assert torch.equal(second, one)
    assert 8 <= len(some) + len(others) <= 8 + 2  # files, and the shape


# Levels


def test_the_levels_of_the_pyramids_are_found() -> None:
    system = ikd()
    assert system.student_levels == system.teacher_levels == TWO
    coarser = [f"backbone.fpn.extra_blocks.{name}" for name in ("p6", "p7")]
    nets = [network(extra=True), network(16, extra=True)]
    assert ikd(None, *nets).student_levels == [*TWO, *coarser]


def test_levels_that_differ_are_shown_with_those_that_fit() -> None:
    with pytest.raises(ShapeError) as caught:
        ikd(teacher=network(16, levels=1))
    assert str(caught.value) == (
        f"The levels of the two pyramids differ: the student's are {TWO[0]} 8x8, {TWO[1]} 4x4; "
        f"the teacher's are {TWO[0]} 4x4. Of one size are student_levels: ['{TWO[1]}'], "
        f"teacher_levels: ['{TWO[0]}']; name these."
    )
    named = {"student_levels": TWO[1:], "teacher_levels": TWO[:1]}
    system = ikd(teacher=network(16, levels=1), **named)
    assert adversarial(system, BATCH) > 0
    with pytest.raises(ShapeError, match="None are of one size; give both networks pyramids of th"):
        ikd(student_levels=TWO[1:], teacher_levels=TWO[:1])
    with pytest.raises(ShapeError, match="The levels of the two pyramids differ"):
        ikd(student_levels=TWO[::-1])


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": 0}, r"until=0 leaves no epoch; give 1 or more, or leave it out\."),
        ({"attack": {"step": 2}}, "The part 'attack' takes no argument 'step'; did you mean 'ste"),
        ({"attack": {"steps": -1}}, "steps must be finite and not negative, not -1"),
        ({"alpha": -1e-5}, "alpha=-1e-05 must be finite and not negative; 0 leaves it out"),
        ({"alpha": float("nan")}, "alpha=nan must be finite"),
        ({"terms": [Term(DetectionKDLoss(), name="adversarial")]}, "cannot be called 'adversarial"),
        ({"student": conv_net()}, "The student has no feature pyramid whose levels could be found"),
        ({"student_levels": ["backbone.fpn"]}, "gives a OrderedDict, not a tensor"),
        ({"student_levels": ["nowhere"]}, "nowhere"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, LookupError), match=message):
        ikd(**options)


def test_a_task_that_cannot_move_other_images_attacks_in_each_step() -> None:
    nets, task = (conv_net(), conv_teacher()), TinyPictureTask()
    levels = {"student_levels": ["layer2"], "teacher_levels": ["layer2"]}
    with pytest.raises(RecipeError, match="TinyPictureTask does not tell how it moved the images"):
        IKD(*nets, task=task, **levels)
    system = IKD(*nets, [Term(KDLoss())], task=task, **levels, alpha=1e-3, online=True).train()
    found = system(prepared_batch(task, 12), NOW)[1]
    assert found["adversarial"].item() > 0
