"""How to train: one flat, validated description."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FitConfig"]

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class FitConfig(BaseModel):
    """Settings of :func:`congener.engine.fit`. Every default is ours unless a recipe says else.

    Args:
        epochs: passes over the training set; give this or ``steps``.
        steps: optimiser steps.
        batch_size: samples of one optimiser step, over all processes and accumulated pieces.
        labelled_per_batch: how many samples of a batch are labelled ones, drawn in turn, where
            labels are few; an epoch is then one pass over the others. 0: as the order has them.
        sampler: ``shuffle``, or CCKD's ``class_uniform`` and ``superclass_uniform``: some classes
            for each batch, or some clusters of the teacher's features, alike many samples of each.
            With ``labelled_per_batch``, ``class_uniform`` draws so many; the rest have no label.
            ``by_length``: samples of like length, such as texts, so that little is padded.
        per_class: samples of a class or cluster in a batch. The paper's ablation has 2 and 4 ahead
            of shuffling, 8 behind it.
        superclasses: how many clusters ``superclass_uniform`` makes; the paper's number is not
            known.
        views: how many views of a sample there are: epoch e augments as epoch e mod ``views``
            does, so that what a teacher says of them can be kept. Default: anew in each epoch.
        optimizer: ``sgd`` or ``adamw``.
        lr: the peak learning rate.
        weight_decay: as the optimiser means it (AdamW decouples it).
        momentum: SGD only.
        nesterov: SGD only.
        schedule: ``constant``, ``cosine`` (to zero at the last step) or ``multistep``.
        milestones: multistep: epochs (or steps, when ``steps`` is given) after which lr drops.
        gamma: multistep: the factor of each drop.
        warmup: steps over which lr rises linearly from zero.
        clip: largest total gradient norm, or none.
        accumulate: into how many pieces a batch is cut to fit memory; the result is that of the
            whole batch, for every loss (the student runs forward twice).
        precision: ``fp32``, ``bf16`` or ``fp16`` autocast.
        evaluate_every: epochs (or steps, when ``steps`` is given) between evaluations; the end is
            always evaluated. 0: only the end.
        checkpoint_every: optimiser steps between checkpoints; 0: only when interrupted.
        log_every: optimiser steps between ``step`` events (the first ten are always logged).
        balance_every: optimiser steps between records of the loss balance (each term's weighted
            value, gradient norm and cosine with the task's gradient); 0: none.
        drop_last: leave out the ragged last batch of an epoch.
        shard: which networks several processes hold in shards (FSDP2): ``student``, its optimiser's
            state and gradients included, ``teacher`` or ``both``. The numbers stay the same.
        layout: ``contiguous``, or ``channels_last``: images and convolutions with the channels of a
            pixel side by side in memory, which is faster and rounds otherwise; dropout of maps
            then draws otherwise, too.
        fused: an optimiser step in one kernel (torch's), which is faster and rounds otherwise.
        compile: run the trained networks compiled (``torch.compile``), which rounds otherwise; in
            the loss balance, the task's gradient then does not reach the taps. Networks that
            cannot be compiled here are trained as they are, and an event tells why.
        keep_memory: keep freed memory for the next step instead of giving it back to the system
            (glibc's allocator), for the rest of the process. The numbers stay the same.
        teacher_precision: how a frozen teacher computes: ``fp32``, ``bf16`` autocast, or ``int8``,
            quantised on training samples (on a CPU, with ``congener[int8]``); what it says is then
            float32. How far off that is, an event tells. Default: as ``precision``.
        teacher_layout: ``channels_last`` for the teacher alone. Default: as ``layout``.
        teacher_compile: run the teacher compiled, as ``compile`` does the student. A layout of its
            own or compiled, it is a copy of the network that runs.
        workers: processes that load the data; 0 loads in the training process.
        device: ``auto`` or ``cpu``.
        threads: CPU threads of a process; small networks are fastest with 1. Default: torch's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 64
    labelled_per_batch: Annotated[int, Field(ge=0)] = 0
    sampler: Literal["shuffle", "class_uniform", "superclass_uniform", "by_length"] = "shuffle"
    per_class: Count = 4
    superclasses: Count = 20
    views: Count | None = None
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    milestones: tuple[Count, ...] = ()
    gamma: Positive = 0.1
    warmup: Annotated[int, Field(ge=0)] = 0
    clip: Positive | None = None
    accumulate: Count = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Annotated[int, Field(ge=0)] = 500
    log_every: Count = 50
    balance_every: Annotated[int, Field(ge=0)] = 100
    drop_last: bool = False
    shard: Literal["none", "student", "teacher", "both"] = "none"
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    fused: bool = False
    compile: bool = False
    keep_memory: bool = False
    teacher_precision: Literal["fp32", "bf16", "int8"] | None = None
    teacher_layout: Literal["channels_last"] | None = None
    teacher_compile: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu"] = "auto"
    threads: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "FitConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`, one of them")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("`milestones` and `schedule: multistep` go together")
        if self.labelled_per_batch >= self.batch_size:
            raise ValueError(
                f"`labelled_per_batch` ({self.labelled_per_batch}) leaves no room for other "
                f"samples in a batch of {self.batch_size}"
            )
        if self.sampler == "by_length" and self.labelled_per_batch:
            raise ValueError(
                "`labelled_per_batch` and `sampler: by_length` both say what a batch is made of; "
                "give one of them"
            )
        if self.grouped:
            self._check_blocks()
        if self.accumulate > 1 and self.shard in ("student", "both"):
            raise ValueError(
                f"`accumulate` ({self.accumulate}) and `shard: {self.shard}` both spare memory and "
                "do not go together; use one of them, or `shard: teacher`"
            )
        if self.precision == "fp16" and self.shard in ("student", "both"):
            raise ValueError(f"`shard: {self.shard}` needs `precision` bf16 or fp32, not fp16")
        if self.compile and self.shard in ("student", "both"):
            raise ValueError(f"`compile` and `shard: {self.shard}` do not go together; use one")
        self._check_teacher()
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"`accumulate` ({self.accumulate}) cuts a batch of {self.batch_size} "
                "into more pieces than it has samples"
            )
        return self

    @property
    def grouped(self) -> bool:
        """Whether a batch is made of blocks, each of one class or cluster."""
        return self.sampler in ("class_uniform", "superclass_uniform")

    def view(self, epoch: int) -> int:
        """Which view of its samples an epoch has."""
        return epoch if self.views is None else epoch % self.views

    def _check_teacher(self) -> None:
        """What runs in place of the network has no layout, and is neither compiled nor cut."""
        own = {"teacher_layout": bool(self.teacher_layout), "teacher_compile": self.teacher_compile}
        set_ = [name for name, there in own.items() if there]
        if self.teacher_precision == "int8" and set_:
            raise ValueError(f"`teacher_precision: int8` and `{set_[0]}` do not go together")
        quantised = ["teacher_precision: int8"] if self.teacher_precision == "int8" else []
        if self.shard in ("teacher", "both") and (set_ or quantised):
            raise ValueError(
                f"`shard: {self.shard}` and `{(set_ + quantised)[0]}` do not go together; use one"
            )

    def _check_blocks(self) -> None:
        """A batch must be made of whole blocks, from no more clusters than there are."""
        if self.labelled_per_batch and self.sampler == "superclass_uniform":
            raise ValueError(
                f"`labelled_per_batch` and `sampler: {self.sampler}` both say what a batch is made "
                "of; give one of them"
            )
        for name in ("batch_size", "labelled_per_batch"):
            if getattr(self, name) % self.per_class:
                raise ValueError(
                    f"`sampler: {self.sampler}` needs a `{name}` ({getattr(self, name)}) that is a "
                    f"multiple of `per_class` ({self.per_class})"
                )
        blocks = self.batch_size // self.per_class
        if self.sampler == "superclass_uniform" and blocks > self.superclasses:
            raise ValueError(
                f"a batch of {self.batch_size} with `per_class` {self.per_class} needs {blocks} "
                f"superclasses, but `superclasses` is {self.superclasses}; raise it to {blocks}"
            )
