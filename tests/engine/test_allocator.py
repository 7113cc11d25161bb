"""Memory that is kept is not paged in anew."""

import json
import platform
import subprocess
import sys
from typing import Any

import pytest
from tests.engine.test_loop import alone, config, train

from congener.engine import allocator
from congener.runlog import RunLog

FAULTS = """
import importlib.util, json, resource, sys
spec = importlib.util.spec_from_file_location("allocator", sys.argv[1])
allocator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(allocator)
told = []
if sys.argv[2] == "keep":
    allocator.keep_memory(lambda event, **_: told.append(event))
assert not told
counts = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 48_000_000
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(json.dumps(counts))
"""


def faults(way: str) -> list[int]:
    """Page faults of each of ten steps that need 48 MB in one piece, in a fresh process."""
    command = [sys.executable, "-c", FAULTS, allocator.__file__, way]
    counts: list[int] = json.loads(subprocess.check_output(command))
    return counts


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_step_pages_nothing_in_anew() -> None:
    assert max(faults("keep")[2:]) < 10
    assert min(faults("give back")[2:]) > 1000


def test_elsewhere_it_says_that_it_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    events: list[dict[str, Any]] = []
    train(alone(), config(keep_memory=True), RunLog(None, (events.append,)), name="a/0")
    (told,) = [event for event in events if event["event"] == "memory_not_kept"]
    assert told["fit"] == "a/0"
    assert told["reason"].endswith("not glibc")
