"""Detectors in sixteen and eight bits, on large images, in pieces."""

from pathlib import Path

import pytest
import torch
from tests.systems.scenes import TinyScenes, detecting_teacher, detector, squares
from tests.systems.tiny import prepared_batch

from congener.engine import FitConfig, fields_of, fit
from congener.errors import RecipeError
from congener.losses import DetectionKDLoss
from congener.systems import IKD, Distillation
from congener.tasks.detection import Detection
from congener.tasks.detection.data import tensors
from congener.teachers import FrozenTeacher
from congener.types import Progress, Term

START = Progress(0, 1, 0)


def of_size(side: int) -> Detection:
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    boxes, labels = torch.tensor([[[10.0, 10, 90, 70]]]), torch.zeros(1, 1, dtype=torch.int64)
    part = {"images": images, "boxes": boxes, "labels": labels}
    both = {f"{split}_{name}": value for split in ("train", "test") for name, value in part.items()}
    return Detection(tensors(**both, class_names=("dog",)))


def test_places_are_exact_in_sixteen_bits() -> None:
    task = of_size(640)
    net = task.build_model("small_cnn", widths=(2, 2), levels=1, channels=32, convolutions=1)
    batch = prepared_batch(task, 1)
    with torch.no_grad():
        exact = task.call(net, batch).anchors
        with torch.autocast("cpu", torch.bfloat16):
            said = task.call(net, batch)
        assert torch.equal(said.anchors, exact)
        assert said.logits.dtype == torch.float32
        assert torch.equal(said.logits[0, :, -4:], exact)


def test_fewer_large_images_are_measured_at_once() -> None:
    assert Detection(squares(10, 4)).evaluation_batch == 64
    assert of_size(640).evaluation_batch == 16


def test_boxes_are_not_rounded_as_logits() -> None:
    task = TinyScenes()
    teacher, batch = FrozenTeacher(detecting_teacher(), task), prepared_batch(task, 16)
    assert [field.dtype for field in fields_of(teacher, batch)] == ["fp32"]
    for options in ({"dtype": "fp16"}, {"top_k": 3}, {"sampled": 3}):
        with pytest.raises(RecipeError, match=r"hold boxes as well.*dtype fp32"):
            fields_of(teacher, batch, **options)


def test_a_detector_in_eight_bits_is_refused(tmp_path: Path) -> None:
    task = TinyScenes()
    system = Distillation(detector(), detecting_teacher(), [Term(DetectionKDLoss())], task=task)
    config = FitConfig(steps=1, batch_size=8, device="cpu", threads=1, teacher_precision="int8")
    with pytest.raises(RecipeError, match=r"exports the network as a whole.*use bf16"):
        fit(system, task, config, train=task.splits["train"], test=None, folder=tmp_path)


def test_large_images_are_attacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TinyScenes()
    system = IKD(detector(), detecting_teacher(), task=task, online=True, attack={"steps": 2})
    batch = prepared_batch(task, 10)
    whole = system.views(batch, START)["adversarial"]
    seen: list[int] = []
    call = task.call
    monkeypatch.setattr(task, "call", lambda net, b: seen.append(len(b["image"])) or call(net, b))
    monkeypatch.setattr("congener.systems.ikd_attacker.MOST_PIXELS", 4 * 32 * 32)
    pieces = system.views(batch, START)["adversarial"]
    assert set(seen) == {4, 2}
    assert ((pieces - whole).abs() > 1e-5).float().mean() < 0.01  # a sign may turn
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(system.views(batch, START)["adversarial"], pieces)
