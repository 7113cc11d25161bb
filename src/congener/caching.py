"""What the teacher of a run said, kept: which arms may learn from it, and the stores they read.

A teacher says the same about the same view of a sample, in each epoch, to each arm and each seed.
So it is asked once, before the first fit that reads the answers, and never again. Where that is not
exact, or does not pay, the teacher stays live, and the reason is told.
"""

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from torch import nn

from congener.assembly import Assembly
from congener.engine import (
    build_accelerator,
    build_store,
    data_fingerprint,
    fields_of,
    instruct,
    learns_from_samples,
    longest_answer,
    steps_per_epoch,
)
from congener.engine.feed import size, to_device
from congener.errors import DataError, RecipeError, RunError
from congener.recipe import Arm, CacheSpec, Recipe
from congener.runlog import RunLog, versions
from congener.system import System, TeacherLike
from congener.teachers import (
    CachedTeacher,
    Field,
    FrozenTeacher,
    TeacherGroup,
    TeacherStore,
    fingerprint,
    structure,
)
from congener.types import Progress

__all__ = ["Answers", "ArmPlan"]

LIMIT = 2**30
"""Bytes that ``cache: auto`` keeps at most; ours."""
PAYS = 2.0
"""How often ``cache: auto`` must be able to read an answer, on average, to keep it; ours."""
TRIALS = 3
WORTH_TELLING = 1.0  # seconds saved


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """Whether an arm learns from kept answers.

    Attributes:
        live: why its teacher runs on each batch; empty where the answers are kept.
        fields: by the name of a store, the tensors that the arm reads.
        taps: likewise, the teacher's taps among them.
    """

    live: str
    fields: dict[str, list[Field]]
    taps: dict[str, tuple[str, ...]]


class _Kept(NamedTuple):
    """A complete store, the teacher it stands for, and what a batch would cost that one."""

    store: TeacherStore
    live: FrozenTeacher
    seconds: float


class Answers:
    """The stores of one run.

    Args:
        recipe: the recipe.
        assembly: builds what it names.
        folder: the run folder.
        log: where events go.
    """

    def __init__(self, recipe: Recipe, assembly: Assembly, folder: Path, log: RunLog) -> None:
        self.recipe, self.assembly, self.log = recipe, assembly, log
        self.demanded = isinstance(recipe.cache, CacheSpec)
        self.spec = recipe.cache if isinstance(recipe.cache, CacheSpec) else CacheSpec()
        self.folder, self.stages = self.spec.folder or folder / "cache", folder / "stages"
        self.plans: dict[str, ArmPlan] = {}
        self._stores: dict[str, _Kept] = {}
        self._given: list[tuple[CachedTeacher, float]] = []
        self._spent = 0.0

    @property
    def views(self) -> int:
        """Views of each sample; 0: each epoch has views of its own."""
        augments, views = self.assembly.task.augments, self.recipe.train.views
        if augments is False:
            return 1
        return views if views is not None else 0 if augments else 1

    def plan(self, teacher: nn.Module | None) -> dict[str, ArmPlan]:
        """Decide which arms learn from kept answers; nothing is written.

        Args:
            teacher: the recipe's, trained or not.

        Raises:
            RecipeError: an arm that cannot, where the recipe's ``cache`` asks for it.
        """
        self.plans = {}
        arms = {k: arm for k, arm in self.recipe.all_arms.items() if arm.terms or arm.system}
        if self.recipe.cache == "off":
            return self.plans
        if not self.demanded and (reason := self._does_not_pay(len(arms))):
            self.plans = dict.fromkeys(arms, ArmPlan(reason, {}, {}))
            return self.plans
        for name, arm in arms.items():
            system = self.assembly.sketch(name, teacher)
            if system.teacher is None:
                continue
            live, fields, taps = self._why_live(arm, system, teacher), {}, {}
            try:
                for at, frozen in ({} if live else _frozen(system)).items():
                    fields[at], taps[at] = self._fields(frozen), frozen.taps
                live = live or self._needs_whole_law(system)
            except RecipeError as error:
                reason = str(error).partition(";")[0]  # what follows is the way out
                live = reason[0].lower() + reason[1:]
            exact = all(field.exact for each in fields.values() for field in each)
            if not (live or exact or self.demanded):
                live = "its answers are finer than the float32 that would be kept"
            if live and self.demanded:
                raise RecipeError(
                    f"{self.recipe.place('cache')}: `cache` keeps what the teacher says, but the "
                    f"arm {name!r} needs it live: {live}. Use `cache: auto`, which keeps the "
                    "answers for the other arms, or `cache: off`."
                )
            self.plans[name] = ArmPlan(live, {}, {}) if live else ArmPlan("", fields, taps)
        if not self.demanded:
            self._economise()
        return self.plans

    def give(self, system: System, arm: str, seed: int) -> None:
        """Have a system that will be fitted ask the store, where the plan says so.

        What the store lacks is asked of the live teacher now. Where that cannot be kept (a full
        disk, say), the teacher stays live if nobody demanded otherwise, on all processes.
        """
        plan = self.plans.get(arm)
        if plan is None or plan.live:
            return
        problem = ""
        try:
            for at, frozen in _frozen(system).items():
                self._open(at, frozen, seed)
        except (DataError, RunError) as error:
            if self.demanded:
                raise
            problem = str(error)
        problem = next(filter(None, gather_object([problem])), "")
        if problem:
            self.plans[arm] = ArmPlan(problem, {}, {})
            self.log.emit("teacher_live", arm=arm, reason=problem)
        else:
            exchange(system, lambda at, frozen: self._cached(at, frozen, seed))

    def build(self, teacher: nn.Module) -> None:
        """Ask the teacher for everything that the fits of all seeds will read."""
        for name in [name for name, plan in self.plans.items() if not plan.live]:
            for seed in self.recipe.seeds:
                self.give(self.assembly.sketch(name, teacher), name, seed)

    def tell(self) -> None:
        """Record how much teacher time the kept answers saved in this session."""
        asked = sum(cached.batches for cached, _ in self._given)
        saved = sum(cached.batches * each for cached, each in self._given)
        if saved - self._spent < WORTH_TELLING:
            return
        space = sum(kept.store.nbytes for kept in self._stores.values()) / 1e6
        line = (
            f"In this session the teacher ran for {self._spent:.1f} s instead of about {saved:.1f} "
            f"s: its answers ({space:.1f} MB) are kept, and {asked:,} batches read them."
        )
        self.log.emit("teacher_saved", batches=asked, seconds=saved, spent=self._spent, line=line)

    def _why_live(self, arm: Arm, system: System, teacher: nn.Module | None) -> str:
        config, task = self.recipe.train, self.assembly.task
        others = {f"teacher-{name}": each for name, each in self.assembly.teachers.items()}
        known = {"teacher": teacher} | others
        if arm.learns_from:
            return "its teacher is another arm's student, another one for each seed"
        if reason := system.needs_live_teacher():
            return reason
        if not self._shows_as_given(system):
            return "it shows the teacher a view of its own"
        if not type(system).__module__.startswith("congener.") and not self.demanded:
            return (
                "whether a system of your own asks for answers alone is not known (a `cache` of "
                "the recipe's own says so)"
            )
        frozen = _frozen(system)
        if not frozen or any(each.model is not known.get(at) for at, each in frozen.items()):
            return f"its teacher is a {type(system.teacher).__name__} of its own"
        if config.shard in ("teacher", "both") and not self.demanded:
            return "it is cut into shards, and to be asked ahead it would have to fit on one device"
        if not self.views:
            return (
                "each epoch augments anew (`train.views: 8` would give each sample eight views "
                "that come again)"
            )
        if task.augments is None and config.views is None and not self.demanded:
            return (
                "whether your data set draws anew in each epoch is not known (`train.views: 1` "
                "says that it does not)"
            )
        return ""

    def _needs_whole_law(self, system: System) -> str:
        """Why draws from what the teacher said would teach a system something else."""
        batch, spec = self.assembly.sample(2, train=True), self.spec
        if spec.sampled is None or learns_from_samples(system, batch, spec.temperature):
            return ""
        return (
            f"`sampled` keeps draws from the teacher at temperature {spec.temperature:g}, which "
            "teach without bias where a gradient is linear in its probabilities at that "
            "temperature, and this arm's is not"
        )

    def _shows_as_given(self, system: System) -> bool:
        """Whether the teacher sees batches as the task prepared them; that is tried."""
        if type(system).views is System.views:
            return True
        batch = self.assembly.sample(2, train=True)
        return all(system.views(batch, Progress(step, 3, step)) is batch for step in range(3))

    def _fields(self, teacher: FrozenTeacher) -> list[Field]:
        spec, config = self.spec, self.recipe.train
        if config.teacher_precision is not None:  # what it says is then in float32
            config = config.model_copy(update={"precision": "fp32"})
        return fields_of(
            teacher, self.assembly.sample(2, train=True), dtype=spec.dtype, top_k=spec.top_k,
            temperature=spec.temperature, sampled=spec.sampled, places=self._places, config=config,
        )  # fmt: skip

    @cached_property
    def _places(self) -> int | None:
        """How many rows of logits the longest text has."""
        task, train, views = self.assembly.task, self.recipe.train, max(self.views, 1)
        return longest_answer(task, task.splits["train"], train, seed=0, views=views)

    def _does_not_pay(self, arms: int) -> str:
        """Why so many arms read too little to keep anything for, unasked."""
        config = self.recipe.train
        train, seeds = self.assembly.task.splits["train"], len(self.recipe.seeds)
        unit = steps_per_epoch(train, config, self.assembly.task.labelled)
        steps = config.steps or (config.epochs or 0) * unit
        often = arms * seeds * steps * config.batch_size / self._answers
        reason = f"each answer would be read {often:.1f} times, which does not pay"
        return reason if often < PAYS else ""

    @property
    def _answers(self) -> int:
        """How many answers the stores of a teacher hold."""
        task = self.assembly.task
        stores = 1 if task.augments is False else len(self.recipe.seeds)
        return size(task.splits["train"]) * max(self.views, 1) * stores

    def _economise(self) -> None:
        """Without being asked, keep what is read often and is not large."""
        kept = [name for name, plan in self.plans.items() if not plan.live]
        reason = self._does_not_pay(len(kept))
        used: dict[tuple[str, str], int] = {}
        for name in kept:
            fields = self.plans[name].fields
            more = {(at, f.name): f.nbytes for at, each in fields.items() for f in each}
            total = sum((used | more).values()) * self._answers
            large = (
                f"its answers would take {total / 1e9:.1f} GB (a `cache` of the recipe's own "
                "keeps them)"
            )
            if reason or total > LIMIT:
                self.plans[name] = ArmPlan(reason or large, {}, {})
            else:
                used |= more

    def _open(self, at: str, frozen: FrozenTeacher, seed: int) -> _Kept:
        key = at if self.assembly.task.augments is False else f"{at}-seed-{seed}"
        if key not in self._stores:
            self._stores[key] = self._store(at, key, frozen, seed)
        return self._stores[key]

    def _cached(self, at: str, frozen: FrozenTeacher, seed: int) -> CachedTeacher:
        kept = self._open(at, frozen, seed)
        cached = CachedTeacher(kept.store, frozen.taps, task=self.assembly.task, live=kept.live)
        self._given.append((cached, kept.seconds))
        return cached

    def _store(self, at: str, key: str, frozen: FrozenTeacher, seed: int) -> _Kept:
        """The store of a teacher with all that any arm reads."""
        task, config = self.assembly.task, self.recipe.train
        train, drawn = task.splits["train"], task.augments is not False
        plans = [plan for plan in self.plans.values() if not plan.live and at in plan.fields]
        fields = {field.name: field for plan in plans for field in plan.fields[at]}
        taps = [tap for plan in plans for tap in plan.taps[at]]
        asked = FrozenTeacher(frozen.model, task, taps)
        accelerator = build_accelerator(config)
        instruct(
            asked.to(accelerator.device), task, config, accelerator,
            train=train, tell=self.log.emit, fit=f"cache/{key}", folder=self.stages,
        )  # fmt: skip
        seen = data_fingerprint(task, train, train=True, seed=seed if drawn else 0, labels=False)
        identity = {
            "teacher weights": fingerprint(frozen.model)[:16],
            "teacher network": _hashed(structure(frozen.model)),
            "precision": asked.manner,
            "data set": data_fingerprint(task, train, train=False, labels=False).hex()[:16],
            "training views": seen.hex()[:16],
            "seed of the views": str(seed) if drawn else "none is drawn",
        }
        store = TeacherStore.create(
            self.folder / key, identity, list(fields.values()),
            samples=size(train), views=max(self.views, 1), versions=versions(),
        )  # fmt: skip
        started = time.perf_counter()
        build_store(store, asked, task, train, config, seed=seed, log=self.log)
        self._spent += time.perf_counter() - started
        seconds = self._cost(asked)
        frozen.model.cpu()
        return _Kept(store, asked, seconds)

    def _cost(self, teacher: FrozenTeacher) -> float:
        """Seconds that the live teacher takes for a training batch."""
        config = self.recipe.train
        accelerator = build_accelerator(config)
        count = max(1, config.batch_size // (accelerator.num_processes * config.accumulate))
        batch = to_device(self.assembly.sample(count, train=True), accelerator.device)
        took = []
        for _ in range(TRIALS):
            started = time.perf_counter()
            with accelerator.autocast():
                teacher(batch).logits.sum().item()  # which waits for a GPU
            took.append(time.perf_counter() - started)
        return statistics.median(took)


def _frozen(system: System) -> dict[str, FrozenTeacher]:
    """The teachers that could be asked ahead, by the names of their stores."""
    found: dict[str, FrozenTeacher] = {}
    exchange(system, lambda at, frozen: found.update({at: frozen}))
    return found


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def exchange(system: System, answer: Callable[[str, FrozenTeacher], Any]) -> None:
    """Put what ``answer(name of the store, teacher)`` returns in the place of each frozen teacher.

    Where it returns ``None``, the teacher stays.
    """

    def each(name: str, teacher: TeacherLike) -> TeacherLike:
        if type(teacher) is not FrozenTeacher or teacher.batch_statistics:
            return teacher
        found: TeacherLike = answer(name, teacher) or teacher
        return found

    asked: Any = system.teacher
    if isinstance(asked, TeacherGroup):
        asked.main = each("teacher", asked.main)
        asked.others = {name: each(f"teacher-{name}", t) for name, t in asked.others.items()}
    elif isinstance(getattr(asked, "frozen", None), FrozenTeacher):
        asked.frozen = each("teacher", asked.frozen)  # one that adds heads to the network's answers
    elif asked is not None:
        system.teacher = each("teacher", asked)
