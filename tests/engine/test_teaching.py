"""What a fit has its teacher do, and what it tells of the difference."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.contract.systems_cases import SYSTEMS, SystemCase
from tests.systems.tiny import (
    CLASSES,
    FEATURES,
    TinyPictureTask,
    TinyTask,
    conv_net,
    conv_teacher,
    student_net,
    teacher_net,
)
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import (
    FitConfig,
    build_accelerator,
    check_teaching,
    fit,
    instruct,
    prepare,
    teaching,
)
from congener.engine.feed import epoch_batches
from congener.engine.teaching import output_error
from congener.errors import RecipeError
from congener.losses import KDLoss, SPLoss
from congener.runlog import Event, RunLog
from congener.system import System
from congener.systems import STKD, Distillation
from congener.task import Task
from congener.teachers import FrozenTeacher, Manner, fingerprint
from congener.types import Outputs, Term

CPU = torch.device("cpu")


def config(**settings: Any) -> FitConfig:
    small: dict[str, Any] = {"steps": 4, "batch_size": 16, "lr": 0.01, "threads": 1}
    return FitConfig(**small | {"device": "cpu", "balance_every": 0} | settings)


def pictures(teacher: nn.Module | None = None, student: nn.Module | None = None) -> Distillation:
    terms = [Term(KDLoss(temperature=4)), Term(SPLoss(), 2.0, "layer1", "layer1")]
    terms += [Term(SPLoss(), 1.0, "layer2", "classifier:input", name="last")]
    task = TinyPictureTask(96)
    student = student or conv_net(dropout=0.3)
    return Distillation(student, teacher or conv_teacher(), terms, task=task)


def fitted(system: Any, settings: FitConfig, **options: Any) -> list[Event]:
    """The events of a fit, without the time."""
    events: list[Event] = []
    task: Task = system.task
    splits = task.splits
    log = RunLog(None, (events.append,))
    fit(system, task, settings, train=splits["train"], test=splits["test"], log=log, **options)
    return [{k: v for k, v in event.items() if k not in ("time", "seconds")} for event in events]


def of(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["event"] == kind]


def test_by_default_nothing_is_told_and_nothing_changes() -> None:
    system, before = pictures(), FrozenTeacher.run_as
    events = fitted(system, config())
    assert isinstance(system.teacher, FrozenTeacher)
    assert system.teacher.manner == "fp32"
    assert not of(events, "teacher_error")
    assert before is FrozenTeacher.run_as
    assert fitted(pictures(), config(teacher_precision="fp32")) == events
    assert events[0]["event"] == "fit_started"


def test_asking_it_first_draws_no_random_number() -> None:
    """The network has no maps that a layout could change: the same losses, with dropout.

    The system draws its views, too.
    """

    def mixed() -> STKD:
        return STKD(student_net(dropout=0.3), teacher_net(), task=TinyTask())

    plain, told = (fitted(mixed(), config(teacher_layout=x)) for x in (None, "channels_last"))
    (error,) = of(told, "teacher_error")
    assert {each["relative"] for each in error["outputs"].values()} == {0.0}
    assert [event for event in told if event is not error] == plain


@pytest.mark.parametrize(
    ("precision", "held", "prepared", "told"),
    [("bf16", 256, 2, 32), ("bf16", 16, 1, 16), ("bf16", 1, 1, 16), ("int8", 16, 6, 16)],
)
def test_no_more_is_held_than_the_task_measures_at_once(
    precision: str, held: int, prepared: int, told: int
) -> None:
    """Of 6 batches of 16; int8's ranges need the rest, and so many batches."""
    task, seen, rows = TinyPictureTask(96), list[int](), list[int]()
    task.evaluation_batch = held
    prepare_plainly = task.prepare

    def prepared_by(batch: Any, **options: Any) -> Any:
        seen.append(len(batch["index"]))
        return prepare_plainly(batch, **options)

    def tell(_event: str, **told: Any) -> None:
        rows.append(int(told["line"].partition(" samples")[0].split()[-1]))

    task.prepare = prepared_by  # type: ignore[method-assign]
    settings = config(teacher_precision=precision)
    teacher = FrozenTeacher(conv_teacher(), task)
    train = task.splits["train"]
    instruct(teacher, task, settings, build_accelerator(settings), train=train, tell=tell)
    assert seen == [16] * prepared
    assert rows == [told]


@pytest.mark.parametrize(
    ("settings", "manner", "limit"),
    [
        ({"teacher_precision": "bf16"}, "bf16", 0.02),
        ({"teacher_precision": "bf16", "layout": "channels_last"}, "bf16, channels_last", 0.02),
        ({"teacher_layout": "channels_last"}, "fp32, channels_last", 1e-5),
        ({"precision": "bf16", "teacher_layout": "channels_last"}, "bf16, channels_last", 0.02),
        ({"teacher_precision": "int8"}, r"int8 (onnxruntime VERSION, 4 batches)", 0.05),
    ],
)
def test_the_error_is_that_of_its_answers_in_the_fit(
    settings: dict[str, Any], manner: str, limit: float
) -> None:
    """Computed once more here, from what the told teacher says and what the network does."""
    import onnxruntime

    network = conv_teacher()
    weights = fingerprint(network)
    system = pictures(network)
    events = fitted(system, config(**settings))
    (error,) = of(events, "teacher_error")
    assert events.index(error) == 1  # after fit_started, before the first step
    manner = manner.replace("VERSION", onnxruntime.__version__)
    assert isinstance(system.teacher, FrozenTeacher)
    assert error["manner"] == system.teacher.manner == manner
    assert fingerprint(network) == weights
    # 96 samples are six batches; two are measured on.
    batches = list(
        epoch_batches(
            system.task, system.task.splits["train"], batch_size=16, seed=0, epoch=0, first=0,
            last=2, share=(0, 1), workers=0,
        )
    )  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16, enabled=settings.get("precision") == "bf16"):
        said = Outputs.concatenate([system.teacher(batch) for batch in batches])
    with torch.no_grad():
        x = torch.cat([batch["image"] for batch in batches])
        exact = {"layer1": network.layer1(x)}
        exact["classifier:input"] = network.pooled(network.layer2(exact["layer1"]))
        logits = network.classifier(exact["classifier:input"])
    assert error["outputs"].keys() == {"logits", *exact}
    for name, wanted in (exact | {"logits": logits}).items():
        found = (said.logits if name == "logits" else said.features[name]).double().numpy()
        off = found - wanted.double().numpy()
        relative = np.sqrt((off**2).sum() / (wanted.double().numpy() ** 2).sum())
        assert error["outputs"][name]["relative"] == pytest.approx(relative, rel=2e-3)
        assert relative < limit
    same = np.mean(said.logits.argmax(1).numpy() == logits.argmax(1).numpy())
    assert error["outputs"]["logits"]["agreement"] == pytest.approx(same)
    assert error["line"].startswith(f"teacher in {manner}: logits off by ")
    assert "of 32 samples" in error["line"]
    worst = max(exact, key=lambda name: error["outputs"][name]["relative"])
    assert error["line"].endswith(f"at most ({worst})")
    assert "WARNING" not in error["line"]
    assert of(events, "fit_finished")


def test_the_student_learns_from_what_the_told_teacher_says() -> None:
    heard: list[Tensor] = []

    class Ear(nn.Module):
        name = "ear"

        def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
            heard.append(teacher_logits)
            return (student_logits - teacher_logits).square().mean()

    system = Distillation(conv_net(), conv_teacher(), [Term(Ear())], task=TinyPictureTask(96))
    fitted(system, config(precision="bf16", teacher_precision="fp32", steps=1))
    raw = next(
        epoch_batches(
            system.task, system.task.splits["train"], batch_size=16, seed=0, epoch=0, first=0,
            last=1, share=(0, 1), workers=0,
        )
    )  # fmt: skip
    assert torch.equal(heard[-1], conv_teacher().eval()(raw["image"]))
    fitted(system, config(precision="bf16", steps=1))
    assert heard[-1].dtype == torch.bfloat16  # told otherwise, it runs as the student again
    assert isinstance(system.teacher, FrozenTeacher)
    assert system.teacher.manner == "bf16"


def test_figures_by_hand() -> None:
    exact = Outputs(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), {"a": torch.tensor([[1.0], [-2.0]])})
    found = Outputs(torch.tensor([[3.0, 1.0], [0.0, 1.0]]), {"a": torch.tensor([[1.0], [-2.5]])})
    member = {"other": Outputs(torch.zeros(2, 2))}
    both = [Outputs(each.logits, each.features, member) for each in (exact, found)]
    errors = output_error(*both)
    assert errors.keys() == {"logits", "a", "other/logits"}
    p = 1 / (1 + math.e)  # of the smaller of two logits that differ by 1
    q = 1 / (1 + math.exp(2))
    divergence = p * math.log(p / (1 - q)) + (1 - p) * math.log((1 - p) / q)
    wanted = {"relative": 3 / math.sqrt(26), "worst_row": 0.6, "agreement": 0.5}
    assert errors["logits"] == pytest.approx(wanted | {"kl": divergence / 2}, rel=1e-3)
    assert errors["a"] == pytest.approx({"relative": 0.5 / math.sqrt(5), "worst_row": 0.25}, 1e-3)
    nothing = {"relative": 0.0, "worst_row": 0.0, "agreement": 1.0, "kl": 0.0}
    assert errors["other/logits"] == nothing


class Cancelling(nn.Module):
    """In bf16 nothing of its answer is left: it is small beside what is subtracted."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(FEATURES, CLASSES)
        self.inner.bias.data += 1e4

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x) - 1e4
        return result


def test_an_absurd_teacher_is_warned_of() -> None:
    torch.manual_seed(0)
    system = Distillation(student_net(), Cancelling(), [Term(KDLoss())], task=TinyTask())
    (error,) = of(fitted(system, config(teacher_precision="bf16")), "teacher_error")
    assert error["outputs"]["logits"]["relative"] == 1.0  # nothing of the exact answer is left
    assert error["line"].endswith("WARNING: this is another teacher; use bf16 or fp32")


@pytest.mark.parametrize(
    ("figures", "near"),
    [
        ({"relative": 0.5, "agreement": 0.9}, True),
        ({"relative": 0.51, "agreement": 1.0}, False),
        ({"relative": 0.1, "agreement": 0.89}, False),
        ({"relative": math.nan, "agreement": 1.0}, False),
    ],
)
def test_when_to_warn(figures: dict[str, float], near: bool) -> None:
    logits = {"worst_row": 0.1, "kl": 0.01, **figures}
    fine = {"worst_row": 0.1, "kl": 0.01, "relative": 0.0, "agreement": 1.0}
    for errors in ({"logits": logits}, {"logits": fine, "other/logits": logits}):
        assert ("WARNING" not in teaching._line("bf16", errors, 8)) == near


def systems(case: SystemCase) -> System:
    return case.build(case.task(), case.student(), case.teacher())


@pytest.mark.parametrize("case", SYSTEMS.values(), ids=list(SYSTEMS))
def test_every_system_has_a_teacher_that_can_be_told_or_says_no(case: SystemCase) -> None:
    system, settings = systems(case), config(teacher_precision="bf16", steps=2)
    if system.teacher is None:
        assert check_teaching(system.teacher, settings, CPU) == ()
        return
    if {"BackwardKD", "PseudoLabel", "SKD"} & {*case.covers, type(system).__name__}:
        with pytest.raises(RecipeError, match="for gradients, say"):
            check_teaching(system.teacher, settings, CPU)
        assert check_teaching(system.teacher, config(layout="channels_last"), CPU) == ()
        return
    (network,) = check_teaching(system.teacher, settings, CPU)
    before = fingerprint(network.model)
    prepare(system, system.task, settings)
    (error,) = of(fitted(system, settings), "teacher_error")
    assert network.manner == "bf16"
    assert 0 < error["outputs"]["logits"]["relative"] < 0.02
    assert fingerprint(network.model) == before


def test_int8_on_a_gpu_or_by_the_batch_is_refused() -> None:
    settings = config(teacher_precision="int8")
    frozen = FrozenTeacher(conv_teacher(), TinyPictureTask(), batch_statistics=True)
    with pytest.raises(RecipeError, match="normalises by the batch at hand; use bf16"):
        check_teaching(frozen, settings, CPU)
    with pytest.raises(RecipeError, match="this fit on cuda"):
        check_teaching(pictures().teacher, settings, torch.device("cuda"))


@pytest.mark.parametrize(
    "settings",
    [
        {"teacher_precision": "int8", "teacher_layout": "channels_last"},
        {"teacher_precision": "int8", "teacher_compile": True},
        {"teacher_precision": "int8", "shard": "teacher"},
        {"teacher_compile": True, "shard": "both"},
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not go together"):
        config(**settings)
    config(teacher_precision="bf16", shard="teacher")


@pytest.mark.parametrize("more", [{"teacher_precision": "int8"}, {"shard": "teacher"}])
def test_the_students_layout_is_not_that_of_what_cannot_have_one(more: dict[str, Any]) -> None:
    assert teaching._way(config(layout="channels_last", **more)).channels_last is False
    assert teaching._way(config(layout="channels_last")) == Manner(channels_last=True)


def test_it_is_asked_about_training_batches_as_large_as_in_a_step() -> None:
    system, asked = pictures(), []
    task = system.task
    prepare_batch = task.prepare

    def prepared(batch: Any, *, train: bool, seed: int, epoch: int) -> Any:
        asked.append((len(batch["index"]), train, seed, epoch))
        return prepare_batch(batch, train=train, seed=seed, epoch=epoch)

    task.prepare = prepared  # type: ignore[method-assign]
    settings = config(teacher_precision="bf16", accumulate=2)
    told: list[Any] = []
    instruct(
        system.teacher, task, settings, build_accelerator(settings),
        train=task.splits["train"], tell=lambda event, **_: told.append(event),
    )  # fmt: skip
    assert asked == [(8, True, 0, 0)] * 4  # a third of 96 samples
    assert told == ["teacher_error"]


def test_a_compiler_that_fails_is_told_once_and_the_teacher_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(network: nn.Module) -> nn.Module:
        network.register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("no g++\n"))
        )
        return network

    monkeypatch.setattr(torch, "compile", broken)
    system = pictures()
    events = fitted(system, config(teacher_compile=True))
    (notice,) = of(events, "not_compiled")
    assert notice["network"] == "teacher"
    assert notice["reason"] == "no g++"
    assert isinstance(system.teacher, FrozenTeacher)
    assert system.teacher.manner == "fp32"
    plain = fitted(pictures(), config())
    assert of(events, "step") == of(plain, "step")
    assert of(events, "teacher_error") == []


class FullPrecision(nn.Linear):
    """A network that bears no autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise ArithmeticError("float32 alone")
        return super().forward(x)


def test_what_goes_wrong_without_a_compiler_is_not_its_fault() -> None:
    terms, teacher = [Term(KDLoss())], FullPrecision(FEATURES, CLASSES)
    system, events = Distillation(student_net(), teacher, terms, task=TinyTask()), []
    settings, train = config(teacher_precision="bf16"), system.task.splits["train"]
    with pytest.raises(ArithmeticError, match="float32 alone"):
        fit(system, system.task, settings, train=train, test=None,
            log=RunLog(None, (events.append,)))  # fmt: skip
    assert of(events, "not_compiled") == []


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        events = fitted(pictures(), config(teacher_compile=True))
    (notice,) = of(events, "not_compiled")
    assert "no-such-compiler" in notice["reason"]
    assert of(events, "step") == of(fitted(pictures(), config()), "step")


def test_a_resumed_fit_tells_nothing_twice(tmp_path: Path) -> None:
    settings, checkpoint = config(teacher_precision="bf16"), tmp_path / "checkpoint.pt"
    log = RunLog(tmp_path)
    for _ in range(2):
        system = pictures()
        splits = system.task.splits
        fit(system, system.task, settings, train=splits["train"], test=splits["test"], log=log,
            checkpoint=checkpoint)  # fmt: skip
        assert isinstance(system.teacher, FrozenTeacher)
        assert system.teacher.manner == "bf16"
    assert (tmp_path / "events.jsonl").read_text().count("teacher_error") == 1


def told_in_two(rank: int, folder: Path) -> tuple[list[Event], Tensor, str]:
    network = conv_teacher()
    system = pictures(network, conv_net(norm=False))
    events = fitted(system, config(teacher_precision="int8"), folder=folder)
    assert isinstance(system.teacher, FrozenTeacher)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return events, system.teacher({"image": x}).logits, fingerprint(network)


def test_two_processes_have_the_same_int8_teacher(tmp_path: Path) -> None:
    (first, mine, weights), (second, theirs, others) = in_two_processes(
        tmp_path / "ranks", told_in_two, tmp_path / "kept"
    )
    assert torch.equal(mine, theirs)
    assert weights == others == fingerprint(conv_teacher())
    assert of(first, "teacher_error") == of(second, "teacher_error") != []
    assert len(list((tmp_path / "kept").glob("*.onnx"))) == 1
    alone = fitted(pictures(None, conv_net(norm=False)), config(teacher_precision="int8"))
    for one, two in zip(of(alone, "step"), of(first, "step"), strict=True):
        assert two["terms"] == pytest.approx(one["terms"], rel=1e-4, abs=1e-6)
