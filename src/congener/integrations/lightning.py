"""Any system as a ``LightningModule``.

    module = DistillationModule(system, task, FitConfig(epochs=30, batch_size=64))
    lightning.Trainer(max_epochs=30).fit(module)

The batches, their order, the optimiser and its schedule are those of :func:`congener.engine.fit`,
so that a run ends where ours does; devices, precision, clipping, checkpoints and loggers are the
trainer's. A loader of your own works as well, if its batches are such as the task collates.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from congener.engine import FitConfig, steps_per_epoch
from congener.engine.feed import epoch_batches, evaluation_batches, in_training, size, to_device
from congener.engine.optim import build_optimizer, build_schedule
from congener.errors import CongenerError, DataError, RecipeError
from congener.system import System
from congener.task import Metrics, Task
from congener.types import Batch, Progress

try:
    from lightning import LightningModule
except ImportError as error:
    raise CongenerError(
        f"A LightningModule needs the package {error.name!r}; install it with: "
        'pip install "congener[lightning]"'
    ) from error

__all__ = ["DistillationModule"]

OTHERS = {
    "accumulate": "leave it out: pieces of a batch are scored alone there",
    "clip": "give the trainer gradient_clip_val",
    "compile": "compile the student yourself",
    "precision": "give the trainer precision",
    "sampler": "leave it out, or give the trainer a loader of yours",
    "shard": "give the trainer a strategy",
    "teacher_compile": "leave it out",
    "teacher_layout": "leave it out",
    "teacher_precision": "leave it out",
}
"""Settings that are the trainer's, or our engine's alone, and the way out."""


@final
class DistillationModule(LightningModule):
    """Trains a system under Lightning; the teacher is in no checkpoint.

    Args:
        system: any system; what it needs before it is fitted must be done.
        task: how batches are made, prepared and measured; validation is on its ``test``.
        config: batch size, order, optimiser and schedule. Its ``epochs`` or ``steps`` are the
            trainer's ``max_epochs`` or ``max_steps``; what else it says of how to train is not
            read.
        seed: of the data order and augmentation.
        optimizer: makes the optimiser of the parameters; default: the one that ``config`` names,
            with its schedule.
        prepared: whether :func:`congener.engine.prepare` was called for the system.

    Raises:
        RecipeError: a setting that the trainer has itself, or a system that is not prepared.
    """

    def __init__(
        self,
        system: System,
        task: Task,
        config: FitConfig,
        *,
        seed: int = 0,
        optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
        prepared: bool = False,
    ) -> None:
        super().__init__()
        for name, way in OTHERS.items():
            if getattr(config, name) != FitConfig.model_fields[name].default:
                raise RecipeError(f"`{name}` is not for a run under Lightning; {way}.")
        if not prepared and (stages := system.stages()):
            raise RecipeError(
                f"The system {system.name!r} needs {', '.join(stage.name for stage in stages)} "
                "first; call congener.engine.prepare(system, task, config), then give "
                "prepared=True."
            )
        self.system, self.task, self.config, self.seed = system, task, config, seed
        self._optimizer = optimizer
        self._measured: Metrics | None = None

    @property
    def student(self) -> nn.Module:
        """The bare student."""
        return self.system.student

    def setup(self, stage: str) -> None:
        """Look whether the trainer's length is the one that the schedule has.

        Raises:
            RecipeError: it is not, or the trainer does what would go wrong in silence.
        """
        if stage != "fit":
            return
        trainer, config = self.trainer, self.config
        given = trainer.max_epochs if config.epochs else trainer.max_steps
        wanted, name = (config.epochs, "epochs") if config.epochs else (config.steps, "steps")
        if given != wanted:
            raise RecipeError(
                f"The trainer has max_{name}={given} and the config {name}={wanted}, which the "
                "schedule goes by; give both the same."
            )
        if trainer.accumulate_grad_batches > 1:
            raise RecipeError(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} would score each piece "
                "of a batch alone; leave it out, or let congener's own engine accumulate."
            )
        why = self.system.needs_whole_weights()
        if why and any(word in type(trainer.strategy).__name__ for word in ("FSDP", "DeepSpeed")):
            raise RecipeError(f"The weights cannot lie in shards: {why}; take strategy='ddp'.")

    def on_fit_start(self) -> None:
        """The teacher goes where the student is."""
        if self.system.teacher is not None:
            self.system.teacher.to(self.device)

    def training_step(self, raw: Batch, index: int) -> Tensor:
        """The total; it and the unweighted terms are logged, under ``loss`` and ``loss_NAME``."""
        epoch = self.current_epoch
        progress = Progress(self.global_step, int(self.trainer.estimated_stepping_batches), epoch)
        total: Tensor
        with _as_collated(raw):
            batch = in_training(
                self.task, raw, self.config, self.device,
                seed=self.seed, view=self.config.view(epoch),
            )  # fmt: skip
            total, terms, _ = self.system(batch, progress)
        told = {"loss": total} | {f"loss_{name}": value for name, value in terms.items()}
        self.log_dict({name: value.detach() for name, value in told.items()}, batch_size=1)
        return total

    def on_validation_epoch_start(self) -> None:
        """A fresh instrument."""
        self._measured = self.task.metrics(self.device)

    def validation_step(self, raw: Batch, index: int) -> None:
        """Measure the bare student."""
        assert self._measured is not None
        with _as_collated(raw):
            batch = to_device(raw, self.device)
            batch = self.task.prepare(batch, train=False, seed=0, epoch=0)
            self._measured.update(self.task.respond(self.student, batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the task's figures, which are those of all processes."""
        assert self._measured is not None
        self.log_dict(self._measured.compute(), rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """Over all that is trained: the student, and what the system has besides."""
        trained = [p for p in self.system.parameters() if p.requires_grad]
        if self._optimizer is not None:
            return self._optimizer(trained)
        optimizer = build_optimizer(trained, self.config, self.device)
        steps = int(self.trainer.estimated_stepping_batches)
        per_epoch = int(self.trainer.num_training_batches) if self.config.epochs else 1
        schedule = build_schedule(optimizer, self.config, steps=steps, steps_per_epoch=per_epoch)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def train_dataloader(self) -> "_Batches":
        """The batches of :func:`congener.engine.fit`, epoch after epoch.

        Raises:
            RecipeError: the trainer takes fewer of them than an epoch has.
        """
        trainer: Any = self.trainer
        limit, steps = trainer.limit_train_batches, self._per_epoch()
        short = limit < steps if isinstance(limit, int) else limit < 1
        if short and not trainer.fast_dev_run:  # which has one epoch
            raise RecipeError(
                f"The trainer takes limit_train_batches={limit} (or overfit_batches) of the "
                f"{steps} of an epoch, and the order of the data goes by whole epochs; leave it "
                "out, or give the trainer a loader of your own."
            )
        return _Batches(self._epoch, steps)

    def val_dataloader(self) -> "_Batches":
        """This process' share of the test set."""
        test = self.task.splits["test"]
        batch_size, share = max(self.config.batch_size, 256), self._share()
        mine = torch.arange(size(test)).tensor_split(share[1])[share[0]]

        def batches() -> Iterator[Batch]:
            return evaluation_batches(
                self.task, test, batch_size=batch_size, share=share, workers=self.config.workers
            )

        return _Batches(batches, math.ceil(len(mine) / batch_size))

    def _epoch(self) -> Iterator[Batch]:
        """What is left of the current epoch."""
        task, config, epoch, last = self.task, self.config, self.current_epoch, self._per_epoch()
        return epoch_batches(
            task, task.splits["train"],
            batch_size=config.batch_size, seed=self.seed, epoch=epoch, view=config.view(epoch),
            first=self.global_step - epoch * last, last=last, share=self._share(),
            workers=config.workers, labelled=task.labelled,
            labelled_per_batch=config.labelled_per_batch,
        )  # fmt: skip

    def _per_epoch(self) -> int:
        task, (_, processes) = self.task, self._share()
        return steps_per_epoch(
            task.splits["train"], self.config, task.labelled, processes=processes
        )

    def _share(self) -> tuple[int, int]:
        return self.trainer.global_rank, self.trainer.world_size


@contextmanager
def _as_collated(raw: Any) -> Iterator[None]:
    """Say what a batch of the user's own loader lacks."""
    if not isinstance(raw, Mapping):
        raise DataError(
            f"The loader's batches are a {type(raw).__name__}; expected mappings as the task makes "
            "them: give the loader collate_fn=task.collate."
        )
    try:
        yield
    except KeyError as error:
        if error.args != ("index",) or "index" in raw:
            raise
        raise DataError(
            "The loader's batches have no `index`, the place of each sample in the data set, which "
            "this task or system asks for; add it, as a tensor (batch,), or leave the loader out."
        ) from error


class _Batches:
    """What Lightning takes for a loader that can be resumed."""

    def __init__(self, batches: Callable[[], Iterator[Batch]], length: int) -> None:
        self._batches, self._length = batches, length

    def __iter__(self) -> Iterator[Batch]:
        return self._batches()

    def __len__(self) -> int:
        return self._length

    def state_dict(self) -> dict[str, Any]:
        """Nothing, since the place in an epoch follows from the module's steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take in."""
