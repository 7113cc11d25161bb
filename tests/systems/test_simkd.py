"""SimKD: one step and one prediction against plain torch, what is frozen, and what is refused."""

from collections import OrderedDict
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.tiny import (
    TinyPictureTask,
    TinyTask,
    batch_of,
    conv_net,
    conv_teacher,
    student_net,
    teacher_net,
)
from torch import Tensor, nn

from congener.engine import FitConfig
from congener.engine.accumulate import accumulated_step
from congener.engine.machine import build_accelerator
from congener.errors import RecipeError, ShapeError, TapError
from congener.systems import SimKD
from congener.systems.simkd import SimKDStudent
from congener.types import Progress

NOW = Progress(0, 1, 0)


def build(student: nn.Module | None = None, teacher: nn.Module | None = None, **o: Any) -> SimKD:
    options = {"student_tap": "layer2", "teacher_tap": "layer2", "task": TinyPictureTask()} | o
    return SimKD(student or conv_net(), teacher or conv_teacher(), **options)


def project(state: dict[str, Tensor], x: Tensor, training: bool) -> Tensor:
    """The bottleneck of SimKD, from its state: thrice convolution, normalisation, ReLU."""
    for name, padding in (("reduce", 0), ("mix", 1), ("expand", 0)):
        x = F.conv2d(x, state[f"{name}.conv.weight"], padding=padding)
        of = {k: state[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        statistics = (of["running_mean"].clone(), of["running_var"].clone())
        x = F.batch_norm(x, *statistics, of["weight"], of["bias"], training=training).relu()
    return x


@pytest.mark.parametrize(("mine", "theirs"), [("layer2", "layer2"), ("layer1", "layer2")])
def test_step_is_the_distance_of_the_projected_map(mine: str, theirs: str) -> None:
    system = build(student_tap=mine, teacher_tap=theirs).train()
    batch = batch_of(system.task)
    total, terms, _ = system(batch, NOW)
    total.backward()
    student, teacher = system.student.backbone, system.teacher.model
    feature = student.layer1(batch["image"])
    feature = student.layer2(feature) if mine == "layer2" else F.avg_pool2d(feature, 2)
    with torch.no_grad():
        target = teacher.layer2(teacher.layer1(batch["image"]))
    parameters = dict(system.student.projector.named_parameters())
    projected = project(dict(system.student.projector.state_dict()) | parameters, feature, True)
    wanted = (projected - target).square().sum() / (12 * 24 * 2 * 2)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(terms, {"simkd": wanted})
    assert system.weights(NOW) == {"simkd": 1.0}
    trained = [p for p in system.parameters() if p.requires_grad]
    for parameter, gradient in zip(trained, torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_larger_map_of_the_teacher_is_pooled() -> None:
    teacher = nn.Sequential(
        OrderedDict(
            layer=nn.Conv2d(1, 5, 3, padding=1),
            pooled=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            classifier=nn.Linear(5, 3),
        )
    )
    system = build(teacher=teacher, teacher_tap="layer").eval()
    batch = batch_of(system.task)
    backbone, x = system.student.backbone, batch["image"]
    projected = project(
        dict(system.student.projector.state_dict()), backbone.layer2(backbone.layer1(x)), False
    )
    assert projected.shape[2:] == (2, 2)
    target = F.avg_pool2d(teacher.layer(x), 4)
    torch.testing.assert_close(system(batch, NOW)[0], F.mse_loss(projected, target))
    torch.testing.assert_close(system.student(x), teacher.classifier(projected.mean(dim=(2, 3))))


@pytest.mark.parametrize("tap", ["layer1", "layer2"])
def test_prediction_is_the_teacher_s_classifier_on_the_projected_map(tap: str) -> None:
    system = build(student_tap=tap).eval()
    student, x = system.student, batch_of(system.task)["image"]
    feature = student.backbone.layer1(x)
    feature = student.backbone.layer2(feature) if tap == "layer2" else F.avg_pool2d(feature, 2)
    projected = project(dict(student.projector.state_dict()), feature, False)
    weights = system.teacher.model.classifier
    torch.testing.assert_close(
        student(x), projected.mean(dim=(2, 3)) @ weights.weight.T + weights.bias
    )
    assert torch.equal(system.task.call(student, {"image": x}), student(x))


def test_student_that_matches_the_map_predicts_as_the_teacher() -> None:
    system = build()
    teacher, x = system.teacher.model, batch_of(system.task)["image"]
    perfect = SimKDStudent(
        teacher, nn.Identity(), system.student.classifier, tap="layer2", size=(2, 2)
    ).eval()
    torch.testing.assert_close(perfect(x), teacher(x))
    other = SimKDStudent(teacher, nn.Identity(), nn.Linear(24, 3), tap="layer2", size=(2, 2))
    assert not any(p.requires_grad for p in other.classifier.parameters())


def test_projector_is_a_bottleneck_of_half_the_teacher_s_channels() -> None:
    assert build().student.projector.mix.conv.weight.shape == (12, 12, 3, 3)
    assert build(factor=3).student.projector.mix.conv.weight.shape == (8, 8, 3, 3)


def test_labels_are_not_read() -> None:
    system = build()
    batch = batch_of(system.task)
    unlabelled = batch | {"labels": torch.full((12,), -100)}
    assert torch.equal(system(batch, NOW)[0], system(unlabelled, NOW)[0])
    assert system.distils


@pytest.mark.parametrize(
    ("tap", "frozen"),
    [("layer2", {"classifier"}), ("layer1", {"layer2", "classifier"}), ("pooled", {"classifier"})],
)
def test_what_lies_behind_the_tap_is_frozen(tap: str, frozen: set[str]) -> None:
    theirs = "pooled" if tap == "pooled" else "layer2"
    student = conv_net()
    system = build(student, student_tap=tap, teacher_tap=theirs).train()
    assert {n.split(".")[0] for n, p in student.named_parameters() if not p.requires_grad} == frozen
    assert not any(p.requires_grad for p in system.student.classifier.parameters())
    system(batch_of(system.task), NOW)[0].backward()
    for name, parameter in system.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_reused_classifier_is_a_copy_that_never_moves() -> None:
    teacher = conv_teacher()
    teacher.classifier = nn.Sequential(nn.Dropout(0.5), teacher.classifier)
    system = build(teacher=teacher, classifier="classifier").train()
    assert system.student.projector.training
    assert not any(m.training for m in system.student.classifier.modules())
    assert system.student.classifier[1] is not teacher.classifier[1]
    keys = {key.split(".")[0] for key in system.student.state_dict()}
    assert keys == {"backbone", "projector", "classifier"}
    assert not any(key.startswith("teacher") for key in system.state_dict())


class TwoHeads(nn.Module):
    """Two linear layers of as many outputs as classes; the last one classifies."""

    def __init__(self) -> None:
        super().__init__()
        self.layer2 = nn.Conv2d(1, 3, 3)
        self.before = nn.Linear(3, 3)
        self.after = nn.Linear(3, 3)
        self.wide = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.before(self.layer2(x).mean(dim=(2, 3))))


def test_default_classifier_is_the_last_linear_layer_of_so_many_classes() -> None:
    teacher = TwoHeads()
    system = build(teacher=teacher, teacher_tap="before")
    assert torch.equal(system.student.classifier.weight, teacher.after.weight)
    with pytest.raises(RecipeError, match="does not give the teacher's logits"):
        build(teacher=teacher, teacher_tap="before", classifier="before")


def test_vectors_are_maps_of_one_position() -> None:
    system = build(
        student_net(), teacher_net(), task=TinyTask(), student_tap="hidden", teacher_tap="hidden"
    ).train()
    batch = batch_of(system.task)
    feature = system.student.backbone.hidden(batch["image"])
    state = dict(system.student.projector.state_dict())
    projected = project(state, feature[:, :, None, None], True)
    target = system.teacher(batch).features["hidden"]
    torch.testing.assert_close(system(batch, NOW)[0], F.mse_loss(projected[:, :, 0, 0], target))
    assert system.student(batch["image"]).shape == (12, 3)


class Lines(nn.Module):
    """Pictures (1, 8, 8) as series of 64 points."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Conv1d(1, channels, 3, stride=stride, padding=1)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer(x.flatten(2)).mean(dim=2))


def test_series_are_maps_of_one_row() -> None:
    system = build(Lines(4, 2), Lines(6, 4), student_tap="layer", teacher_tap="layer").eval()
    batch = batch_of(system.task)
    feature = F.avg_pool1d(system.student.backbone.layer(batch["image"].flatten(2)), 2)
    projected = project(dict(system.student.projector.state_dict()), feature[:, :, None], False)
    target = system.teacher.model.layer(batch["image"].flatten(2))
    torch.testing.assert_close(system(batch, NOW)[0], F.mse_loss(projected[:, :, 0], target))
    torch.testing.assert_close(
        system.student(batch["image"]),
        system.teacher.model.classifier(projected.mean(dim=(2, 3))),
    )


def test_accumulated_gradients_are_the_whole_batch_s() -> None:
    systems = []
    for _ in range(2):
        torch.manual_seed(0)
        systems.append(build(conv_net(norm=False)))
    whole, pieces = systems
    batch = batch_of(whole.task)
    whole(batch, NOW)[0].backward()
    accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
    accumulated_step(pieces, batch, NOW, 3, accelerator)
    trained = zip(whole.named_parameters(), pieces.parameters(), strict=True)
    for (_, a), b in ((a, b) for a, b in trained if a[1].requires_grad):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    buffers = zip(whole.named_buffers(), pieces.buffers(), strict=True)
    assert all(torch.allclose(a, b) for (_, a), b in buffers)


def test_exported_student_can_be_traced_and_cast() -> None:
    student = build().student.eval()
    x = torch.randn(2, 1, 8, 8)
    program = torch.export.export(student, (x,))
    torch.testing.assert_close(program.module()(x), student(x))
    copy = deepcopy(student)
    with torch.no_grad():
        copy.backbone.layer1[0].weight.mul_(-1)
    assert not torch.allclose(copy(x), student(x))  # its tap is in the copy
    assert student.double()(x.double()).dtype == torch.float64
    assert student.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


NOT_ITS_OWN = (
    "The teacher's classifier, applied to the average of what its tap {!r} gives, does not give "
    "the teacher's logits; as `teacher_tap`, name the map that it averages (or the vector that it "
    "classifies), and as `classifier` the module that reads this."
)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher_tap": "layer2.0"}, NOT_ITS_OWN.format("layer2.0")),
        ({"teacher_tap": "layer1"}, NOT_ITS_OWN.format("layer1")),
        ({"classifier": "pooled"}, NOT_ITS_OWN.format("layer2")),
        ({"classifier": "layer1.0"}, NOT_ITS_OWN.format("layer2")),
        ({"classifier": "classifer"}, "The teacher has no module 'classifer'; did you mean "
         "'classifier' or 'layer2' or 'layer1'?"),
        (
            {"student_tap": "layer1:input"},
            "Nothing before the student's tap 'layer1:input' can be trained; tap a module behind "
            "some of its layers.",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        build(**options)
    assert str(error.value) == sentence


def test_teacher_without_a_linear_classifier_is_refused() -> None:
    teacher = nn.Sequential(
        OrderedDict(
            layer2=nn.Conv2d(1, 4, 3), head=nn.Conv2d(4, 3, 1), pooled=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
        )
    )  # fmt: skip
    with pytest.raises(RecipeError) as error:
        build(teacher=teacher)
    assert str(error.value) == (
        "The teacher has no linear layer of 3 outputs to reuse; name the module that classifies by "
        "its path, `classifier`."
    )


def test_tap_that_is_no_map_is_refused() -> None:
    student = conv_net()
    student.layer1 = nn.Sequential(student.layer1, nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2))
    with pytest.raises(ShapeError) as error:
        build(student, student_tap="layer1.1")
    assert str(error.value) == (
        "The tap 'layer1.1' gives (1, 2, 4, 4, 4); SimKD matches (batch, channels, height, width), "
        "(batch, channels, length) or (batch, channels): tap another module."
    )


@pytest.mark.parametrize("side", ["student_tap", "teacher_tap"])
def test_tap_that_does_not_exist(side: str) -> None:
    with pytest.raises(TapError, match="no module 'layer9' to tap"):
        build(**{side: "layer9"})


def test_factor_must_leave_channels() -> None:
    with pytest.raises(ValueError, match="factor must lie between 1 and teacher_channels 24"):
        build(factor=25)
