"""Run all benchmarks, or the lines with some words, and write what they say into the page.

    python benchmarks/run.py [words]        make bench WORDS="words"

Prints the lines of every ``bench_*.py`` as they come, keeps them in ``results/latest.jsonl`` and
writes the tables of ``docs/performance.md``. A run with words replaces the lines that it measured.
It goes on after a missed goal or a benchmark that fails, and exits with 1 at the end if there was
one.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import KEYS, Line, line
from page import PAGE, measured, write

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "latest.jsonl"


def lines_of(file: Path, words: Sequence[str]) -> Iterator[Line]:
    """What a benchmark prints; last, a line that says so if it failed."""
    command = [sys.executable, str(file), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        for text in process.stdout:
            found = json.loads(text)
            if missing := [key for key in KEYS if key not in found]:
                found |= dict.fromkeys(missing) | {"reached": False, "missing": missing}
            yield found | {"bench": file.stem}
        code = process.wait()
        complaints.seek(0)
        said = complaints.read().strip()
    if code not in (0, 1) or "Traceback" in said:
        error = said.splitlines()[-1] if said else f"it ended with {code}"
        failed = line(f"{file.stem} failed", 0, more_goals=[False], error=error)
        yield failed | {"bench": file.stem}


def main(words: Sequence[str]) -> int:
    RESULTS.parent.mkdir(exist_ok=True)
    old = RESULTS.read_text().splitlines() if words and RESULTS.exists() else []
    kept = {each["name"]: each for each in map(json.loads, old)}
    now: list[Line] = []
    for file in sorted(HERE.glob("bench_*.py")):
        kept.pop(f"{file.stem} failed", None)
        for found in lines_of(file, words):
            print(json.dumps(found), flush=True)
            now.append(found)
    kept |= {each["name"]: each for each in now}
    RESULTS.write_text("".join(f"{json.dumps(each)}\n" for each in kept.values()))
    write(PAGE, {"results": measured(list(kept.values()))})
    return int(any(each["reached"] is False for each in now))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
