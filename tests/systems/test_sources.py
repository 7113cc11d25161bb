"""What answers the further words of a loss: class means, re-styled logits, negatives and others."""

from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.systems.tiny import CLASSES, TinyPictureTask, TinyTask, batch_of, conv_net, conv_teacher
from torch import Tensor, nn

from congener.engine import FitConfig, prepare
from congener.engine.accumulate import accumulated_step
from congener.errors import DataError, RecipeError, TapError
from congener.losses import (
    AdaINLoss,
    CRDLoss,
    DISTLoss,
    DKDLoss,
    KDLoss,
    NDLoss,
    OFDLoss,
    ReviewKDLoss,
    SRRLLoss,
    crd_contrast_index,
)
from congener.system import SurveyStage
from congener.systems import Distillation
from congener.systems.sources import Seen
from congener.task import Task
from congener.types import Batch, Progress, Term

NOW = Progress(0, 9, 0)
CONFIG = FitConfig(steps=2, batch_size=16, threads=1, device="cpu")


def teacher_of_pictures(width: int = 12) -> nn.Sequential:
    """With running statistics and affine parameters that matter."""
    net = conv_net(width, dropout=0.5)
    generator = torch.Generator().manual_seed(7)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.running_mean, norm.weight.data, norm.bias.data):
            value.copy_(torch.randn(value.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.5)
    return net


def build(
    *terms: Term,
    width: int = 8,
    teacher: nn.Module | None = None,
    task: Task | None = None,
    ready: bool = True,
    **options: Any,
) -> Distillation:
    task = task or TinyPictureTask()
    teacher = teacher or teacher_of_pictures()
    system = Distillation(conv_net(width, norm=False), teacher, terms, task=task, **options)
    if ready:
        prepare(system, task, CONFIG)
    return system


def gradients(total: Tensor, system: nn.Module) -> dict[str, Tensor]:
    named = {name: p for name, p in system.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def same(system: Distillation, wanted: Tensor, batch: Batch) -> None:
    """The total and every gradient are those of a sum written out in plain torch."""
    oracle = gradients(wanted, system)
    total, _, _ = system(batch, NOW)
    torch.testing.assert_close(total, wanted)
    found = gradients(total, system)
    assert found.keys() == oracle.keys()
    torch.testing.assert_close(found, oracle)


def normalised(bn: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, bn.weight, bn.bias, training=True)


def projected(projector: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution without bias, batch normalisation, ReLU."""
    return normalised(projector.bn, F.conv2d(x, projector.conv.weight)).relu()


def task_loss(system: Distillation, batch: Batch) -> Tensor:
    return F.cross_entropy(system.student(batch["image"]), batch["labels"])


# ND


def means_by_hand(teacher: nn.Sequential, data: Any) -> Tensor:
    features: list[list[Tensor]] = [[] for _ in range(CLASSES)]
    with torch.no_grad():
        for image, label in (data[i] for i in range(len(data))):
            if label >= 0:
                features[label].append(teacher.pooled(teacher.layer2(teacher.layer1(image[None]))))
    return torch.cat([torch.cat(rows).double().mean(0, keepdim=True) for rows in features])


def nd_by_hand(student: Tensor, teacher: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    values = []
    for s, t, label in zip(student, teacher, labels, strict=True):
        along = s @ (means[label] / means[label].norm()).float()
        values.append(1 - along / max(s.norm(), t.norm().detach()))
    return torch.stack(values).mean()


@pytest.mark.parametrize("tap", ["pooled", "layer2"])
def test_nd_of_one_width_is_the_formula(tap: str) -> None:
    system = build(Term(NDLoss(), 2.0, tap, tap), width=12, task_weight=0.5)
    batch, teacher = batch_of(system.task), system.teacher.model
    features = [
        net.layer2(net.layer1(batch["image"])).mean((2, 3)) for net in (system.student, teacher)
    ]
    nd = nd_by_hand(*features, batch["labels"], means_by_hand(teacher, system.task.splits["train"]))
    same(system, 0.5 * task_loss(system, batch) + 2 * nd, batch)
    assert not list(system.answers.parameters())  # P8


def test_nd_of_two_widths_has_a_projector_between_the_tap_and_the_loss() -> None:
    system = build(Term(NDLoss(), 2.0, "pooled", "pooled"))
    (projector,) = (m for n, m in system.answers.named_modules() if n.endswith("projector"))
    assert [tuple(p.shape) for p in projector.parameters()] == [(16,), (16,), (24, 16), (24,)]
    assert projector.dropout.p == 0.5
    assert not projector.linear.bias.any()
    projector.dropout.p = 0.0
    batch, teacher = batch_of(system.task), system.teacher.model
    raw = system.student.pooled(system.student.layer2(system.student.layer1(batch["image"])))
    mine = projector.linear(normalised(projector.bn, raw))
    theirs = teacher.pooled(teacher.layer2(teacher.layer1(batch["image"])))
    means = means_by_hand(teacher, system.task.splits["train"])
    nd = nd_by_hand(mine, theirs, batch["labels"], means)
    same(system, task_loss(system, batch) + 2 * nd, batch)
    projector.dropout.p = 0.5
    assert not torch.equal(system(batch, NOW)[0], system(batch, NOW)[0])
    assert torch.equal(system.eval()(batch, NOW)[0], system(batch, NOW)[0])


def test_a_wider_student_has_a_projector_too() -> None:
    system = build(Term(NDLoss(), 1.0, "pooled", "pooled"), width=16)
    assert system(batch_of(system.task), NOW)[1]["nd"].isfinite()
    assert system.answers["nd"][0][0].projector.linear.weight.shape == (24, 32)


def test_nd_of_weight_nought_is_the_host() -> None:
    """P5: the host's steps, bit for bit."""
    fates = []
    for terms in ([], [Term(NDLoss(), 0.0, "pooled", "pooled")]):
        system = build(Term(KDLoss(), 0.7), *terms)
        optimizer = torch.optim.Adam(system.parameters(), 0.01)
        for step in range(4):
            optimizer.zero_grad()
            system(batch_of(system.task), Progress(step, 4, 0))[0].backward()
            optimizer.step()
        fates.append(system.student.state_dict())
    assert all(torch.equal(fates[0][name], fates[1][name]) for name in fates[0])


def means_of(system: Distillation) -> Tensor:
    return system.answers["nd"][0][0].class_means


def test_class_means_are_those_of_the_groups_whatever_the_batches() -> None:
    """P7; the teacher's dropout is off, and unlabelled samples do not count."""
    task = TinyPictureTask()
    task.splits["train"].labels[3:9] = -100
    term = partial(Term, NDLoss(), 1.0, "pooled", "dropout")
    wanted = means_by_hand(teacher_of_pictures().eval(), task.splits["train"])
    system = build(term(), task=task)
    torch.testing.assert_close(means_of(system), wanted.float())
    backwards = TinyPictureTask()
    train = backwards.splits["train"]
    train.images, train.labels = (
        x.flip(0) for x in (task.splits["train"].images, task.splits["train"].labels)
    )
    for other, size in ((task, 7), (backwards, 16)):
        again = build(term(), task=other, ready=False)
        prepare(again, other, CONFIG.model_copy(update={"batch_size": size}))
        torch.testing.assert_close(means_of(again), wanted.float())
    assert "answers.nd.0.0.class_means" in system.state_dict()


def test_class_means_are_of_what_the_teacher_learned_from() -> None:
    task = TinyPictureTask()
    task.splits = {**task.splits, "teacher": TinyPictureTask(30).splits["test"]}
    system = build(Term(NDLoss(), 1.0, "pooled", "pooled"), task=task)
    wanted = means_by_hand(system.teacher.model, task.splits["teacher"])
    torch.testing.assert_close(means_of(system), wanted.float())


def test_a_class_without_a_sample_is_told_before_training() -> None:
    task = TinyPictureTask()
    task.splits["train"].labels[task.splits["train"].labels == 1] = -100
    with pytest.raises(DataError) as error:
        build(Term(NDLoss(), 1.0, "pooled", "pooled"), task=task)
    assert str(error.value) == (
        "The term 'nd' cannot have class means: classes [1] have no sample, so no mean; give "
        "samples of every class."
    )


def test_a_task_without_classes_has_no_class_means() -> None:
    task = TinyPictureTask()
    task.class_names = ()
    with pytest.raises(RecipeError, match="'nd' needs the mean of each class, and this task has"):
        build(Term(NDLoss(), 1.0, "pooled", "pooled"), task=task)


@pytest.mark.parametrize("name", ["nd", "crd"])
def test_a_survey_that_was_forgotten_is_told(name: str) -> None:
    losses = {"nd": NDLoss(), "crd": CRDLoss(16, 24, 50, negatives=4)}
    system = build(Term(losses[name], 1.0, "pooled", "pooled"), ready=False)
    with pytest.raises(RecipeError) as error:
        system(batch_of(system.task), NOW)
    assert str(error.value) == (
        f"The term {name!r} needs a survey of the data first; call "
        "congener.engine.prepare(system, task, config) before training."
    )


@pytest.mark.parametrize(
    "host",
    [
        Term(KDLoss()),
        Term(DKDLoss()),
        Term(DISTLoss()),
        Term(ReviewKDLoss((8, 16), (12, 24)), 0.1, ("layer1", "layer2"), ("layer1", "layer2")),
    ],
    ids=lambda host: f"{host.loss.name}++",
)
def test_hosts_that_nd_improves(host: Term) -> None:
    system = build(host, Term(NDLoss(), 0.5, "pooled", "pooled"))
    total, terms, _ = system(batch_of(system.task), NOW)
    assert terms.keys() == {"task", host.loss.name, "nd"}
    torch.testing.assert_close(
        total, terms["task"] + host.weight * terms[host.loss.name] + 0.5 * terms["nd"]
    )


def test_stages_of_all_terms_are_listed_and_told_apart() -> None:
    system = build(
        Term(NDLoss(), 1.0, ("pooled", "layer1"), ("pooled", "layer1")),
        Term(CRDLoss(16, 24, 50, negatives=4), 1.0, "pooled", "pooled"),
    )
    stages = list(system.stages())
    assert all(isinstance(stage, SurveyStage) for stage in stages)
    assert [stage.name for stage in stages] == ["class_means", "class_means", "crd_labels"]
    assert stages[0].key != stages[1].key
    assert [stage.data for stage in stages] == ["teacher", "teacher", "train"]
    assert [stage.depends for stage in stages] == [(system.teacher.model,)] * 2 + [()]
    batch = batch_of(system.task)
    assert system(batch, NOW)[1]["nd"].isfinite()


# AdaIN


def restyled_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.flatten(2)
        return rows.mean(2)[..., None, None], (rows.var(2) + 1e-5).sqrt()[..., None, None]

    (mean, deviation), (their_mean, their_deviation) = map(statistics, (student, teacher.detach()))
    return (teacher.detach() - their_mean) / their_deviation * deviation + mean


def kl_by_hand(restyled: Tensor, logits: Tensor) -> Tensor:
    soft = F.softmax(logits.detach() / 4, 1)
    return 16 * F.kl_div(F.log_softmax(restyled / 4, 1), soft, reduction="batchmean")


BOTH = ("layer1", "layer2")


@pytest.mark.parametrize("width", [12, 8])
def test_adain_is_the_formula_summed_over_taps(width: int) -> None:
    term = Term(AdaINLoss(), 1.5, BOTH, BOTH, layer_weights=(1.0, 0.25))
    system = build(term, width=width)
    batch, teacher = batch_of(system.task), system.teacher.model
    mine, theirs = ([net.layer1(batch["image"])] for net in (system.student, teacher))
    for maps, net in ((mine, system.student), (theirs, teacher)):
        maps.append(net.layer2(maps[0]))
    if width == 8:
        for level, pair in enumerate(system.answers["adain"]):
            conv = pair[0].projector.conv
            assert conv.bias is None
            deviation = (2 / conv.weight.shape[0]) ** 0.5
            assert conv.weight.std().item() == pytest.approx(deviation, rel=0.2)
            mine[level] = projected(pair[0].projector, mine[level])
    else:
        assert not list(system.answers.parameters())
    logits = teacher.classifier(theirs[1].mean((2, 3)))
    restyled = [restyled_by_hand(s, t) for s, t in zip(mine, theirs, strict=True)]
    tails = [teacher.layer2(restyled[0]), restyled[1]]
    first, second = (kl_by_hand(teacher.classifier(x.mean((2, 3))), logits) for x in tails)
    same(system, task_loss(system, batch) + 1.5 * (first + 0.25 * second), batch)
    assert all(p.grad is None for p in teacher.parameters())


def pair_source(tap: str, width: int = 12) -> tuple[Any, Distillation]:
    system = build(Term(AdaINLoss("mse_logits"), 1.0, tap, tap), width=width)
    return system.answers["adain"][0][0], system


@pytest.mark.parametrize("tap", BOTH)
def test_own_statistics_give_the_own_logits(tap: str) -> None:
    """P1."""
    source, system = pair_source(tap)
    batch = batch_of(system.task)
    said = build(Term(AdaINLoss(), 1.0, tap, tap), width=12).teacher(batch)
    restyled = ask(source, said.features[tap], said.features[tap], batch)
    torch.testing.assert_close(restyled, said.logits, atol=1e-4, rtol=1e-4)


def ask(source: Any, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    return source(Seen(student, teacher, batch, NOW, student, teacher))["restyled_logits"]


def test_only_statistics_count() -> None:
    """P4: any permutation of the student's positions."""
    source, system = pair_source("layer1")
    batch = batch_of(system.task)
    teacher = system.teacher(batch).features["layer1"]
    student = torch.randn(12, 12, 4, 4, generator=torch.Generator().manual_seed(0))
    places = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    moved = student.flatten(2)[..., places].reshape(student.shape)
    first, second = (ask(source, x, teacher, batch) for x in (student, moved))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("tap", "constant"), [("layer1", False), ("layer2", True)])
def test_behind_the_last_map_the_deviation_has_no_effect(tap: str, constant: bool) -> None:
    """P5."""
    source, system = pair_source(tap)
    batch = batch_of(system.task)
    teacher = system.teacher(batch).features[tap]
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    restyled = ask(source, student, teacher, batch)
    (gradient,) = torch.autograd.grad(restyled.square().sum(), student)
    spread = gradient.flatten(2).std(2).max()
    assert (spread < 1e-6) if constant else (spread > 1e-3)


def test_samples_are_independent_of_each_other_and_of_the_teachers_mode() -> None:
    """P6, P8: the rest of the teacher runs in evaluation mode whatever was asked of it."""
    source, system = pair_source("layer1")
    batch = batch_of(system.task)
    teacher = system.teacher(batch).features["layer1"]
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0))
    before = deepcopy(system.teacher.model.state_dict())
    system.teacher.model.train()
    whole = ask(source, student, teacher, batch)
    part = {key: value[4:7] for key, value in batch.items()}
    torch.testing.assert_close(ask(source, student[4:7], teacher[4:7], part), whole[4:7])
    after = system.teacher.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_rest_alone_runs_and_keeps_nothing_but_what_was_there() -> None:
    source, system = pair_source("layer1")
    batch, net = batch_of(system.task), system.teacher.model
    teacher = system.teacher(batch).features["layer1"]
    student = torch.randn(teacher.shape).requires_grad_()
    ask(source, student, teacher, batch)
    runs: list[str] = []
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    hooks = [
        m.register_forward_pre_hook(lambda *_, n=n: runs.append(n)) for n, m in net.named_modules()
    ]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = ask(source, student, teacher, batch)
    forward = len(runs)
    logits.sum().backward()
    for hook in hooks:
        hook.remove()
    assert "layer1.0" not in runs
    assert runs.count("layer2.0") == 2
    assert set(runs[forward:]) == set(runs[:forward])
    assert all(x is student or x is teacher or x.numel() < 2 for x in kept)


class Shortcut(nn.Module):
    """A teacher that looks at its input again behind the tap."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.net = nn.Conv2d(1, 4, 3), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.map(x).amax((2, 3))) + x.flatten(1)[:, :CLASSES]


def test_the_rest_sees_the_batch() -> None:
    torch.manual_seed(0)
    system = build(Term(AdaINLoss("mse_logits"), 1.0, "layer1", "map"), teacher=Shortcut())
    batch, source = batch_of(system.task), system.answers["adain"][0][0]
    said = system.teacher(batch)
    student = torch.randn(12, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    source.projector = None
    peaks = restyled_by_hand(student, said.features["map"]).amax((2, 3))
    wanted = system.teacher.model.net(peaks) + batch["image"].flatten(1)[:, :CLASSES]
    torch.testing.assert_close(ask(source, student, said.features["map"], batch), wanted)


def channels(width: int) -> nn.Sequential:
    """A network of sequences (batch, channels, length)."""
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, width, 3, padding=1), nn.ReLU(),
        nn.Conv1d(width, width, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(width, CLASSES),
    )  # fmt: skip


@pytest.mark.parametrize("width", [4, 5])
def test_maps_of_one_dimension(width: int) -> None:
    task, teacher = TinyTask(), channels(5)
    system = Distillation(
        channels(width), teacher, [Term(AdaINLoss("mse_logits"), 1.0, "2", "2")], task=task
    )
    batch = batch_of(task)
    x = batch["image"][:, None]
    mine, theirs = (net[2](net[1](x)) for net in (system.student, teacher))
    if width != 5:
        projector = system.answers["adain"][0][0].projector
        mine = projected(projector, mine[..., None])[..., 0]
    restyled = restyled_by_hand(mine[..., None], theirs[..., None])[..., 0]
    adain = (teacher[3:](restyled) - teacher(batch["image"])).square().mean()
    same(system, F.cross_entropy(system.student(batch["image"]), batch["labels"]) + adain, batch)


@pytest.mark.parametrize(
    ("mine", "theirs", "which"),
    [("layer2", "pooled", "teacher tap gives (1, 24)"), ("pooled", "layer2", "student tap gives")],
)
def test_a_tap_behind_the_last_map_has_no_statistics(mine: str, theirs: str, which: str) -> None:
    with pytest.raises(RecipeError) as error:
        build(Term(AdaINLoss(), 1.0, mine, theirs))
    assert which in str(error.value)
    assert str(error.value).startswith(
        "The term 'adain' compares statistics of maps, and a tap behind the last map has none"
    )


@pytest.mark.parametrize("balance", [False, True])
def test_pieces_give_the_gradient_of_the_whole(balance: bool) -> None:
    crd = Term(CRDLoss(24, 24, 50, 8, negatives=4), 0.1, "pooled", "pooled")
    terms = (Term(AdaINLoss(), 1.0, BOTH, BOTH), Term(NDLoss(), 1.0, "pooled", "pooled"), crd)
    system = build(*terms, width=12)
    twin = deepcopy(system)
    batch = batch_of(system.task)
    total, _, balances = system(batch, NOW, balance=balance)
    total.backward()
    pieces, _, _ = accumulated_step(twin, batch, NOW, 3, Accelerator(cpu=True), balance=balance)
    torch.testing.assert_close(pieces, total)
    for (name, one), other in zip(system.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    assert not balance or balances["adain"]["gradient_norm"] > 0


# CRD


def crd_system(task: Task | None = None, samples: int = 50, **options: Any) -> Distillation:
    loss = CRDLoss(16, 24, samples, 8, negatives=6)
    return build(Term(loss, 0.3, "pooled", "pooled"), task=task, **options)


def test_crd_is_the_loss_with_the_negatives_of_the_step() -> None:
    system = crd_system()
    system.eval()  # the banks stay as they are
    batch, labels = batch_of(system.task), system.task.splits["train"].labels
    student, teacher = system.observe(batch), system.teacher(batch)
    features = [x.features["pooled"] for x in (student, teacher)]
    seen = []
    for step in (0, 5):
        rows = crd_contrast_index(batch["index"], labels, step=step, negatives=6)
        assert rows.shape == (12, 7)
        wanted = system.losses["crd"](*features, batch["index"], rows)
        seen.append(system(batch, Progress(step, 9, 0))[1]["crd"])
        torch.testing.assert_close(seen[-1], wanted)
    assert seen[0] != seen[1]


def stage_of(system: Distillation) -> SurveyStage:
    (stage,) = system.stages()
    assert isinstance(stage, SurveyStage)
    return stage


def test_labels_are_laid_out_by_index_in_any_order() -> None:
    task = TinyPictureTask()
    task.splits["train"].labels[4:6] = -100
    system = crd_system(task)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))

    def batches() -> Iterator[Batch]:
        for rows in order.split(8):
            yield {"index": rows, "labels": task.splits["train"].labels[rows]}

    figures = stage_of(system).measure(batches())
    assert torch.equal(figures["labels"], task.splits["train"].labels)
    assert torch.equal(system.state_dict()["answers.crd.0.0.labels"], figures["labels"])
    for several in ({}, {"labels": torch.ones(50, 4)}):
        unlabelled = stage_of(system).measure([{"index": torch.arange(50), **several}])
        assert (unlabelled["labels"] < 0).all()


@pytest.mark.parametrize("samples", [49, 51])
def test_banks_of_another_size_than_the_training_set(samples: int) -> None:
    with pytest.raises(DataError) as error:
        crd_system(samples=samples)
    assert str(error.value) == (
        f"The term 'crd' remembers {samples} samples, but the training set has 50, of index "
        "0…49; set `samples` to the size of the training set, whose samples are counted from 0."
    )


def test_samples_of_one_class_have_nothing_to_contrast() -> None:
    task = TinyPictureTask()
    task.splits["train"].labels[:] = 1
    with pytest.raises(DataError, match="'crd' has nothing to contrast: labels must have at least"):
        crd_system(task)


def test_a_batch_without_index() -> None:
    system = crd_system()
    batch = batch_of(system.task)
    del batch["index"]
    with pytest.raises(DataError, match="remembers each sample by its `index` in the training set"):
        system(batch, NOW)


def test_crd_remembers_one_pair_of_taps() -> None:
    taps = ("pooled", "dropout")
    with pytest.raises(RecipeError) as error:
        build(Term(CRDLoss(16, 24, 50, negatives=4), 1.0, taps, taps))
    assert str(error.value) == (
        "The term 'crd' remembers one pair of taps and has 2; write one term, with a loss and a "
        "`name` of its own, for each."
    )


def test_negatives_are_drawn_for_crd_alone() -> None:
    class Mine(nn.Module):
        def forward(self, student_feature: Tensor, contrast_index: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(RecipeError, match="'Mine' asks for contrast_index, which is drawn for a"):
        build(Term(Mine(), 1.0, "pooled", "pooled"))


# SRRL, OFD


@pytest.mark.parametrize("bias", [True, False])
def test_srrl_reads_by_the_teachers_classifier(bias: bool) -> None:
    teacher = teacher_of_pictures()
    teacher.layer1.append(nn.Identity())
    if not bias:
        teacher.classifier = nn.Linear(24, CLASSES, bias=False)
    system = build(Term(SRRLLoss(16, 24, 0.7), 2.0, "layer2", "layer2"), teacher=teacher)
    batch = batch_of(system.task)
    projector = system.losses["srrl"].projector
    mine = system.student.layer2(system.student.layer1(batch["image"]))
    theirs = teacher.layer2(teacher.layer1(batch["image"])).mean((2, 3))
    pooled = projected(projector, mine).mean((2, 3))
    feature = (pooled - theirs).square().mean()
    logit = (teacher.classifier(pooled) - teacher(batch["image"])).square().mean()
    same(system, task_loss(system, batch) + 2 * (feature + 0.7 * logit), batch)
    assert not list(system.answers.buffers())
    assert "answers" not in "".join(system.state_dict())


def test_the_classifier_is_the_last_layer_of_as_many_outputs() -> None:
    teacher = teacher_of_pictures()
    early = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, CLASSES))
    net = nn.ModuleDict({"early": early, "net": teacher, "late": nn.Linear(24, 7)})
    net.forward = lambda x: teacher(x) + 0 * early(x)  # type: ignore[method-assign]
    term = Term(SRRLLoss(16, 24), 1.0, "layer2", "net.layer2")
    system = Distillation(conv_net(norm=False), net, [term], task=TinyPictureTask())
    assert system.answers["srrl"][0][0]._classifier[0] is teacher.classifier


READS = "The term 'srrl' has the teacher's classifier read the student's feature, but the "


@pytest.mark.parametrize(
    ("tap", "shape", "deep"),
    [("layer1", "(1, 12, 4, 4)", False), ("layer2", "(1, 24, 2, 2)", True)],
)
def test_a_classifier_that_does_not_fit_the_tap(tap: str, shape: str, deep: bool) -> None:
    """A classifier of as many channels as the map need not read it."""
    teacher = teacher_of_pictures()
    if deep:
        teacher.classifier = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    with pytest.raises(RecipeError) as error:
        build(Term(SRRLLoss(16, 24), 1.0, "layer2", tap), teacher=teacher)
    assert str(error.value) == READS + (
        f"mean of what the teacher's tap '{tap}' gives, {shape}, does not make it give the "
        "teacher's logits; tap the map or feature that the classifier reads."
    )


def test_a_teacher_without_a_classifier() -> None:
    teacher = teacher_of_pictures()
    teacher.pooled, teacher.classifier = nn.Conv2d(24, CLASSES, 2), nn.Flatten()
    with pytest.raises(RecipeError) as error:
        build(Term(SRRLLoss(16, 24), 1.0, "layer2", "layer2"), teacher=teacher)
    assert str(error.value) == READS + (
        "teacher has no nn.Linear that gives its logits; choose another loss."
    )


def test_margins_are_those_of_the_normalisations_that_are_tapped() -> None:
    teacher = teacher_of_pictures()
    taps = ("layer1.1", "layer2.1:output")
    system = build(Term(OFDLoss((8, 16), (12, 24)), 1.0, ("layer1.0", "layer2.0"), taps))
    generator = torch.Generator().manual_seed(0)
    margins = [pair[0].margin for pair in system.answers["ofd"]]
    for margin, norm in zip(margins, (teacher.layer1[1], teacher.layer2[1]), strict=True):
        normal = torch.randn(200_000, 1, generator=generator)
        drawn = norm.bias + norm.weight.abs() * normal
        sampled = torch.where(drawn < 0, drawn, 0).sum(0) / (drawn < 0).sum(0)
        often = (drawn < 0).float().mean(0) > 0.05
        assert often.sum() > 5
        torch.testing.assert_close(margin[often], sampled[often], atol=0.03, rtol=0.03)
    batch = batch_of(system.task)
    student, said = system.observe(batch), system.teacher(batch)
    wanted = system.eval().losses["ofd"](
        [student.features[path] for path in ("layer1.0", "layer2.0")],
        [said.features[path] for path in taps],
        margins,
    )
    torch.testing.assert_close(system(batch, NOW)[1]["ofd"], wanted)


@pytest.mark.parametrize(
    ("tap", "found"), [("layer1", "Sequential"), ("layer1.1:input", "an input")]
)
def test_margins_of_no_normalisation(tap: str, found: str) -> None:
    with pytest.raises(RecipeError) as error:
        build(Term(OFDLoss((8,), (12,)), 1.0, "layer1.0", tap))
    assert str(error.value) == (
        "The term 'ofd' reads its margins off a batch normalisation before a ReLU, but the "
        f"teacher's tap {tap!r} is {found}; tap the normalisation."
    )


def test_a_term_of_a_further_teacher_is_answered_by_it() -> None:
    other = conv_net(10)
    terms = [
        Term(NDLoss(), 1.0, "pooled", "pooled", of="other"),
        Term(SRRLLoss(16, 20), 1.0, "layer2", "layer2", of="other"),
    ]
    system = build(*terms, teachers={"other": other})
    assert means_of(system).shape == (CLASSES, 20)
    torch.testing.assert_close(
        means_of(system), means_by_hand(other.eval(), system.task.splits["train"]).float()
    )
    assert system.answers["srrl"][0][0]._classifier[0] is other.classifier
    system(batch_of(system.task), NOW)[0].backward()


class Odd(nn.Module):
    """A network with modules that give no feature."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.flat, self.whole = conv_net(norm=False), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        self.flat(logits[:, 0])
        self.whole(logits.long())
        return logits


@pytest.mark.parametrize(
    ("tap", "gives"), [("flat", "(1,) of torch.float32"), ("whole", "(1, 3) of torch.int64")]
)
@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("loss", [NDLoss(), AdaINLoss(), SRRLLoss(16, 24)], ids=type)
def test_a_tap_that_gives_no_feature(loss: nn.Module, side: str, tap: str, gives: str) -> None:
    taps = {"student": "layer2", "teacher": "layer2"} | {side: tap}
    nets = {"student": conv_net(), "teacher": conv_net()} | {side: Odd()}
    with pytest.raises(TapError) as error:
        Distillation(
            nets["student"], nets["teacher"], [Term(loss, 1.0, **taps)], task=TinyPictureTask()
        )
    assert str(error.value) == (
        f"The tap {tap!r} gives {gives}, which is no feature (batch, channels) or (batch, "
        "channels, ...) of floating point; tap another module."
    )


def test_no_teacher_is_a_part_of_the_system() -> None:
    layers = [
        Term(AdaINLoss(), 1.0, "layer1", "layer1"),
        Term(SRRLLoss(16, 24), 1.0, *BOTH[1:] * 2),
    ]
    system = build(*layers, Term(NDLoss(), 1.0, "pooled", "pooled"), teacher=conv_teacher())
    parts = set(system.modules())
    assert not parts & set(system.teacher.model.modules())
