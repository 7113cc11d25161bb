"""SSKD: its views, the stage of the teacher's head, its total, and what it refuses."""

from copy import deepcopy
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
from congener.errors import CongenerError, Interrupted, RecipeError, ShapeError
from congener.losses import KDLoss
from congener.naming import bind
from congener.ops.collectives import lone_sample_expected
from congener.runlog import RunLog
from congener.system import loss_balance
from congener.systems import SSKD, Distillation
from congener.systems.sskd_head import SSKDHead
from congener.systems.sskd_views import Views, untransformed
from congener.teachers import fingerprint
from congener.types import Batch, Outputs, Progress, Term

NOW = Progress(0, 1, 0)
CONFIG = FitConfig(
    steps=8, batch_size=16, optimizer="sgd", lr=0.05, log_every=1, checkpoint_every=3,
    threads=1, device="cpu",
)  # fmt: skip


class Wide(TinyPictureTask):
    """Pictures in float64, normalised: black is -2."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), count: int = 50) -> None:
        super().__init__(count)
        for split in self.splits.values():
            split.images = split.images.double().flatten(1)[:, : torch.Size(shape).numel()]
            split.images = split.images.reshape(-1, *shape)

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        return batch | {"image": (batch["image"] - 0.5) / 0.25}


def build(
    *, fitted: bool = True, norm: bool = True, task: TinyTask | None = None, **options: Any
) -> SSKD:
    teacher = conv_teacher().double()
    generator = torch.Generator().manual_seed(1)
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(
                module.num_features, generator=generator, dtype=torch.float64
            )
    torch.manual_seed(7)
    options = {"student_tap": "pooled", "teacher_tap": "layer2"} | options
    student = conv_net(norm=norm).double()
    system = SSKD(student, teacher, task=task or Wide(), **options)
    if fitted:
        system.teacher.fitting.steps += 1
    return system


def prepared_batch(task: TinyTask, count: int = 6) -> Batch:
    return task.prepare(batch_of(task, count), train=True, seed=0, epoch=0)


def cosines(rows: Tensor) -> Tensor:
    """The 3B copies against the B samples, entry by entry."""
    samples = [row for i, row in enumerate(rows) if i % 4 == 0]
    copies = [row for i, row in enumerate(rows) if i % 4]
    table = [[F.cosine_similarity(a, n, dim=0) for n in samples] for a in copies]
    return torch.stack([torch.stack(row) for row in table])


def chosen(scores: Tensor, targets: list[int], ratio: float) -> list[int]:
    """All that the teacher gets right, and the best ranked of the others."""
    levels = [int((row > row[i]).sum()) for row, i in zip(scores, targets, strict=True)]
    gaps = [float(row.max() - row[i]) for row, i in zip(scores, targets, strict=True)]
    pairs = zip(levels, gaps, strict=True)
    wrong = sorted((level, gap, m) for m, (level, gap) in enumerate(pairs) if level)
    keep = [m for *_, m in wrong[: int(ratio * len(wrong))]]
    return [m for m, level in enumerate(levels) if level == 0] + keep


def divergence(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    p_s, p_t = F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1)
    return tau**2 * F.kl_div(p_s, p_t, reduction="batchmean")


def test_views_of_a_picture() -> None:
    views = Views(TinyPictureTask(), "rotations", 0)
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    batch = {
        "image": torch.stack([image, 10 * image])[:, None], "labels": torch.tensor([5, 6]),
        "index": torch.tensor([8, 9]), "name": ["a", "b"], "side": 2,
    }  # fmt: skip
    seen = views(batch, NOW)
    assert seen["image"].shape == (8, 1, 2, 2)
    counter_clockwise = [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    assert seen["image"][:4, 0].tolist() == counter_clockwise
    assert torch.equal(seen["image"].view(2, 4, 1, 2, 2)[1], 10 * seen["image"][:4])
    assert seen["labels"].tolist() == [5] * 4 + [6] * 4
    assert seen["index"].tolist() == [8] * 4 + [9] * 4
    assert seen["name"] == ["a"] * 4 + ["b"] * 4
    assert seen["side"] == 2
    again = untransformed(seen)
    assert torch.equal(again.pop("image"), batch.pop("image"))
    assert {k: getattr(v, "tolist", lambda v=v: v)() for k, v in again.items()} == {
        "labels": [5, 6], "index": [8, 9], "name": ["a", "b"], "side": 2,
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (2, 4, 3)])
def test_views_of_a_signal(shape: tuple[int, ...]) -> None:
    views = Views(TinyTask(), "signal", 0)
    x = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    seen = views({"image": x, "index": torch.arange(2)}, NOW)["image"].view(2, 4, *shape[1:])
    assert torch.equal(seen[:, 0], x)
    assert seen[0, :, ..., :].reshape(4, -1, 3)[:, 0].tolist() == [
        [1, 2, 3], [3, 2, 1], [-1, -2, -3], [-3, -2, -1]
    ]  # fmt: skip
    assert torch.equal(seen[:, 3], -seen[:, 1])


def test_crops_are_windows_in_black_of_each_view_by_itself() -> None:
    task, pad = Wide((1, 4, 4)), 2
    batch = prepared_batch(task, 40)
    plain = Views(task, "rotations", 0)(batch, NOW)["image"]
    seen = Views(task, "rotations", pad)(batch, Progress(3, 9, 1))["image"]
    places = []
    for whole, window in zip(plain, seen, strict=True):
        padded = F.pad(whole, [pad] * 4, value=-2.0)
        fits = [
            (y, x)
            for y in range(2 * pad + 1)
            for x in range(2 * pad + 1)
            if torch.equal(padded[:, y : y + 4, x : x + 4], window)
        ]
        assert len(fits) == 1
        places += fits
    rows, columns = zip(*places, strict=True)
    assert set(rows) == set(columns) == set(range(2 * pad + 1))
    assert abs(torch.corrcoef(torch.tensor([rows, columns]).float())[0, 1]) < 0.2
    by_view = torch.tensor(rows).view(40, 4)
    assert all((by_view[:, 0] != by_view[:, v]).any() for v in (1, 2, 3))


def test_crops_depend_on_the_sample_and_the_step_alone() -> None:
    task = Wide()
    views, batch = Views(task, "rotations", 2), prepared_batch(task, 6)
    whole = views(batch, Progress(5, 9, 1))["image"].view(6, 4, 1, 8, 8)
    part = views({k: v[[4, 1]] for k, v in batch.items()}, Progress(5, 99, 0))["image"]
    assert torch.equal(part.view(2, 4, 1, 8, 8), whole[[4, 1]])
    assert not torch.equal(views(batch, Progress(6, 9, 1))["image"], whole.flatten(0, 1))


def test_heads() -> None:
    system = build()
    layers = [type(layer) for layer in system.student_head]
    assert layers == [nn.Linear, nn.ReLU, nn.Linear]
    head = system.teacher.fitting.student
    assert [tuple(p.shape) for p in system.student_head.parameters()] == [(16, 16), (16,)] * 2
    assert [tuple(p.shape) for p in head.parameters()] == [(24, 24), (24,)] * 2
    assert {name.partition(".")[0] for name in system.state_dict()} == {"student", "student_head"}
    own = {id(p) for p in system.parameters()}
    assert not own & {id(p) for p in head.parameters()}
    said = system.teacher(system.views(prepared_batch(system.task), NOW))
    assert said.features["head"].shape == (24, 24)
    assert not said.features["head"].requires_grad
    assert not own & {id(p) for p in system.teacher.fitting.frozen.model.parameters()}


def test_both_networks_see_all_views_in_one_forward() -> None:
    system = build().train()
    seen: list[tuple[bool, Tensor]] = []
    for net in (system.student, system.teacher.fitting.frozen.model):
        net.register_forward_pre_hook(lambda net, args: seen.append((net.training, args[0])))
    batch = prepared_batch(system.task)
    system(batch, NOW)
    (of_teacher, first), (of_student, second) = seen
    assert not of_teacher
    assert of_student
    assert first.shape == (24, 1, 8, 8)
    assert torch.equal(first, second)
    assert torch.equal(first[::4], batch["image"])


@pytest.mark.parametrize("unlabelled", [0, 2, 6])
def test_one_step_is_the_card(unlabelled: int) -> None:
    """Value and gradients, from the formulas in plain torch."""
    ratios, weights = {"transformed": 0.5}, {"task": 0.2, "transformed": 2.5}
    system = build(ratios=ratios, term_weights=weights, temperatures={"kd": 3}).train()
    batch = prepared_batch(system.task)
    batch["labels"][:unlabelled] = -100
    copy = deepcopy(system)
    total, terms, _ = system(batch, NOW)
    total.backward()

    turned = [torch.rot90(x, k, (1, 2)) for x in batch["image"] for k in range(4)]
    x = torch.stack(turned)
    student, teacher = copy.student, copy.teacher.fitting.frozen.model.eval()
    z_s, z_t = student(x), teacher(x).detach()
    maps = teacher.layer2(teacher.layer1(x)).detach()
    pool = student.pooled(student.layer2(student.layer1(x)))
    r_s = copy.student_head(pool)
    r_t = copy.teacher.fitting.student(maps.mean((2, 3))).detach()

    known = batch["labels"] >= 0
    ce = F.cross_entropy(z_s[::4][known], batch["labels"][known]) if known.any() else 0 * z_s.sum()
    kd = divergence(z_s[::4], z_t[::4], 3.0)
    labels = [int(y) if y >= 0 else int(z_t[4 * i].argmax()) for i, y in enumerate(batch["labels"])]
    copies = [row for row in range(24) if row % 4]
    rows = chosen(z_t[copies], [labels[row // 4] for row in copies], 0.5)
    l_t = divergence(z_s[copies][rows], z_t[copies][rows], 4.0)
    a_s, a_t = cosines(r_s), cosines(r_t)
    kept = chosen(a_t, [row // 4 for row in copies], 0.75)
    l_ss = divergence(a_s[kept], a_t[kept], 0.5)
    assert len(kept) < 18
    assert len(rows) < 18
    wanted = {"task": ce, "kd": kd, "transformed": l_t, "self_supervised": l_ss}
    torch.testing.assert_close(terms, wanted)
    expected = 0.2 * ce + 0.9 * kd + 2.5 * l_t + 10 * l_ss
    torch.testing.assert_close(total, expected)
    expected.backward()
    found = dict(system.named_parameters())
    for name, parameter in copy.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad)
    assert system.teacher.fitting.student[0].weight.grad is None


def test_defaults_are_the_authors() -> None:
    system = build()
    assert system.weights(NOW) == {
        "task": 0.1, "kd": 0.9, "transformed": 2.7, "self_supervised": 10.0
    }  # fmt: skip
    assert (system.kd.temperature, system.transformed.temperature) == (4, 4)
    assert system.self_supervised.temperature == 0.5
    assert (system.transformed.ratio, system.self_supervised.ratio) == (1, 0.75)


def test_head_stage_moves_the_head_alone() -> None:
    system = build(fitted=False, crop=1, head={"steps": 5})
    teacher = system.teacher.fitting.frozen.model.train()
    before = fingerprint(teacher), fingerprint(system)
    head = fingerprint(system.teacher.fitting.student)
    events: list[dict[str, Any]] = []
    prepare(system, system.task, CONFIG, log=RunLog(None, (events.append,)))
    assert (fingerprint(teacher), fingerprint(system)) == before
    assert fingerprint(system.teacher.fitting.student) != head
    assert not any(p.requires_grad for p in teacher.parameters())
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(5))
    assert {e["fit"] for e in steps} == {"stages/sskd_head"}
    assert system.teacher.fitting.steps == 5


def test_head_learns_to_match() -> None:
    system = build(fitted=False, head={"steps": 60, "optimizer": "adamw", "lr": 0.01})
    batch = prepared_batch(system.task, 16)
    fitting = system.teacher.fitting
    before = fitting(batch, NOW)[0].item()
    prepare(system, system.task, CONFIG)
    assert fitting(batch, NOW)[0].item() < before - 0.1


def test_one_step_of_the_head_is_the_card() -> None:
    fitting = build(fitted=False).teacher.fitting.train()
    teacher, head = fitting.frozen.model, deepcopy(fitting.student)
    batch = prepared_batch(build().task)
    total, terms, _ = fitting(batch, NOW)
    total.backward()
    x = torch.stack([torch.rot90(x, k, (1, 2)) for x in batch["image"] for k in range(4)])
    maps = teacher.layer2(teacher.layer1(x))
    wanted = F.cross_entropy(cosines(head(maps.mean((2, 3)))), torch.arange(6).repeat_interleave(3))
    wanted.backward()
    torch.testing.assert_close(terms, {"head": wanted})
    torch.testing.assert_close(total, wanted)
    for mine, theirs in zip(fitting.student.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert not teacher.training


def test_head_in_pieces_is_the_head_of_the_whole_batch() -> None:
    heads = []
    for pieces in (1, 3):
        system = build(fitted=False, crop=1)
        prepare(system, system.task, CONFIG.model_copy(update={"accumulate": pieces}))
        heads.append(system.teacher.fitting.state_dict())
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-9, atol=1e-12)


def test_teacher_and_head_follow_to_a_device() -> None:
    """Without arithmetic, on the device ``meta``."""
    system, device = build(), torch.device("meta")
    fitting = system.teacher.fitting
    system.teacher.to(device)
    assert all(p.is_meta for p in fitting.student.parameters())
    assert all(p.is_meta for p in fitting.frozen.model.parameters())
    assert fitting.steps.device.type == "cpu"  # looked at in each step
    fitting = build().teacher.fitting.to(device)
    batch = {key: value.to(device) for key, value in prepared_batch(system.task).items()}
    assert fitting.observe(batch).logits.is_meta


class _Stop:
    """Interrupts a fit at a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "tick" and event["step"] == self.step:
            import signal

            signal.raise_signal(signal.SIGINT)


def test_stage_resumed_is_straight_and_kept(tmp_path: Path) -> None:
    def fitted(folder: Path | None, log: RunLog | None = None) -> str:
        system = build(fitted=False, crop=1)
        prepare(system, system.task, CONFIG, folder=folder, log=log)
        return fingerprint(system.teacher.fitting)

    straight = fitted(None)
    with pytest.raises(Interrupted):
        fitted(tmp_path, RunLog(None, (_Stop(4),)))
    assert fitted(tmp_path) == straight
    events: list[dict[str, Any]] = []
    assert fitted(tmp_path, RunLog(None, (events.append,))) == straight
    assert not events  # read back


def test_what_is_kept_depends_on_tap_and_views() -> None:
    texts = {
        repr(build(**options).teacher.fitting)
        for options in ({}, {"teacher_tap": "pooled"}, {"crop": 1})
    }
    assert len(texts) == 3
    nets = student_net(), teacher_net()
    taps = {"student_tap": "hidden", "teacher_tap": "hidden"}
    signal = SSKD(*nets, task=TinyTask(), transform="signal", **taps)
    assert "transform='signal'" in repr(signal.teacher.fitting)


def test_prepare_forgotten() -> None:
    system = build(fitted=False)
    batch = prepared_batch(system.task)
    with torch.no_grad():
        system.teacher.fitting.eval()(batch, NOW)  # a look is no fit
    with pytest.raises(RecipeError) as error:
        system(batch, NOW)
    assert str(error.value) == (
        "The teacher's head of SSKD is not fitted yet; call "
        "congener.engine.prepare(system, task, config) first."
    )


def test_identical_copies_make_the_terms_alike() -> None:
    """P8: copies that are not transformed teach what the samples do."""
    system = build(temperatures={"kd": 2, "transformed": 2}).eval()
    batch = prepared_batch(system.task)
    system.views = lambda batch, progress: {  # type: ignore[method-assign]
        key: value.repeat_interleave(4, dim=0) for key, value in batch.items()
    }
    _, terms, _ = system(batch, NOW)
    torch.testing.assert_close(terms["transformed"], terms["kd"])


def test_without_its_own_terms_it_is_kd_but_for_batch_normalisation() -> None:
    """P9."""
    off = {"transformed": 0.0, "self_supervised": 0.0}
    for norm in (False, True):
        system = build(norm=norm, term_weights=off).train()
        teacher = deepcopy(system.teacher.fitting.frozen.model)
        plain = Distillation(
            conv_net(norm=norm).double(), teacher, [Term(KDLoss(4.0), 0.9)],
            task=system.task, task_weight=0.1,
        ).train()  # fmt: skip
        batch = prepared_batch(system.task)
        totals = []
        for each in (system, plain):
            total, _, _ = each(batch, NOW)
            total.backward()
            totals.append(total.item())
        if norm:
            assert abs(totals[0] - totals[1]) > 1e-4
            continue
        assert totals[0] == pytest.approx(totals[1], rel=1e-12)
        wanted = dict(plain.student.named_parameters())
        for name, parameter in system.student.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name].grad)


def test_order_of_the_samples_does_not_matter() -> None:
    """P10, crops included."""
    system = build(crop=2).train()
    batch = prepared_batch(system.task, 7)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    _, terms, _ = system(batch, NOW)
    _, others, _ = system({key: value[order] for key, value in batch.items()}, NOW)
    torch.testing.assert_close(others, terms)


def test_batch_of_one_has_nothing_to_match() -> None:
    system = build(norm=False).train()
    with lone_sample_expected():
        total, terms, _ = system(prepared_batch(system.task, 1), NOW)
    total.backward()
    assert terms["self_supervised"].item() == 0
    assert terms["transformed"].item() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.parameters())


def test_samples_without_labels_teach_all_but_the_task() -> None:
    system = build().eval()
    batch = system.views(prepared_batch(system.task), NOW)
    batch["labels"][:8] = -100
    teacher = system.teacher(batch)
    student = system.observe(batch)
    leaf = Outputs(
        student.logits.detach().requires_grad_(),
        {"pooled": student.features["pooled"].detach().requires_grad_()},
    )
    _, terms = system.score(leaf, teacher, batch, NOW)
    moved = {}
    for name, value in terms.items():
        place = leaf.features["pooled"] if name == "self_supervised" else leaf.logits
        (gradient,) = torch.autograd.grad(value, place)
        moved[name] = (gradient != 0).any(1).view(6, 4)
    originals = torch.tensor([True, False, False, False]).expand(6, 4)
    assert torch.equal(moved["task"][2:], originals[2:])
    assert not moved["task"][:2].any()
    assert torch.equal(moved["kd"], originals)
    assert torch.equal(moved["transformed"], ~originals)
    assert moved["self_supervised"][:, 0].all()


def _trajectory(pieces: int, count: int = 50) -> tuple[list[dict[str, float]], str]:
    system = build(norm=False, crop=1, task=Wide(count=count))
    config = CONFIG.model_copy(update={"steps": 8, "batch_size": 6, "accumulate": pieces})
    events: list[dict[str, Any]] = []
    log = RunLog(None, (events.append,))
    fit(system, system.task, config, train=system.task.splits["train"], test=None, log=log)
    steps = [{"total": e["total"]} | e["terms"] for e in events if e["event"] == "step"]
    return steps, system


@pytest.mark.parametrize("pieces", [2, 5])
def test_pieces_are_the_whole_batch(pieces: int) -> None:
    """Five pieces of 24 rows cut through a sample's views; the last batch of 20 is ragged."""
    whole, one = _trajectory(1, count=20)
    cut, other = _trajectory(pieces, count=20)
    assert len(whole) == 8
    for expected, found in zip(whole, cut, strict=True):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tap", ["pooled", "layer2"])
def test_balance_tells_how_the_match_pulls_at_the_tap(tap: str) -> None:
    system = build(student_tap=tap).train()
    batch = system.views(prepared_batch(system.task), NOW)
    student = system.observe(batch)
    _, terms = system.score(student, system.teacher(batch), batch, NOW)
    balance = loss_balance(student, terms, system.weights(NOW))
    assert set(balance) == set(terms)
    own = balance["self_supervised"]
    torch.testing.assert_close(own["weighted"], 10 * terms["self_supervised"].detach())
    assert own["gradient_norm"] > 0
    assert own["cosine"].abs() < 1


@pytest.mark.parametrize("shape", [(), (1,)])
def test_signals_are_trained_on(shape: tuple[int, ...]) -> None:
    task = TinyTask()
    for split in task.splits.values():
        split.images = split.images.reshape(-1, *shape, 6)
    nets = [nn.Sequential(nn.Flatten(), *net) for net in (student_net(), teacher_net())]
    taps = {"student_tap": "1", "teacher_tap": "1"}
    system = SSKD(*nets, task=task, transform="signal", head={"steps": 3}, **taps)
    prepare(system, task, CONFIG)
    fit(system, task, CONFIG, train=task.splits["train"], test=task.splits["test"])


def test_half_precision_runs() -> None:
    task = TinyPictureTask()
    taps = {"student_tap": "layer2", "teacher_tap": "layer2"}
    system = SSKD(conv_net(), conv_teacher(), task=task, **taps)
    config = CONFIG.model_copy(update={"precision": "bf16", "steps": 3})
    prepare(system, task, config)
    fit(system, task, config, train=task.splits["train"], test=None)


def test_recipe_values_bind() -> None:
    given = {
        "student_tap": "pooled", "teacher_tap": "pooled", "transform": "rotations", "crop": 4,
        "term_weights": {"self_supervised": 5}, "temperatures": {"kd": 2}, "ratios": {},
        "head": {"epochs": 60, "schedule": "multistep", "milestones": [30, 45]},
    }  # fmt: skip
    bind("system", "sskd", SSKD, given, defaults={"student": 0, "teacher": 0, "task": 0})
    system = build(**given)
    assert system.term_weights["self_supervised"] == 5
    (stage,) = system.stages()
    assert isinstance(stage.system, SSKDHead)
    assert stage.settings == given["head"]
    assert stage.data == "teacher"
    assert stage.depends == (system.teacher.fitting.frozen.model,)
    for name, value in given.items():
        assert f"{name}=" in system.extra_repr(), value


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"task": Wide((1, 8, 4))},
            "Views by rotation need square images (channels, side, side), but a sample here has "
            "the shape (1, 8, 4); make the images square, or take transform='signal' for samples "
            "(length,) or (channels, length).",
        ),
        (
            {"task": Wide((40,))},
            "Views by rotation need square images (channels, side, side), but a sample here has "
            "the shape (40,); make the images square, or take transform='signal' for samples "
            "(length,) or (channels, length).",
        ),
        (
            {"transform": "signal"},
            "Views of a signal need samples (length,) or (channels, length) of floating point, "
            "but a sample here has the shape (1, 8, 8) and the type torch.float64; take "
            "transform='rotations' for square images.",
        ),
        (
            {"term_weights": {"self_supervsed": 1.0}},
            "SSKD has no term_weights of 'self_supervsed'; did you mean 'self_supervised'?",
        ),
        (
            {"ratios": {"kd": 1.0}},
            "SSKD has no ratios of 'kd'; known: 'self_supervised', 'transformed'.",
        ),
        (
            {"temperatures": {"task": 1.0}},
            "SSKD has no temperatures of 'task'; known: 'kd', 'self_supervised', 'transformed'.",
        ),
        (
            {"transform": "rotation"},
            "transform must be one of 'rotations', 'signal', not 'rotation'.",
        ),
        (
            {"crop": -1},
            "crop=-1 with transform='rotations': a crop is the width of a border of images, 0 or "
            "more; leave it out.",
        ),
        (
            {"crop": 2, "transform": "signal"},
            "crop=2 with transform='signal': a crop is the width of a border of images, 0 or "
            "more; leave it out.",
        ),
        (
            {"student_tap": "poled"},
            "The network has no module 'poled' to tap; did you mean 'pooled' or",
        ),
        ({"temperatures": {"kd": 0.0}}, "temperature must be positive"),
        ({"temperatures": {"self_supervised": -1.0}}, "temperature must be positive"),
        ({"ratios": {"transformed": 1.5}}, "ratio must lie between 0 and 1, not 1.5."),
    ],
)
def test_what_it_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((CongenerError, ValueError)) as error:
        build(**options)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ({"epoch": 60}, "'epoch' is unknown; did you mean 'epochs'?"),
        ({"lr": "fast"}, "lr: expected a number."),
        ({"epochs": 1, "steps": 1}, "give either `epochs` or `steps`, one of them."),
    ],
)
def test_settings_of_the_stage_that_do_not_fit(head: dict[str, Any], sentence: str) -> None:
    system = build(fitted=False, head=head)
    with pytest.raises(RecipeError) as error:
        prepare(system, system.task, CONFIG)
    assert str(error.value) == f"The settings of the stage 'sskd_head': {sentence}"


def test_milestones_of_another_length_are_not_the_stages() -> None:
    config = FitConfig(epochs=9, lr=0.1, schedule="multistep", milestones=(5, 7), device="cpu")
    system = build(fitted=False, head={"steps": 6})
    with pytest.raises(RecipeError) as error:
        prepare(system, system.task, config)
    assert str(error.value) == (
        "The settings of the stage 'sskd_head': with a length of its own it needs `milestones` of "
        "its own too, or another `schedule`."
    )
    for more in ({"milestones": [3]}, {"schedule": "cosine"}):
        prepare(build(fitted=False, head={"steps": 6, **more}), system.task, config)


def test_tokens_are_no_signal() -> None:
    task = TinyTask()
    for split in task.splits.values():
        split.images = split.images.long()
    with pytest.raises(ShapeError, match=r"the shape \(6,\) and the type torch.int64; take"):
        Views(task, "signal", 0)


def test_batches_without_images_are_refused() -> None:
    class Texts(Wide):
        def prepare(self, batch: Batch, **options: Any) -> Batch:
            return {"text": batch["image"], "labels": batch["labels"], "index": batch["index"]}

    with pytest.raises(RecipeError) as error:
        build(task=Texts())
    assert str(error.value) == (
        "SSKD transforms what a batch holds as 'image', but here it holds index, labels, text; "
        "use a system that compares the samples as they are."
    )


def test_a_tap_without_channels_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.flat = conv_net().double(), Flat()

        def forward(self, x: Tensor) -> Tensor:
            logits = self.net(x)
            self.flat(logits)
            return logits

    with pytest.raises(CongenerError) as error:
        SSKD(Net(), conv_teacher().double(), task=Wide(), student_tap="flat", teacher_tap="pooled")
    assert str(error.value) == (
        "The tap 'flat' gives (3,) of torch.float64, which is no feature (batch, channels) or "
        "(batch, channels, ...) of floating point; tap another module."
    )
