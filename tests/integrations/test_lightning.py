"""Systems as Lightning modules: a run ends where ours does."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from tests.systems.tiny import TinyData, TinyTask, student_net, teacher_net
from torch import Tensor, nn

from congener.engine import FitConfig, fit, prepare
from congener.errors import DataError, RecipeError
from congener.integrations.lightning import DistillationModule
from congener.losses import FitNetsLoss, KDLoss, NDLoss, SPLoss
from congener.schedules import Schedule
from congener.system import System
from congener.systems import DML, Distillation
from congener.types import Batch, Term

pytestmark = [
    # Lightning's own, under this version of torch
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
]

CONFIG = FitConfig(epochs=3, batch_size=16, lr=1e-2, warmup=2, device="cpu")


class Jittered(TinyData):
    """Points that the data set moves at random, each time that they are read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image + 0.3 * torch.randn(image.shape), label


class MovingTask(TinyTask):
    """Points that look otherwise in another view, under another seed, and when they are tested."""

    def __init__(self, count: int, unlabelled: int = 0) -> None:
        super().__init__(count)
        self.splits = {"train": Jittered(count, 0, unlabelled), "test": TinyData(30, 1)}

    def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
        moved = 0.1 * epoch + 0.01 * seed if train else -0.2
        return batch | {"image": batch["image"] + moved}


def matched() -> FitNetsLoss:
    torch.manual_seed(8)
    return FitNetsLoss((8,), (16,))


def system_of(task: TinyTask, **options: Any) -> Distillation:
    fading = {"weight": Schedule("linear", start=1.0, end=0.0)}
    terms = [
        Term(KDLoss(), 0.5, schedules=fading),
        Term(SPLoss(), 10.0, "hidden", "hidden"),
    ]
    return Distillation(student_net(), teacher_net(), terms, task=task, **options)


def trainer(folder: Path, **changes: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "accelerator": "cpu", "default_root_dir": folder,
        "max_epochs": 3, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**quiet | changes)


class Halt(Callback):
    """Keeps a checkpoint at a step, and stops there."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def states(system: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in system.state_dict().items()}


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("unlabelled", [0, 20])
def test_a_run_ends_where_ours_does(tmp_path: Path, unlabelled: int) -> None:
    task = MovingTask(50, unlabelled)
    task.labelled = torch.arange(unlabelled, 50) if unlabelled else None
    config = CONFIG.model_copy(update={"labelled_per_batch": 8 if unlabelled else 0, "views": 2})
    ours = system_of(task)
    result = fit(
        ours, task, config, train=task.splits["train"], test=task.splits["test"],
        labelled=task.labelled, seed=4,
    )  # fmt: skip
    module = DistillationModule(system_of(task), task, config, seed=4)
    theirs = trainer(tmp_path)
    theirs.fit(module)
    same(states(module.system), states(ours))
    figures = {name: round(float(theirs.callback_metrics[name]), 7) for name in result.metrics}
    assert figures == pytest.approx(result.metrics, abs=1e-6)
    assert {"loss", "loss_task", "loss_kd", "loss_sp"} <= theirs.callback_metrics.keys()


def test_so_does_a_system_that_is_no_distillation(tmp_path: Path) -> None:
    task = TinyTask(50)

    def system() -> System:
        return DML(student_net(), peer=student_net(12), task=task)

    ours = system()
    fit(ours, task, CONFIG, train=task.splits["train"], test=None)
    module = DistillationModule(system(), task, CONFIG)
    trainer(tmp_path).fit(module)
    same(states(module.system), states(ours))


def test_steps_may_be_given_and_a_run_resumed(tmp_path: Path) -> None:
    task = TinyTask(50)
    config = FitConfig(steps=7, batch_size=16, lr=1e-2, device="cpu")
    ours = system_of(task)
    fit(ours, task, config, train=task.splits["train"], test=None)
    options: dict[str, Any] = {"max_epochs": None, "limit_val_batches": 0}
    whole = DistillationModule(system_of(task), task, config)
    trainer(tmp_path, max_steps=7, **options).fit(whole)
    same(states(whole.system), states(ours))

    halted = Halt(6, tmp_path / "half.ckpt")  # in the middle of the second epoch
    first = trainer(tmp_path, max_steps=7, callbacks=[halted], **options)
    first.fit(DistillationModule(system_of(task), task, config))
    assert first.global_step == 6
    second = DistillationModule(system_of(task), task, config)
    trainer(tmp_path, max_steps=7, **options).fit(
        second, ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )
    same(states(second.system), states(ours))
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"]
    assert saved.keys() == second.state_dict().keys()
    assert all(name.startswith("system.student.") for name in saved)


def test_the_parts_beside_the_student_are_trained_and_the_teacher_is_not(tmp_path: Path) -> None:
    task, teacher = TinyTask(50), teacher_net()
    before = copy.deepcopy(teacher.state_dict())
    terms = [Term(matched(), 1.0, "hidden", "hidden")]
    module = DistillationModule(
        Distillation(student_net(), teacher, terms, task=task), task, CONFIG,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    )  # fmt: skip
    start = states(module.system.losses)
    trainer(tmp_path).fit(module)
    assert isinstance(module.optimizers().optimizer, torch.optim.SGD)
    assert all(not torch.equal(v, start[k]) for k, v in module.system.losses.named_parameters())
    same(teacher.state_dict(), before)
    assert not teacher.training
    assert module.student is module.system.student


def test_a_loader_of_the_users_will_do(tmp_path: Path) -> None:
    task = TinyTask(50)
    loader = torch.utils.data.DataLoader(
        task.splits["train"], batch_size=10, collate_fn=task.collate
    )
    module = DistillationModule(system_of(task), task, CONFIG)
    before = states(module.system)
    theirs = trainer(tmp_path)
    theirs.fit(module, loader)
    assert theirs.global_step == 15
    name = "student.hidden.0.weight"
    assert not torch.equal(states(module.system)[name], before[name])


def test_what_must_be_done_first_is_asked_for(tmp_path: Path) -> None:
    task = TinyTask(50)

    def system() -> Distillation:
        terms = [Term(NDLoss(), 1.0, "hidden", "hidden")]
        return Distillation(student_net(16), teacher_net(), terms, task=task)

    with pytest.raises(RecipeError, match=r"needs .*class.* first; call congener.engine.prepare"):
        DistillationModule(system(), task, CONFIG)
    ours, theirs = system(), system()
    for each in (ours, theirs):
        prepare(each, task, CONFIG)
    fit(ours, task, CONFIG, train=task.splits["train"], test=None)
    module = DistillationModule(theirs, task, CONFIG, prepared=True)
    trainer(tmp_path).fit(module)
    same(states(module.system), states(ours))


def test_what_a_loader_of_the_users_lacks_is_told(tmp_path: Path) -> None:
    class Numbered(TinyTask):
        def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
            return batch | {"image": batch["image"] + 0 * batch["index"][:, None]}

    task = Numbered(50)
    module = DistillationModule(system_of(task), task, CONFIG)
    options: dict[str, Any] = {"batch_size": 10, "collate_fn": task.collate}
    loader = torch.utils.data.DataLoader(task.splits["train"], **options)
    with pytest.raises(DataError, match=r"batches have no `index`, .* or leave the loader out"):
        trainer(tmp_path).fit(module, loader)
    bare = torch.utils.data.DataLoader(task.splits["train"])
    with pytest.raises(DataError, match=r"batches are a list; .* collate_fn=task\.collate"):
        trainer(tmp_path).fit(module, bare)
    with pytest.raises(DataError, match="batches have no `index`"):
        trainer(tmp_path).validate(module, loader)


def test_epochs_are_whole_but_of_a_loader_of_the_users(tmp_path: Path) -> None:
    task = TinyTask(50)
    module = DistillationModule(system_of(task), task, CONFIG)
    for limit in ({"limit_train_batches": 2}, {"limit_train_batches": 0.5}, {"overfit_batches": 1}):
        with pytest.raises(RecipeError, match=r"limit_train_batches=\S+ .* of the 4 of an epoch"):
            trainer(tmp_path, **limit).fit(module)
    trainer(tmp_path, limit_train_batches=4).fit(module)
    options: dict[str, Any] = {"batch_size": 10, "collate_fn": task.collate}
    loader = torch.utils.data.DataLoader(task.splits["train"], **options)
    theirs = trainer(tmp_path, limit_train_batches=2)
    theirs.fit(DistillationModule(system_of(task), task, CONFIG), loader)
    assert theirs.global_step == 6
    once = CONFIG.model_copy(update={"epochs": 1})
    trainer(tmp_path, fast_dev_run=2).fit(DistillationModule(system_of(task), task, once))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"clip": 1.0}, "`clip` is not for a run under Lightning; give the trainer gradient_clip"),
        ({"accumulate": 2}, "`accumulate` is not"),
        ({"precision": "bf16"}, "`precision` is not"),
        ({"sampler": "class_uniform"}, "`sampler` is not"),
    ],
)
def test_settings_that_are_the_trainers_are_refused(setting: Any, message: str) -> None:
    task = TinyTask(50)
    with pytest.raises(RecipeError, match=message):
        DistillationModule(system_of(task), task, CONFIG.model_copy(update=setting))


def test_a_trainer_that_does_otherwise_is_refused(tmp_path: Path) -> None:
    task = TinyTask(50)
    module = DistillationModule(system_of(task), task, CONFIG)
    with pytest.raises(RecipeError, match="The trainer has max_epochs=5 and the config epochs=3"):
        trainer(tmp_path, max_epochs=5).fit(module)
    with pytest.raises(RecipeError, match="accumulate_grad_batches=2 would score each piece"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(module)
    fixed = FitConfig(steps=5, batch_size=16, device="cpu")
    with pytest.raises(RecipeError, match="The trainer has max_steps=-1 and the config steps=5"):
        trainer(tmp_path).fit(DistillationModule(system_of(task), task, fixed))
