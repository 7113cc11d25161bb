"""Kill a run with -9 at random moments, resume it each time, and compare with one left in peace.

    python tests/trajectory/kill_test.py --kills 10

The recipe holds what a resume can lose: dropout (random state), batch normalisation (buffers),
momentum, a cosine schedule, a teacher that is trained first, two arms and a ragged last batch.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.trajectory.whole_runs import events, start, timeless, weights

import congener

RECIPE = """
task: {name: image_classification, data: mnist1d}
teacher:
  name: cnn1d
  channels: 8
  train: {steps: 60, batch_size: 100, lr: 0.01, checkpoint_every: 9, threads: 1, device: cpu}
student: tests.trajectory.whole_runs.DropoutNormStudent
alone: false
arms:
  sp: {terms: [{loss: sp, weight: 100, student: hidden, teacher: layer3}]}
  kd: {task_weight: 0.1, terms: [{loss: {name: kd, temperature: 4}, weight: 0.9}]}
train:
  {epochs: EPOCHS, batch_size: 96, optimizer: sgd, momentum: 0.9, lr: 0.05, schedule: cosine,
   warmup: 20, evaluate_every: 1, checkpoint_every: 13, log_every: 5, threads: 1, device: cpu}
"""
TRUST = ("--trust", "tests")
START_UP = 60.0  # seconds, at most, until a run logs its first event


def survive(folder: Path, *, kills: int, epochs: int, seed: int = 0) -> list[str]:
    """Run the recipe in peace and with kills; say what differs in the end (nothing should)."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("EPOCHS", str(epochs)))
    peace, war = folder / "peace", folder / "war"
    congener.run(recipe, out=peace, trust=["tests"])
    logged = events(peace)
    training = logged[-1]["time"] - logged[0]["time"]
    tell(f"in peace: {training:.1f} s of training")
    chance = random.Random(seed)
    for kill in range(kills):
        # The moments are spread over what is left; the start of a process is hit now and then.
        share = chance.uniform(0.2, 1.2) / (kills + 1)
        _kill(recipe, war, after=share * training, early=chance.random() < 0.15)
        tell(f"kill {kill + 1}: {len(events(war))} events, {len(weights(war))} networks done")
    congener.run(recipe, out=war, trust=["tests"], resume=bool(_resume(war)))
    return differences(peace, war)


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def differences(first: Path, second: Path) -> list[str]:
    """Weights that are not the same bytes, and the first event that differs."""
    mine, theirs = weights(first), weights(second)
    found = [f"{name} differs" for name in mine if mine[name] != theirs.get(name)]
    found += [] if len(mine) == 3 else [f"expected 3 networks, found {sorted(mine)}"]
    told, retold = _lasting(first), _lasting(second)
    pairs = enumerate(zip(told, retold, strict=False))
    found += [f"event {n}: {a} became {b}" for n, (a, b) in pairs if a != b][:1]
    counts = len(told), len(retold)
    return found if counts[0] == counts[1] else [*found, f"numbers of events: {counts}"]


def _lasting(out: Path) -> list[dict[str, Any]]:
    """The events, but for the store's: if a kill hits its making, it is begun or ended again."""
    return [e for e in timeless(out) if e["event"] not in ("cache_build", "cache_built")]


def _kill(recipe: Path, out: Path, *, after: float, early: bool) -> None:
    """Start or resume the run, and kill it ``after`` seconds of training, or while it starts."""
    before = _stamp(out)
    process = start(recipe, out, *TRUST, *_resume(out))
    deadline = time.monotonic() + START_UP
    while not early and _stamp(out) == before and process.poll() is None:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.005)
    time.sleep(after)
    process.kill()
    errors = process.communicate()[1]
    assert process.returncode in (-signal.SIGKILL, 0), errors  # 0: it was done before


def _stamp(out: Path) -> Any:
    path = out / "events.jsonl"
    return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None


def _resume(out: Path) -> tuple[str, ...]:
    return ("--resume",) if (out / "recipe.yaml").exists() else ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = survive(Path(folder), kills=chosen.kills, epochs=chosen.epochs, seed=chosen.seed)
    tell("\n".join(found) or f"{chosen.kills} kills: not a byte of the weights differs")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
