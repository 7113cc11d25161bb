"""The generated parts of ``docs/performance.md``: tables of results, and the plan of stores.

python benchmarks/page.py       writes the plan anew, from the assumptions in paper_plan.py
"""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import paper_plan
from harness import Line

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
HEAD = "| what | measured | goal | reached | memory MB | rounds |\n|---|---|---|---|---|---|\n"
UNITS = {
    "excess_us": " µs more", "faults": " page faults", "memory_ratio": " × the memory",
    "memory_mb": " MB", "seconds": " s", "mb_per_second": " MB/s", "size_ratio": " × the size",
}  # fmt: skip
OF_LANGUAGE = ("bench_generation", "bench_tokens")
AT_LEAST = {"mb_per_second"}


def measured(lines: Sequence[Line]) -> str:
    """A table for each benchmark, and what was measured where."""
    groups: dict[str, list[Line]] = {}
    for each in lines:
        groups.setdefault(each["bench"], []).append(each)
    goals = [each["reached"] for each in lines if each["reached"] is not None]
    parts = [
        f"{datetime.date.today()}, {_processor()}, {os.cpu_count()} cores, torch "
        f"{metadata.version('torch')}, Python {platform.python_version()}; "
        f"{sum(goals)} of {len(goals)} goals reached."
    ]
    for bench, group in groups.items():
        rows = "".join(f"{_row(each)}\n" for each in group)
        parts.append(f"### {bench.removeprefix('bench_')}\n\n{HEAD}{rows}")
    return "\n\n".join(part.strip() for part in parts)


def _row(each: Line) -> str:
    found, goals = [], []
    if each["ratio"] is not None:
        found.append(f"{each['ratio']:.3g}")
        goals.append("–" if each["goal"] is None else f"≤ {each['goal']:g}")
    for key, unit in UNITS.items():
        if f"{key}_goal" in each:
            found.append(f"{each[key]:.4g}{unit}")
            goals.append(f"{'≥' if key in AT_LEAST else '≤'} {each[f'{key}_goal']:g}")
    if "ratio_to_peer" in each:
        peer = "TRL" if each.get("bench") in OF_LANGUAGE else "torchdistill"
        same = "" if each["same_as_peer"] else ", which computes another number"
        found.append(f"{each['ratio_to_peer']:.3g} of {peer}'s{same}")
    if not found and "seconds" in each:
        found.append(f"{each['seconds']:.3g} s")
    if "error" in each:
        found.append(each["error"].replace("|", "\\|"))
    reached = {True: "yes", False: "**no**", None: ""}[each["reached"]]
    memory = "" if each["memory_mb"] is None else f"{each['memory_mb']:.1f}"
    cells = [each["name"], "; ".join(found), "; ".join(goals), reached, memory, str(each["n"])]
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    """The processor's name, and what it has for narrow numbers."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    narrow = {"avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"} & set(facts["flags"].split())
    return f"{facts['model name']} ({', '.join(sorted(narrow)) or 'no bf16 or int8 products'})"


def rewritten(text: str, parts: Mapping[str, str]) -> str:
    """The page with what stands between the marks of each part replaced."""
    for name, part in parts.items():
        opening, closing = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise ValueError(f"{PAGE.name} has no place for {name!r}: {opening} … {closing}")
        text = f"{before}{opening}\n{part}\n{closing}{after}"
    return text


def write(path: Path, parts: Mapping[str, str]) -> None:
    path.write_text(rewritten(path.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    write(PAGE, {"plan": paper_plan.tables()})
