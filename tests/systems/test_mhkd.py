"""MHKD: one step against plain torch in both regimes, the teacher's heads, and what is refused."""

from pathlib import Path
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

from congener.engine import FitConfig, fit, prepare
from congener.engine.accumulate import accumulated_step
from congener.engine.machine import build_accelerator
from congener.errors import RecipeError, ShapeError, TapError
from congener.runlog import RunLog
from congener.systems import MHKD
from congener.systems.mhkd import _HeadedTeacher
from congener.systems.mhkd_heads import Head
from congener.teachers import fingerprint
from congener.types import Outputs, Progress

NOW = Progress(0, 1, 0)
TAPS = ("layer1", "layer2")
CONFIG = FitConfig(steps=4, batch_size=16, lr=0.05, log_every=1, threads=1, device="cpu")
REGIMES = pytest.mark.parametrize("regime", ["two-step", "joint"])


def build(*, prepared: bool = True, **options: Any) -> MHKD:
    torch.manual_seed(0)
    options = {
        "task": TinyPictureTask(), "student_taps": TAPS, "teacher_taps": TAPS, "width": 6,
    } | options  # fmt: skip
    networks = options.pop("student", None) or conv_net(), options.pop("teacher", conv_teacher())
    system = MHKD(*networks, **options)
    if prepared:
        prepare(system, system.task, CONFIG)
    return system.train()


def heads_of(system: MHKD) -> nn.ModuleList:
    """The teacher's, wherever the regime has them."""
    headed = system.teacher
    return headed.heads if isinstance(headed, _HeadedTeacher) else system.teacher_heads


def head(module: nn.Module, feature: Tensor, training: bool) -> Tensor:
    """A head with two fully connected layers, from its state alone."""
    first, norm, second, again, *linear = (
        dict(child.named_parameters()) | dict(child.named_buffers())
        for child in module.modules()
        if not list(child.children()) and list(child.parameters())
    )
    for convolution, bn in ((first, norm), (second, again)):
        feature = F.conv2d(feature, convolution["weight"], padding=1)
        statistics = bn["running_mean"].clone(), bn["running_var"].clone()
        feature = F.relu(
            F.batch_norm(feature, *statistics, bn["weight"], bn["bias"], training=training)
        )
    feature = F.adaptive_avg_pool2d(feature, 1).flatten(1)
    hidden = F.relu(F.linear(feature, linear[0]["weight"], linear[0]["bias"]))
    return F.linear(hidden, linear[1]["weight"], linear[1]["bias"])


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    q, p = (F.softmax(z / temperature, dim=1) for z in (student, teacher.detach()))
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


def layers(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    first = network.layer1(x)
    second = network.layer2(first)
    return first, second, network.classifier(network.dropout(second.mean(dim=(2, 3))))


@REGIMES
@pytest.mark.parametrize(
    "options",
    [{}, {"task_weight": 0.3, "kd_weight": 0.7, "head_weight": 2.0, "temperature": 2.0}],
)
def test_step_is_the_authors(regime: str, options: dict[str, float]) -> None:
    system = build(regime=regime, **options)
    values = {"task_weight": 0.1, "kd_weight": 0.9, "head_weight": 0.5, "temperature": 4.0}
    gamma, alpha, beta, t = (values | options).values()
    batch, joint = batch_of(system.task), regime == "joint"
    x, y = batch["image"], batch["labels"]
    with torch.no_grad():
        *theirs, teacher = layers(conv_teacher().eval(), x)
    *mine, student = layers(system.student, x)
    taught = [head(m, f, joint) for m, f in zip(heads_of(system), theirs, strict=True)]
    learnt = [head(m, f, True) for m, f in zip(system.student_heads, mine, strict=True)]
    pairs = list(zip(learnt, taught, strict=True))
    wanted = {
        "task": F.cross_entropy(student, y),
        "kd": kd(student, teacher, t),
        "heads": sum(0.9 * kd(s, q, t) + 0.1 * F.cross_entropy(s, y) for s, q in pairs),
    }
    total = gamma * wanted["task"] + alpha * wanted["kd"] + beta * wanted["heads"]
    weights = {"task": gamma, "kd": alpha, "heads": beta}
    if joint:
        wanted["teacher_heads"] = sum(F.cross_entropy(z, y) for z in taught)
        total, weights = total + wanted["teacher_heads"], weights | {"teacher_heads": 1.0}
    expected = torch.autograd.grad(total, list(system.parameters()))
    result, terms, _ = system(batch, NOW)
    result.backward()
    torch.testing.assert_close(terms, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result, total, rtol=1e-5, atol=1e-6)
    assert system.weights(NOW) == weights
    for (name, parameter), gradient in zip(system.named_parameters(), expected, strict=True):
        message = f"gradient of {name}"
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=message: f"{n}: {m}"
        )


def test_without_head_weight_it_is_plain_distillation() -> None:
    system = build(head_weight=0.0)
    batch = batch_of(system.task)
    total = system(batch, NOW)[0]
    teacher = conv_teacher().eval()(batch["image"])
    student = system.student(batch["image"])
    plain = 0.1 * F.cross_entropy(student, batch["labels"]) + 0.9 * kd(student, teacher, 4.0)
    torch.testing.assert_close(total, plain)
    networks = list(system.student.parameters())
    for a, b in zip(
        torch.autograd.grad(total, networks), torch.autograd.grad(plain, networks), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Says(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, feature: Tensor) -> Tensor:
        return self.logits


def test_heads_of_one_mind_learn_from_the_labels_alone() -> None:
    system = build()
    batch = batch_of(system.task)
    taught = system.teacher(batch).features
    shifted = [Says(logits + torch.randn(12, 1)) for logits in taught.values()]
    system.student_heads = nn.ModuleList(shifted)
    terms = system(batch, NOW)[1]
    own = [m.logits for m in shifted]
    wanted = 0.1 * sum(F.cross_entropy(z, batch["labels"]) for z in own)
    torch.testing.assert_close(terms["heads"], wanted, rtol=1e-5, atol=1e-5)
    gradients = (torch.autograd.grad(value, own) for value in (terms["heads"], wanted))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@REGIMES
def test_teacher_learns_nothing_and_its_heads_from_labels_alone(regime: str) -> None:
    system = build(regime=regime)
    teacher = system.teacher.frozen if regime == "two-step" else system.teacher
    before = fingerprint(teacher.model), fingerprint(heads_of(system))
    batch = batch_of(system.task)
    x, y = batch["image"], batch["labels"]
    system(batch, NOW)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert fingerprint(teacher.model) == before[0]
    heads = heads_of(system)
    fixed = {id(p) for p in heads.parameters()}
    if regime == "two-step":
        assert fingerprint(heads) == before[1]
        assert not any(m.training for m in heads.modules())
        assert not any(z.requires_grad for z in system.teacher(batch).features.values())
        assert not fixed & {id(p) for p in system.parameters()}
        assert not any("teacher" in key for key in system.state_dict())
        return
    assert all(m.training for m in heads.modules())
    with torch.no_grad():
        *maps, _ = layers(teacher.model, x)
    loss = sum(F.cross_entropy(head(m, f, True), y) for m, f in zip(heads, maps, strict=True))
    wanted = torch.autograd.grad(loss, list(heads.parameters()))
    for parameter, gradient in zip(heads.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def test_regimes_differ_in_nothing_but_the_teacher_s_heads() -> None:
    systems = {regime: build(regime=regime) for regime in ("two-step", "joint")}
    fixed, joint = systems.values()
    joint.teacher_heads.load_state_dict(heads_of(fixed).state_dict())
    joint.student_heads.load_state_dict(fixed.student_heads.state_dict())
    joint.teacher_heads.eval()
    batch = batch_of(fixed.task)
    for system in (fixed, joint):
        system(batch, NOW)[0].backward()
    theirs = dict(joint.named_parameters())
    assert theirs.keys() - dict(fixed.named_parameters()).keys() == {
        f"teacher_heads.{n}" for n, _ in joint.teacher_heads.named_parameters()
    }
    for name, parameter in fixed.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-5, atol=1e-7)


def test_order_of_the_pairs_is_of_no_matter() -> None:
    system = build()
    turned = build(student_taps=TAPS[::-1], teacher_taps=TAPS[::-1])
    for heads, others in (
        (system.student_heads, turned.student_heads), (heads_of(system), heads_of(turned))
    ):  # fmt: skip
        for mine, theirs in zip(heads, reversed(others), strict=True):
            theirs.load_state_dict(mine.state_dict())
    batch = batch_of(system.task)
    torch.testing.assert_close(system(batch, NOW)[0], turned(batch, NOW)[0])


def test_student_leaves_without_its_heads() -> None:
    student = conv_net()
    system = build(student=student)
    assert system.student is student
    assert student.state_dict().keys() == conv_net().state_dict().keys()
    assert any(key.startswith("student_heads.1.") for key in system.state_dict())


def test_sizes_of_a_pair_may_differ_and_a_tap_may_have_two_heads() -> None:
    system = build(student_taps=("layer1", "layer1"), teacher_taps=("layer2", "pooled"))
    shapes = [tuple(m.convolutions[0].weight.shape) for m in heads_of(system)]
    assert shapes == [(6, 24, 3, 3), (6, 24, 1, 1)]
    total, terms, _ = system(batch_of(system.task), NOW)
    assert total.isfinite()
    assert terms["heads"] > 0


def test_default_head_is_as_published() -> None:
    system = build(prepared=False, width=256)
    published = 8 * 256 * 9 + 256 * 256 * 9 + 4 * 256 + 256 * 256 + 256 + 256 * 3 + 3
    assert sum(p.numel() for p in system.student_heads[0].parameters()) == published
    lean = build(prepared=False, layers=1, width=5)
    assert len(lean.student_heads[0].classifier) == 1
    assert build(prepared=False, layers=3).student_heads[0].classifier[2].out_features == 6


@pytest.mark.parametrize("training", [True, False])
def test_on_a_series_a_head_convolves_along_it(training: bool) -> None:
    torch.manual_seed(0)
    module = Head(torch.Size([1, 4, 10]), 3, 6, 1).train(training)
    x = feature = torch.randn(5, 4, 10)
    first, norm, _, second, again, _ = module.convolutions
    for convolution, bn in ((first, norm), (second, again)):
        feature = F.conv1d(feature, convolution.weight[:, :, 0], padding=1)
        statistics = bn.running_mean.clone(), bn.running_var.clone()
        feature = F.batch_norm(feature, *statistics, training=training).relu()
    torch.testing.assert_close(module(x), module.classifier(feature.mean(dim=2)))


def test_on_vectors_a_head_is_linear_layers() -> None:
    system = build(
        student=student_net(), teacher=teacher_net(), task=TinyTask(),
        student_taps=["hidden"], teacher_taps=["hidden"],
    )  # fmt: skip
    module, batch = system.student_heads[0], batch_of(system.task)
    x = feature = system.student.hidden(batch["image"])
    for place in (0, 3):
        feature = feature @ module.convolutions[place].weight[:, :, 0, 0].T
        feature = F.batch_norm(feature, None, None, training=True).relu()
    torch.testing.assert_close(module(x), module.classifier(feature))
    system(batch, NOW)[0].backward()
    assert all(p.grad is not None for p in system.parameters())


@REGIMES
def test_teacher_s_heads_run_once_a_step(regime: str) -> None:
    system, calls = build(regime=regime), []
    for module in heads_of(system):
        module.register_forward_hook(lambda m, args, output: calls.append(m))
    system(batch_of(system.task), NOW)[0].backward()
    assert calls == list(heads_of(system))


def test_unlabelled_samples_teach_by_divergence_alone() -> None:
    system = build()
    batch = batch_of(system.task) | {"labels": torch.full((12,), -100)}
    total, terms, _ = system(batch, NOW)
    assert terms["task"] == 0
    assert terms["kd"] > 0
    said, seen = system.teacher(batch), layers(system.student, batch["image"])
    wanted = sum(
        0.9 * kd(head(m, f, True), z, 4.0)
        for m, f, z in zip(system.student_heads, seen[:2], said.features.values(), strict=True)
    )
    torch.testing.assert_close(terms["heads"], wanted, rtol=1e-5, atol=1e-6)
    total.backward()
    assert all(p.grad.isfinite().all() for p in system.parameters())
    assert system.distils


def test_stage_fits_the_heads_and_nothing_else() -> None:
    system = build(prepared=False)
    (stage,) = system.stages()
    heads, batch = heads_of(system), batch_of(system.task)
    said = conv_teacher().eval()
    with torch.no_grad():
        *maps, _ = layers(said, batch["image"])
    wanted = sum(
        F.cross_entropy(head(m, f, True), batch["labels"]) for m, f in zip(heads, maps, strict=True)
    )
    total, terms, _ = stage.system.train()(batch, NOW)
    torch.testing.assert_close(total, wanted)
    assert list(terms) == ["task"]
    assert stage.data == "teacher"
    assert stage.depends == (system.teacher.frozen.model,)
    assert {id(p) for p in stage.system.parameters()} == {id(p) for p in heads.parameters()}

    before = {"student": fingerprint(system), "teacher": fingerprint(said)}
    events: list[dict[str, Any]] = []
    longer = CONFIG.model_copy(update={"steps": 30})
    prepare(system, system.task, longer, log=RunLog(None, (events.append,)))
    totals = [e["total"] for e in events if e["event"] == "step"]
    assert totals[-1] < 0.7 * totals[0]
    assert {"student": fingerprint(system), "teacher": fingerprint(stage.depends[0])} == before


def test_kept_heads_are_those_of_the_same_taps(tmp_path: Path) -> None:
    first = build(prepared=False)
    prepare(first, first.task, CONFIG, folder=tmp_path)
    events: list[dict[str, Any]] = []
    again = build(prepared=False)
    other = build(prepared=False, teacher_taps=("layer1", "layer2.1"))  # of the same shapes
    prepare(again, again.task, CONFIG, folder=tmp_path, log=RunLog(None, (events.append,)))
    assert not events
    assert fingerprint(heads_of(again)) == fingerprint(heads_of(first))
    assert again(batch_of(again.task), NOW)[0].isfinite()
    prepare(other, other.task, CONFIG, folder=tmp_path, log=RunLog(None, (events.append,)))
    assert events
    assert build(prepared=False, regime="joint").stages() == ()


def test_stage_accumulates_gradients_too() -> None:
    systems = [build(prepared=False) for _ in range(2)]
    for system, pieces in zip(systems, (1, 3), strict=True):
        config = CONFIG.model_copy(update={"accumulate": pieces, "lr": 0.01})
        prepare(system, system.task, config)
    one, other = (heads_of(system) for system in systems)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@REGIMES
def test_accumulated_gradients_are_the_whole_batch_s(regime: str) -> None:
    whole, pieces = (build(student=conv_net(norm=False), regime=regime) for _ in range(2))
    batch = batch_of(whole.task)
    whole(batch, NOW)[0].backward()
    accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
    accumulated_step(pieces, batch, NOW, 3, accelerator)
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-6), name
    for a, b in zip(whole.buffers(), pieces.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@REGIMES
def test_runs_under_autocast(regime: str) -> None:
    system = build(regime=regime)
    with torch.autocast("cpu", torch.bfloat16):
        total, _, _ = system(batch_of(system.task), NOW)
    total.backward()
    assert total.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


def test_heads_that_were_not_fitted_are_refused() -> None:
    system = build(prepared=False)
    with pytest.raises(RecipeError) as error:
        system(batch_of(system.task), NOW)
    assert str(error.value) == (
        "The teacher's heads of MHKD are not fitted yet; call "
        "congener.engine.prepare(system, task, config) first."
    )
    task = system.task
    with pytest.raises(RecipeError, match="not fitted yet"):
        fit(system, task, CONFIG, train=task.splits["train"], test=None)
    (stage,) = system.stages()
    stage.system.eval()(batch_of(task), NOW)  # a check of a recipe fits nothing
    with pytest.raises(RecipeError, match="not fitted yet"):
        system(batch_of(task), NOW)


def test_headed_teacher_moves_as_one() -> None:
    system = build()
    system.teacher.to(torch.device("meta"))
    assert all(p.is_meta for p in system.teacher.frozen.model.parameters())
    assert all(p.is_meta for p in system.teacher.heads.parameters())


def test_hyper_parameters_are_shown() -> None:
    shown = repr(build(prepared=False)).splitlines()[1].strip()
    assert shown == (
        "student_taps=('layer1', 'layer2'), teacher_taps=('layer1', 'layer2'), task_weight=0.1, "
        "kd_weight=0.9, head_weight=0.5, temperature=4.0, width=6, layers=2, regime='two-step'"
    )


def deep() -> nn.Module:
    network = conv_net()
    network.layer1 = nn.Sequential(network.layer1, nn.Unflatten(1, (2, 4)), nn.Flatten(1, 2))
    return network


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        (
            {"student_taps": ("layer1",)},
            RecipeError,
            "student_taps ('layer1',) and teacher_taps ('layer1', 'layer2') must be lists of as "
            "many paths, one at least; give one path in each network for each pair of heads.",
        ),
        (
            {"student_taps": [], "teacher_taps": []},
            RecipeError,
            "student_taps [] and teacher_taps [] must be lists of as many paths, one at least; "
            "give one path in each network for each pair of heads.",
        ),
        (
            {"student_taps": "layer1", "teacher_taps": "layer1"},
            RecipeError,
            "student_taps 'layer1' and teacher_taps 'layer1' must be lists of as many paths, one "
            "at least; give one path in each network for each pair of heads.",
        ),
        ({"width": 0}, RecipeError, "width 0 and layers 2 must be 1 at least; raise them."),
        ({"layers": 0}, RecipeError, "width 6 and layers 0 must be 1 at least; raise them."),
        (
            {"regime": "three-step"},
            RecipeError,
            "regime must be 'two-step' or 'joint', not 'three-step'.",
        ),
        (
            {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "teacher_taps": ("0", "1")},
            RecipeError,
            "The student tells 3 classes apart and the teacher 5; give both networks the same "
            "classes.",
        ),
        (
            {"student": deep(), "student_taps": ("layer1.1", "layer2")},
            ShapeError,
            "The tap 'layer1.1' gives (1, 2, 4, 4, 4); a head of MHKD reads (batch, channels), "
            "(batch, channels, length) or (batch, channels, height, width): tap another module.",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind) as error:
        build(prepared=False, **options)
    assert str(error.value) == sentence


@pytest.mark.parametrize("side", ["student_taps", "teacher_taps"])
def test_tap_that_does_not_exist(side: str) -> None:
    with pytest.raises(TapError, match="no module 'layer9' to tap"):
        build(prepared=False, **{side: ("layer1", "layer9")})


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature"):
        build(prepared=False, temperature=-1.0)


def test_order_of_many_heads_survives_the_joining_of_pieces() -> None:
    system = build(student_taps=["layer1"] * 11, teacher_taps=["layer1", *["layer2"] * 10])
    batch = batch_of(system.task)
    parts = [system.teacher({k: v[i : i + 6] for k, v in batch.items()}) for i in (0, 6)]
    joined = list(Outputs.concatenate(parts).features.values())
    torch.testing.assert_close(joined, list(system.teacher(batch).features.values()))
