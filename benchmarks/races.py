"""Training loops against each other: they take turns, step by step, each in its own process.

A loop calls ``tick(student)`` after each step, and waits in it for its next turn; so ours is
``fit`` itself, with an observer that ticks. Before anything is timed, loops that should do the same
must have moved the student's parameters alike over some steps. A round's ratio is CPU time over CPU
time of a turn, and the median over the rounds is quoted. Memory is the largest resident set beyond
that after the imports: data, networks and step.
"""

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, Protocol

import harness
import numpy as np
import torch
from harness import Line, forget_peak, line, memory, ratio
from torch import nn


class Tick(Protocol):
    """Ends a step: waits for the next turn.

    Attributes:
        folder: where the race prepared something, if it did.
    """

    folder: Path

    def __call__(self, student: nn.Module) -> None:
        """A step is done."""

    def imported(self) -> None:
        """Memory counts from here: for loops that import late."""


Loop = Callable[[Tick], None]
"""Trains for ever and ticks after each step."""

_MOVED_OVER = 3  # steps whose movement of the parameters is compared


class Turn(NamedTuple):
    """What a step of a turn took: CPU seconds, page faults; and the peak so far, MB."""

    seconds: float
    faults: float
    peak: float


@dataclass(frozen=True)
class Ratio:
    """A line: one loop against another.

    Attributes:
        name: what is compared.
        ours: a loop of the race.
        other: a loop of the race.
        goal: the largest ratio of CPU times.
        memory_ratio_goal: the largest ratio of peaks.
        excess_goal: how many microseconds a step of ours may take beyond the other's.
        faults_goal: the most page faults of a step of ours.
    """

    name: str
    ours: str
    other: str
    goal: float | None = None
    memory_ratio_goal: float | None = None
    excess_goal: float | None = None
    faults_goal: float | None = None


@dataclass(frozen=True)
class Race:
    """Loops that take turns, and the lines that come of it.

    Attributes:
        loops: by name; all can be pickled. The first is what others must be equal to.
        lines: what is compared.
        alike: for the loops that must move the student as the first one does, how far the movement
            may differ from its, relative to its norm.
        steps: of a turn.
        rounds: turns that are timed, in each start.
        starts: how often all processes begin anew: of two processes of one loop, one may be some
            percent slower as long as it lives, for its memory lies elsewhere.
        warm_up: steps before that.
        prepare: writes into a folder what the loops need; they find it as ``tick.folder``.
    """

    loops: Mapping[str, Loop]
    lines: Sequence[Ratio]
    alike: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1
    rounds: int = 9
    starts: int = 1
    warm_up: int = 2
    prepare: Callable[[Path], None] | None = None

    @property
    def names(self) -> Sequence[str]:
        return [each.name for each in self.lines]

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        chosen = [each for each in self.lines if each.name in names]
        needed = {loop for each in chosen for loop in (each.ours, each.other)}
        if needed & self.alike.keys():
            needed.add(next(iter(self.loops)))
        with tempfile.TemporaryDirectory() as folder:
            if chosen and self.prepare is not None:
                self.prepare(Path(folder))
            turns: dict[str, list[Turn]] = {name: [] for name in needed}
            errors: dict[str, str] = {}
            for _ in range(self.starts):
                self._start(Path(folder), turns, errors)
        for each in chosen:
            yield self._line(each, turns, errors)

    def _start(self, folder: Path, turns: dict[str, list[Turn]], errors: dict[str, str]) -> None:
        """Add what each loop takes in each round, in new processes."""
        runners = {
            name: _Runner(loop, folder) for name, loop in self.loops.items() if name in turns
        }
        try:
            moved = {name: runner.moved() for name, runner in runners.items()}
            for name in self.alike.keys() & moved.keys():
                self._assert_alike(name, moved)
            for runner in runners.values():
                runner.turn(self.warm_up)
            for number in range(self.rounds):
                for name in list(runners)[:: -1 if number % 2 else 1]:
                    turns[name].append(runners[name].turn(self.steps))
        finally:
            for runner in runners.values():
                runner.stop()
        errors |= {name: str(runner.error) for name, runner in runners.items() if runner.error}

    def _assert_alike(self, name: str, moved: Mapping[str, np.ndarray | None]) -> None:
        wanted, found = moved[next(iter(self.loops))], moved[name]
        if wanted is None or found is None:
            return  # it failed, which its lines say
        error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        if not error <= self.alike[name]:
            raise AssertionError(
                f"{name!r} moves the parameters otherwise than {next(iter(self.loops))!r}: by "
                f"{error:.2g} of the movement, {self.alike[name]:g} is allowed."
            )

    def _line(
        self, each: Ratio, turns: Mapping[str, list[Turn]], errors: Mapping[str, str]
    ) -> Line:
        failed = [f"{name}: {errors[name]}" for name in (each.ours, each.other) if name in errors]
        if failed:
            return line(each.name, 0, goal=each.goal, more_goals=[False], error=failed[0])
        ours, other = turns[each.ours], turns[each.other]
        seconds = [[turn.seconds for turn in way] for way in (ours, other)]
        excess = 1e6 * statistics.median(a - b for a, b in zip(*seconds, strict=True))
        faults = statistics.median(turn.faults for turn in ours)
        peaks = [statistics.median(turn.peak for turn in way) for way in (ours, other)]
        found = {
            "excess_us": (round(excess, 1), each.excess_goal),
            "faults": (faults, each.faults_goal),
            "memory_ratio": (round(peaks[0] / peaks[1], 4), each.memory_ratio_goal),
        }
        goals = {f"{key}_goal": goal for key, (_, goal) in found.items() if goal is not None}
        met = [value <= goal for value, goal in found.values() if goal is not None]
        return line(
            each.name, len(ours), ratio=ratio(*seconds), goal=each.goal,
            memory_mb=peaks[0], more_goals=met,
            seconds=round(statistics.median(seconds[0]), 6),
            memory_mb_other=round(peaks[1], 1),
            faults_other=statistics.median(turn.faults for turn in other),
            **{key: value for key, (value, _) in found.items()}, **goals,
        )  # fmt: skip


class _Runner:
    """A process that runs one loop, a turn at a time; after an error it answers nothing more."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        context = multiprocessing.get_context(harness.START)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, loop, folder), daemon=True)
        self._process.start()
        theirs.close()
        self.error: Exception | None = None

    def moved(self) -> np.ndarray | None:
        """How the first steps moved the student's parameters."""
        self.turn(1)
        before = self._ask("parameters")
        self.turn(_MOVED_OVER)
        after = self._ask("parameters")
        return None if self.error else after - before

    def turn(self, steps: int) -> Turn:
        """Let it go on for some steps."""
        answer = self._ask(steps)
        return Turn(*answer) if answer else Turn(1.0, 0.0, 1.0)

    def _ask(self, what: int | str) -> np.ndarray | None:
        if self.error:
            return None
        try:
            self._pipe.send(what)
            answer = self._pipe.recv()
        except (EOFError, OSError):
            answer = RuntimeError("the process died")
        if isinstance(answer, Exception):
            self.error, answer = answer, None
        return answer

    def stop(self) -> None:
        self._process.kill()  # ``fit`` takes SIGTERM as a wish
        self._process.join()


def _serve(pipe: Connection, loop: Loop, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        loop(_Gate(pipe, folder))
    except EOFError:
        return  # whom it answered is gone
    except Exception as error:  # noqa: BLE001  the lines that need this loop say it
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


class _Gate:
    """The ``tick`` of a loop: waits for a turn, and answers with what it took."""

    def __init__(self, pipe: Connection, folder: Path) -> None:
        self._pipe, self.folder = pipe, folder
        self.imported()
        self._steps = self._left = 0
        self._student: nn.Module | None = None
        self._wait()

    def imported(self) -> None:
        self._before = forget_peak()

    def __call__(self, student: nn.Module) -> None:
        self._student = student
        self._left -= 1
        if self._left == 0:
            seconds = time.process_time() - self._start
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - self._faults
            peak = memory("VmHWM") - self._before
            self._pipe.send((seconds / self._steps, faults / self._steps, peak))
            self._wait()

    def _wait(self) -> None:
        while (what := self._pipe.recv()) == "parameters":
            assert self._student is not None
            flat = [p.detach().reshape(-1).double() for p in self._student.parameters()]
            self._pipe.send(torch.cat(flat).numpy())
        self._steps = self._left = what
        self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        self._start = time.process_time()
