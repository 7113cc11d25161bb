"""What the command prints fits a terminal of 80 columns and says what it should."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.refusal import refused

from congener.assembly import losses_by_name


@pytest.fixture(autouse=True)
def _terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > 80]


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
        assert repr(parameter.default) in words
        source = loss.sources[parameter.name].split()
        assert source
        assert all(word in words for word in source)
    spill = [line for line in wide(said.out) if not re.search(r"\\|==|``", line)]
    assert not spill


def test_show_keeps_every_word_of_the_documentation(congener) -> None:
    for loss in set(losses_by_name().values()):
        module = inspect.getdoc(inspect.getmodule(loss))
        assert module.split() == congener("show", loss.name).out.split()[-len(module.split()) :]


def test_help_fits(congener) -> None:
    for words in (["--help"], *([verb, "--help"] for verb in ("run", "validate", "show", "list"))):
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
