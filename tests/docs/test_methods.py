"""The pages of the losses are those that the code generates."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from congener.catalogue import entries
from congener.conformance import Check, Finding
from congener.conformance.proof import prove_vectors

ROOT = Path(__file__).parents[2]
LOSSES = [entry for entry in entries() if entry.kind == "loss"]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def unmeasured(text: str) -> str:
    """The text without the figures, which differ from machine to machine."""
    return re.sub(r"1e-?\d+|\d+ of \d+ checks hold \(\d+ settings?\)", "#", text)


@pytest.mark.parametrize("entry", LOSSES, ids=lambda entry: entry.name)
def test_page_is_what_the_code_says(entry: Any) -> None:
    stored = (ROOT / "docs" / "methods" / f"{entry.name}.md").read_text(encoding="utf-8")
    findings = list(prove_vectors(entry.name))
    findings += [
        Finding("contract", finding[0], "sp", [], finding[1])
        for finding in re.findall(r"- `(\w+)` does not apply: (.*)", stored)
    ]
    written = generator().page(entry, findings)
    assert unmeasured(written) == unmeasured(stored), "run make docs"


def test_the_page_of_systems_is_what_the_code_says() -> None:
    systems = [entry for entry in entries() if entry.kind == "system"]
    stored = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert generator().systems_page(systems) == stored, "run make docs"
    assert all(f"## {entry.name}" in stored for entry in systems)


def test_the_table_has_every_loss_and_no_other() -> None:
    text = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| \[(\w+)\]", text, re.MULTILINE)
    assert names == [entry.name for entry in LOSSES]
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == {"README", *names}


def test_figures_are_bounds() -> None:
    agreement = generator().agreement
    finding = Finding("vector", "kd_1", "float64", [Check("loss", 3e-15, 1), Check("g", 1e-16, 1)])
    assert agreement([finding], "float64") == "1e-14"
    assert agreement([finding], "float32") == "–"
