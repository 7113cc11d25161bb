"""Two ways to the same numbers: equal values first, then time and memory, interleaved.

Each way runs in a process of its own, on one thread, on the same seeded inputs. The values are
compared before anything is timed. Then the ways take turns; a round's ratio is CPU time over CPU
time, and the median over the rounds is quoted, since machines are shared and noisy. A round calls
a way until 20 ms are spent, garbage collected before the first call alone, since a single short
call would mostly measure cold caches. Peak memory is what one call needs beyond its inputs, after a
warm-up call.

A benchmark prints one JSON line for each thing measured and exits with 1 if a goal is missed.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

Way = Callable[[Any], Sequence[torch.Tensor]]
"""Takes the inputs; returns the value and the gradients, to be compared."""

Line = dict[str, Any]
KEYS = ("name", "ratio", "goal", "reached", "memory_mb", "n")
"""What every line has: ratio and goal are of times; ``n`` is the number of rounds."""

START = "spawn"
"""How processes begin: with nothing of this one's memory, so that peaks are their own."""

_ROUND_SECONDS = 0.02


class Bench(Protocol):
    """Something that measures the lines that it names."""

    @property
    def names(self) -> Sequence[str]:
        """Of the lines, in order."""

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        """Measure these of them."""


def line(name: str, n: int, *, ratio: float | None = None, goal: float | None = None,
         memory_mb: float | None = None, more_goals: Sequence[bool] = (),
         **more: Any) -> Line:  # fmt: skip
    """A line of the results: reached if no goal is missed, None if there is none."""
    met = [*more_goals] if goal is None or ratio is None else [ratio <= goal, *more_goals]
    return {
        "name": name,
        "ratio": None if ratio is None else round(ratio, 4),
        "goal": goal,
        "reached": all(met) if met else None,
        "memory_mb": None if memory_mb is None else round(memory_mb, 1),
        "n": n,
        **more,
        "load": round(os.getloadavg()[0], 1),
    }


@dataclass(frozen=True)
class Comparison:
    """``ours`` against ``plain`` on what ``inputs`` makes; all three can be pickled.

    Attributes:
        name: what is compared, with its shapes.
        inputs: makes the inputs; called in each process, so it must be seeded.
        plain: the formula as it is usually written; None where it cannot run.
        ours: the public API.
        goal: the largest ratio of ours to plain in time.
        memory_goal: the largest peak of ours, MB beyond the inputs.
        memory_ratio_goal: the largest ratio of the two peaks.
        seconds_goal: the longest call of ours, for what plain cannot run.
        rtol: how far each array may be from plain's, relative to its largest entry.
        rounds: how many rounds are timed.
        peer: another toolkit's way; ``peer_package`` must be importable, else it is left out.
        same_as_peer: whether the peer computes the same numbers.
        peer_goal: the largest ratio of ours to the peer in time, where it is installed.
    """

    name: str
    inputs: Callable[[], Any]
    plain: Way | None
    ours: Way
    goal: float | None = None
    memory_goal: float | None = None
    memory_ratio_goal: float | None = None
    seconds_goal: float | None = None
    rtol: float = 1e-5
    rounds: int = 9
    peer: Way | None = None
    peer_package: str | None = None
    same_as_peer: bool = True
    peer_goal: float | None = None

    @property
    def names(self) -> Sequence[str]:
        return (self.name,)

    def run(self, names: Sequence[str]) -> Iterator[Line]:
        if names:
            yield compare(self)


def value_and_gradient(loss: Callable[..., torch.Tensor], student: torch.Tensor, *others: Any,
                       **options: Any) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """A loss and its gradient with respect to the student."""
    student = student.detach().requires_grad_()
    value = loss(student, *others, **options)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def of_pair(
    loss: Callable[..., torch.Tensor], pair: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A way, once its loss is bound: value and gradient at a student and a teacher."""
    return value_and_gradient(loss, *pair)


def compare(comparison: Comparison) -> Line:
    """Run a comparison and describe it as a line of the results."""
    ways = {"ours": comparison.ours, "plain": comparison.plain}
    package = comparison.peer_package
    if comparison.peer and (package is None or importlib.util.find_spec(package)):
        ways["peer"] = comparison.peer
    workers = {name: _Worker(way, comparison.inputs) for name, way in ways.items() if way}
    try:
        values = {name: worker.ask("values") for name, worker in workers.items()}
        for name in workers.keys() - {"ours"} - (set() if comparison.same_as_peer else {"peer"}):
            _assert_equal(comparison, values["ours"], values[name], name)
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(comparison.rounds):
            for name, worker in workers.items():
                times[name].append(worker.ask("time"))
    finally:
        for worker in workers.values():
            worker.stop()
    return _line(comparison, times, peaks)


def _line(comparison: Comparison, times: dict[str, list[float]], peaks: dict[str, float]) -> Line:
    seconds = statistics.median(times["ours"])
    more: Line = {"seconds": round(seconds, 6)}
    met = []
    if comparison.seconds_goal is not None:
        more["seconds_goal"] = comparison.seconds_goal
        met.append(seconds <= comparison.seconds_goal)
    more |= {f"memory_mb_{name}": round(peaks[name], 1) for name in peaks.keys() - {"ours"}}
    if comparison.memory_goal is not None:
        more["memory_mb_goal"] = comparison.memory_goal
        met.append(peaks["ours"] <= comparison.memory_goal)
    if comparison.memory_ratio_goal is not None:
        more["memory_ratio"] = round(peaks["ours"] / peaks["plain"], 4)
        more["memory_ratio_goal"] = comparison.memory_ratio_goal
        met.append(more["memory_ratio"] <= comparison.memory_ratio_goal)
    if "peer" in times:
        more["ratio_to_peer"] = round(ratio(times["ours"], times["peer"]), 4)
        more["same_as_peer"] = comparison.same_as_peer
        if comparison.peer_goal is not None:
            more["peer_goal"] = comparison.peer_goal
            met.append(more["ratio_to_peer"] <= comparison.peer_goal)
    return line(
        comparison.name, comparison.rounds,
        ratio=ratio(times["ours"], times["plain"]) if "plain" in times else None,
        goal=comparison.goal, memory_mb=peaks["ours"], more_goals=met, **more,
    )  # fmt: skip


def main(benches: Sequence[Bench]) -> None:
    """Measure the lines whose names contain a word of the command line; all without one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="*", help="measure only what contains one of these")
    words = parser.parse_args().words
    missed = False
    for bench in benches:
        names = [name for name in bench.names if not words or any(word in name for word in words)]
        for measured in bench.run(names):
            print(json.dumps(measured), flush=True)
            missed |= measured["reached"] is False
    sys.exit(1 if missed else 0)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _assert_equal(
    comparison: Comparison, ours: list[np.ndarray], theirs: list[np.ndarray], name: str
) -> None:
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error, size = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
        if not error <= comparison.rtol * size:
            raise AssertionError(
                f"{comparison.name}: array {place} is {error:.3g} off {name}'s, whose largest "
                f"entry is {size:.3g}; {comparison.rtol:g} of it is allowed."
            )


class _Worker:
    """A process that runs one way when asked."""

    def __init__(self, way: Way, inputs: Callable[[], Any]) -> None:
        context = multiprocessing.get_context(START)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, way, inputs), daemon=True)
        self._process.start()

    def ask(self, what: str) -> Any:
        self._pipe.send(what)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        self._pipe.send("stop")
        self._process.join()


def _serve(pipe: Connection, way: Way, inputs: Callable[[], Any]) -> None:
    torch.set_num_threads(1)
    given = inputs()
    while (what := pipe.recv()) != "stop":
        try:
            pipe.send(_answer(what, way, given))
        except Exception as error:  # noqa: BLE001  it is raised again where it was asked
            pipe.send(error)


def _answer(what: str, way: Way, given: Any) -> Any:
    if what == "values":
        return [result.detach().double().numpy() for result in way(given)]
    gc.collect()
    if what == "time":
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < _ROUND_SECONDS:
            way(given)
            calls += 1
        return spent / calls
    before = forget_peak()
    way(given)
    return memory("VmHWM") - before


def forget_peak() -> float:
    """Let the peak of this process' memory start anew, at what is returned, MB."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(what: str) -> float:
    """A line of the process' memory statistics, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024
