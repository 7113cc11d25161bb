"""What the command prints fits a terminal of 80 columns and says what it should."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from tests.cli.refusal import refused

from congener import catalogue, losses
from congener.catalogue import entries, losses_by_name, plain
from congener.losses import KDLoss, SPLoss, sp_loss


@pytest.fixture(autouse=True)
def _terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def wide(text: str) -> list[str]:
    """Lines that do not fit; an address stands alone on its line, so that it can be clicked."""
    lines = [line for line in text.splitlines() if not line.startswith("https://")]
    return [line for line in lines if cell_len(line) > 80]


def test_a_run_and_its_report(recipe, congener) -> None:
    said = congener("run", recipe, "seeds=[0, 1]", "--out", "out")
    assert said.code == 0
    fits = ["teacher", "alone/0", "alone/1", "kd/0", "kd/1", "sp/0", "sp/1"]
    lines = said.err.splitlines()
    assert [line.split()[0] for line in lines] == fits
    assert all(re.fullmatch(r" *\S+  accuracy 0\.\d{4}  \(\d+ s\)", line) for line in lines)
    assert not wide(said.out)
    rows = [line.split()[0] for line in said.out.splitlines() if line.strip()]
    assert rows[1] == "arm"
    assert rows[3:7] == ["teacher", "alone", "kd", "sp"]
    for column in ("vs alone", "p", "wins", "agreement", "parameters", "±"):
        assert column in said.out
    assert said.out.endswith("The report is in out/report.html\n")
    assert Path("out/report.html").is_file()
    assert congener("report", "out").out == said.out
    again = congener("run", recipe, "seeds=[0, 1]", "--out", "out", "--resume")
    assert (again.code, again.err, again.out) == (0, "", said.out)


@pytest.mark.parametrize(("holds_run", "sentence"), [
    (True, "Stopped; what was done stays. Go on with:\n  congener run {0} --out out --resume\n"),
    (False, "Stopped before the run began; nothing was written.\n"),
])  # fmt: skip
def test_ctrl_c_between_the_fits(recipe, congener, monkeypatch, holds_run, sentence) -> None:
    def interrupted(*_: object, **__: object) -> None:
        if holds_run:
            Path("out").mkdir()
            Path("out/recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("congener.api.run", interrupted)
    said = congener("run", recipe, "--out", "out")
    assert (said.code, said.err) == (130, sentence.format(recipe))


def test_long_names_neither_widen_nor_vanish(recipe, text, congener) -> None:
    arm = "a student that learns from soft labels with a name as long as a sentence"
    recipe.write_text(text.replace("  kd:\n", f"  {arm}:\n"))
    said = congener("run", recipe)
    assert said.code == 0
    assert not wide(said.out + said.err)
    assert len(said.err.splitlines()) == 4
    assert "learns" in said.out
    assert "a student that learn…entence/0  accuracy" in said.err


def test_list(congener) -> None:
    said = congener("list")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert not [line for line in wide(said.out) if " " in line.strip()]
    for name in {*(loss.name for loss in losses_by_name().values()), "image_classification"}:
        assert any(line.split()[:1] == [name] for line in lines), name
    shipped = Path(inspect.getfile(losses_by_name)).parent.joinpath("recipes").rglob("*.yaml")
    for path in shipped:
        assert f"  {path.stem}" in lines


def test_list_as_json(congener) -> None:
    said = congener("list", "--json")
    assert (said.code, said.err) == (0, "")
    found = {entry["name"]: entry for entry in json.loads(said.out)}
    assert found.keys() == {entry.name for entry in entries()}
    sp = found["sp"]
    assert (sp["kind"], sp["family"], sp["batch_coupled"]) == ("loss", "relation", True)
    assert (sp["needs_labels"], sp["needs_features"], sp["needs_taps"]) == (False, True, True)
    assert (sp["paper"], sp["year"]) == ("Similarity-Preserving Knowledge Distillation", 2019)
    assert found["dkd"]["needs_labels"]
    assert not found["kd"]["needs_features"]
    assert found["vid"]["trains_parameters"]
    assert found["distillation"]["kind"] == "system"


@pytest.mark.parametrize("name", sorted(losses_by_name()))
def test_show(name, congener) -> None:
    loss, said = losses_by_name()[name], congener("show", name)
    assert (said.code, said.err) == (0, "")
    words = " ".join(said.out.split())
    for fact in (loss.__name__, loss.paper.title, loss.paper.url, loss.equation, loss.family,
                 "couples the batch: " + ("yes" if loss.batch_coupled else "no"),
                 "Conventions", "Differences from"):  # fmt: skip
        assert " ".join(fact.split()) in words
    for parameter in inspect.signature(loss).parameters.values():
        assert parameter.name in words
        if parameter.default is not parameter.empty:
            assert all(word in words for word in repr(parameter.default).split())
        source = loss.sources[parameter.name].split()
        assert source
        assert all(word in words for word in source)
    assert not wide(said.out)
    for mark in ("``", ":math:", ".. math", ":func:", ":class:", "==="):
        assert mark not in said.out


def test_show_keeps_every_word_of_the_documentation(congener) -> None:
    for loss in set(losses_by_name().values()):
        text = inspect.getdoc(inspect.getmodule(loss)).partition("\n\n")[2]
        text = re.sub(
            r"\.\. math::\n(\s*\n|\s+.*\n)+?(?=\S)", "", text
        )  # the equation stands there
        text = re.sub(r"=(==+)", "", text)
        shown = congener("show", loss.name).out
        for word in plain(text).split():
            assert word in shown, (loss.name, word)


def test_verify(congener) -> None:
    said = congener("verify", "sp")
    assert (said.code, said.err) == (0, "")
    assert not wide(said.out)
    lines = [line.split() for line in said.out.splitlines()]
    assert any(line[:3] == ["sp", "1", "float64"] and line[-1] == "ok" for line in lines)
    assert any(line[:3] == ["zero", "at", "match"] for line in lines)
    assert "failed" not in said.out


def test_verify_tells_what_is_wrong(congener, monkeypatch) -> None:
    monkeypatch.setattr(losses, "sp_loss", lambda *args, **options: sp_loss(*args, **options) * 2)
    said = congener("verify", "SPLoss")
    assert said.code == 2
    assert re.search(r"sp 1\s+float64\s.*failed", said.out)
    assert "SPLoss is not what it should be on this machine" in said.err


def test_verify_of_an_unknown_name(congener) -> None:
    said = congener("verify", "spp")
    assert said.code == 2
    assert "There is no loss named 'spp'; did you mean 'sp'" in " ".join(said.err.split())


def test_verify_of_everything_is_a_line_for_each(congener, monkeypatch) -> None:
    monkeypatch.setattr(catalogue, "losses_by_name", lambda: {"sp": SPLoss, "kd": KDLoss})
    said = congener("verify")
    assert (said.code, said.err) == (0, "")
    assert not wide(said.out)
    lines = [line.split() for line in said.out.splitlines()[1:]]
    assert [(line[0], line[-1]) for line in lines] == [("kd", "ok"), ("sp", "ok")]


def test_help_fits(congener) -> None:
    for words in (
        ["--help"],
        *([verb, "--help"] for verb in ("run", "validate", "show", "list", "verify")),
    ):
        said = congener(*words)
        assert (said.code, said.err) == (0, "")
        assert "Usage: congener" in said.out
        assert not wide(said.out)
    assert "default: runs/RECIPE" in " ".join(congener("run", "--help").out.split())


PACKAGE = """
from pathlib import Path
from torch import nn
Path("imported").touch()
def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
"""


def test_code_of_others_needs_trust(recipe, congener, monkeypatch) -> None:
    Path("their_nets.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(".")
    other = "student={name: their_nets.network, width: 6}"
    for trust in ([], ["--trust", "their"], ["--trust", "their_nets.network"]):
        refused(congener("run", recipe, other, "arms={}", *trust), r"add `--trust their_nets`")
        assert not Path("imported").exists()
    assert congener("validate", recipe, other, "arms={}", "--trust", "their_nets").code == 0
    assert Path("imported").exists()
    missing = "student={name: their_nets.netwrk}"
    refused(congener("run", recipe, missing, "arms={}", "--trust", "their_nets"),
            r"The network 'their_nets.netwrk' cannot be found")  # fmt: skip
    sys.modules.pop("their_nets")


def test_the_program_itself(tmp_path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "congener", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env=os.environ | {"PYTHONPATH": str(Path(inspect.getfile(losses_by_name)).parents[1])},
        )  # fmt: skip

    shown = run("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(verb in shown.stdout for verb in ("run", "validate", "report", "list", "show"))
    wrong = run("run", "deno")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert re.fullmatch(
        r"error: There is no recipe 'deno'; did you mean 'demo'.*\?\n", wrong.stderr
    )
    assert list(tmp_path.iterdir()) == []
