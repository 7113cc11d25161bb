"""The ``congener`` command: verbs over recipes, losses and runs."""

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from congener.cli_cache import cache
from congener.cli_plan import plan
from congener.cli_words import Overrides, Trust, run_command, trusting
from congener.errors import (
    CongenerError,
    Interrupted,
    RecipeError,
    VerificationError,
    did_you_mean,
)
from congener.shipped import recipe_path, shipped_recipes

if TYPE_CHECKING:
    from congener.catalogue import Entry
    from congener.conformance import Finding
    from congener.types import Paper

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a small network that keeps the similarities a large one sees.",
)

app.command()(plan)
app.add_typer(cache, name="cache")


def main() -> None:
    """Run the command; whatever a user can mend is one sentence and exit code 2."""
    try:
        app(prog_name="congener")
    except CongenerError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)


def _say_once(words: str) -> None:
    """Print to stderr, once: of several processes, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        Console(stderr=True, soft_wrap=True).print(words)


@contextmanager
def _resumable(folder: Path, command: list[str]) -> Iterator[None]:
    """Say after Ctrl-C how to go on, and exit as an interrupted command does."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = (
            "the checkpoint is saved" if isinstance(error, Interrupted) else "what was done stays"
        )
        if any(folder.glob("**/recipe.yaml")):
            _say_once(f"Stopped; {saved}. Go on with:\n  {shlex.join(command)} --resume")
        else:
            _say_once("Stopped before the run began; nothing was written.")
        sys.exit(130)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/RECIPE.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT.")] = False,
    trust: Trust = None,
) -> None:
    """Train the teacher and every arm of a recipe with every seed; write the report."""
    from congener import api
    from congener.recipe import load_recipe

    path = recipe_path(recipe)
    described = load_recipe(path, overrides or [])
    folder = out or Path("runs") / described.name
    fresh = run_command(recipe, overrides, folder, trust)
    with _resumable(folder, fresh), _Progress() as progress:
        finished = api.run(
            described, out=folder, resume=resume, trust=trust or [],
            observers=(progress.observe,), command=shlex.join(fresh),
        )  # fmt: skip
    if finished.metrics:
        _print_table(folder)
        Console(soft_wrap=True).print(f"The report is in {folder / 'report.html'}")


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    trust: Trust = None,
) -> None:
    """Check a recipe: build everything it names and run two samples through every arm."""
    from congener import api
    from congener.recipe import load_recipe

    described = load_recipe(recipe_path(recipe), overrides or [])
    api.validate(described, trust=trust or [])
    print(f"{recipe} is valid: arms {', '.join(described.all_arms)}.")  # noqa: T201


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; default: runs/RECIPE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    trust: Trust = None,
) -> None:
    """Find what would silently ruin a run, in seconds, before anything is trained."""
    from congener.preflight import doctor as examine
    from congener.recipe import load_recipe

    described = load_recipe(recipe_path(recipe), overrides or [])
    findings = examine(described, out=out, trust=trust or [])
    console = Console(highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))  # noqa: T201
        sys.exit(1 if findings else 0)
    for finding in findings:
        console.print(f"[bold red]{finding.name}[/]  {escape(finding.where)}")
        console.print(f"  {escape(finding.what)}")
        console.print(f"  measured: {escape(finding.measured)}")
        console.print(f"  [bold]{escape(finding.fix)}[/]")
    if findings:
        sys.exit(1)
    console.print(f"{escape(recipe)}: nothing found.")


@app.command()
def bench(
    recipes: Annotated[list[str], typer.Argument(help="Recipes of one task, teacher and student.")],
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/bench"),
    records: Annotated[Path, typer.Option(help="Where the records go.")] = Path("records"),
    holdout: Annotated[int, typer.Option(help="Training samples to tune on.")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in --out.")] = False,
    trust: Trust = None,
) -> None:
    """Compare methods fairly: a tuned student alone, controls, the same seeds; leave records."""
    from congener.bench import bench as compare
    from congener.recipe import load_recipe

    words = ["congener", "bench", *recipes, "--out", str(out)]
    words += ["--records", str(records), "--holdout", str(holdout)]
    words += trusting(trust)
    described = [load_recipe(recipe_path(recipe), []) for recipe in recipes]
    with _resumable(out, words), _Progress() as progress:
        found = compare(
            described, out=out, records=records, holdout=holdout, resume=resume,
            trust=trust or [], observers=(progress.observe,), command=shlex.join(words),
        )  # fmt: skip
    for record in found:
        print(record.folder)  # noqa: T201
    if found:
        Console(soft_wrap=True).print(f"The records are in {records / 'index.html'}")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a folder of records.")],
) -> None:
    """Write the report of a run anew, and print its table; or the page of records."""
    from congener.report import holds_records, write_records, write_report

    if holds_records(folder):
        Console(soft_wrap=True).print(f"The records are in {write_records(folder)}")
        return
    page = write_report(folder)
    _print_table(folder)
    Console(soft_wrap=True).print(f"The report is in {page}")


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="Losses and systems as JSON.")] = False,
) -> None:
    """List the losses, systems, tasks and shipped recipes."""
    from congener.assembly import tasks_by_name
    from congener.catalogue import entries

    known = entries()
    if as_json:
        print(json.dumps([entry.facts() for entry in known], indent=2))  # noqa: T201
        return
    console = Console(highlight=False)
    console.print("[bold]losses[/]  (congener show NAME, congener verify NAME)")
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    table.add_row(*(f"[dim]{word}[/]" for word in ("  name", "family", "needs", "batch", "paper")))
    for entry in known:
        if entry.kind == "loss" and entry.paper is not None:
            table.add_row(
                f"  {entry.name}", entry.family, entry.needs,
                "coupled" if entry.batch_coupled else "", escape(_cited(entry.paper)),
            )  # fmt: skip
    console.print(table)
    console.print("\n[bold]systems[/]  (congener show NAME)")
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
    for entry in known:
        if entry.kind == "system":
            paper = "" if entry.paper is None else escape(_cited(entry.paper))
            table.add_row(f"  {entry.name}", paper, escape(entry.page.title))
    console.print(table)
    console.print("\n[bold]tasks[/]")
    for name in tasks_by_name():
        console.print(f"  {name}")
    console.print("\n[bold]recipes[/]  (congener run NAME)")
    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        console.print(f"  {name}", overflow="ignore", no_wrap=True)
        console.print(Padding(Text(first), (0, 0, 0, 6)))


def _cited(paper: "Paper") -> str:
    """First author's name, and year: what people call a paper."""
    first = paper.authors.split(",")[0].split()[-1]
    return f"{first} {paper.year}"


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A loss or a system, by its short or class name.")],
) -> None:
    """Print the equation, conventions, defaults with sources, and what authors do otherwise."""
    from congener.catalogue import describe, losses_by_name, systems_by_name

    systems = systems_by_name()
    systems |= {system.__name__: system for system in systems.values()}
    losses = losses_by_name()
    if name not in losses and name not in systems:
        known = {**losses, **systems}
        raise RecipeError(f"There is no loss or system {name!r}; {did_you_mean(name, known)}")
    console = Console(highlight=False)
    if name in systems:
        _show(console, describe(systems[name]))
    if name in losses:
        if name in systems:
            console.rule(f"[bold]its loss[/] {name}")
        _show(console, describe(losses[name]))
        console.print(f"\nProve it on this machine: congener verify {losses[name].name}")


def _show(console: Console, entry: "Entry") -> None:
    from congener.catalogue import plain

    paper, _, address = str(entry.paper or "").rpartition(" ")
    heading = f"[bold]{entry.class_name}[/] ({escape(entry.name)}), a {entry.kind}"
    console.print(f"{heading}  {escape(paper)}".rstrip())
    if address:
        console.print(address, soft_wrap=True)
    console.print(f"\n  {escape(str(entry.equation))}\n")
    facts = {"couples the batch": "yes" if entry.batch_coupled else "no"}
    if entry.kind == "loss":
        facts = {
            "family": str(entry.family),
            "takes": ", ".join(entry.inputs),
            "variants": ", ".join(entry.variants) or "one",
            **facts,
            "needs labels": "yes" if entry.needs_labels else "no",
            "trains parameters of its own": "yes" if entry.trains_parameters else "no",
            "zero when student = teacher": "yes" if entry.zero_at_match else "no",
            "functions": ", ".join(entry.functions),
        }
    for fact, value in facts.items():
        console.print(f"  {fact}: {value}")
    table = Table("argument", "default", "source of the default")
    for option in entry.options:
        table.add_row(option.name, escape(option.default) or "required", escape(option.source))
    console.print()
    console.print(table)
    for paragraph in entry.page.paragraphs:
        console.print(f"\n{escape(plain(paragraph))}")
    if entry.page.symbols:
        head, *rows = entry.page.symbols
        table = Table(*head, box=box.SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*(escape(plain(cell)) for cell in row))
        console.print()
        console.print(table)
    for title, text in entry.page.sections.items():
        console.print(f"\n[bold]{escape(title)}[/]\n{escape(plain(text))}")


@app.command()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="A loss, by its short or its class name; default: all.")
    ] = None,
) -> None:
    """Prove a loss on this machine: reference vectors, limits and invariances."""
    from congener.catalogue import losses_by_name
    from congener.conformance import verify as prove

    console = Console(highlight=False)
    if name is None:
        console.print("[dim]largest relative error in float64 (loss, gradient); checks passed[/]")
        names = sorted({loss.name for loss in losses_by_name().values()})
        failed = [each for each in names if not _verified(console, each, list(prove(each)))]
        if failed:
            raise VerificationError(f"{', '.join(failed)}: run congener verify NAME to see how.")
        return
    findings = list(prove(name))
    _print_findings(console, findings)
    if not all(finding.passed for finding in findings):
        raise VerificationError(f"{name} is not what it should be on this machine; see the table.")


def _verified(console: Console, name: str, findings: "list[Finding]") -> bool:
    """One line of the summary; whether everything passed."""
    from congener.conformance import largest_errors

    loss, gradient = largest_errors(findings)
    vectors = {f.name for f in findings if f.kind == "vector"}
    shown = f"{loss:.0e}, {gradient:.0e}" if vectors else ""
    passed = [finding.passed for finding in findings]
    mark = "[green]ok[/]" if all(passed) else "[bold red]failed[/]"
    table = Table.grid(padding=(0, 2, 0, 0))
    for width in (26, 10, 14, 14):
        table.add_column(width=width)
    cells = (
        name,
        f"{len(vectors)} vector{'s' * (len(vectors) != 1)}",
        shown,
        f"{sum(passed)}/{len(passed)} checks",
        mark,
    )
    table.add_row(*cells)
    console.print(table)
    return all(passed)


def _print_findings(console: Console, findings: "list[Finding]") -> None:
    """Every finding with the comparison that came closest to its limit."""
    for kind, title in (("vector", "reference vectors"), ("contract", "limits and invariances")):
        table = Table(
            kind, "in" if kind == "vector" else "setting", "error", "limit", "",
            title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
        )  # fmt: skip
        for finding in findings:
            if finding.kind != kind or not (finding.checks or finding.reason):
                continue
            worst = finding.worst
            mark = "[green]ok[/]" if finding.passed else "[bold red]failed[/]"
            figures = ("", "")  # what either holds or does not has no size
            if worst is not None and (worst.limit > 0 or worst.error > 0):
                figures = (f"{worst.error:.1e}", f"{worst.limit:.0e}")
            if finding.reason:
                mark = f"[dim]does not apply: {escape(finding.reason)}[/]"
            elif worst is not None and not finding.passed:
                mark += f" {escape(worst.key)}"
            table.add_row(finding.name.replace("_", " "), finding.case, *figures, mark)
        if table.row_count:
            console.print(table)
        else:
            console.print(f"{title}: none were published for this loss\n")


def _print_table(folder: Path) -> None:
    from congener.report import summary_table
    from congener.report.words import metric_name
    from congener.runlog import read_json

    rows = summary_table(folder)
    metric = escape(metric_name(read_json(folder / "metrics.json")["metric"]))
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
        title=f"{metric} on the test set; mean ± sd over the seeds, fractions in %",
    )  # fmt: skip
    wide = ["best epoch", "CPU latency"]  # in the report only, so that 80 columns are enough
    wide += ["agreement"] if all(row.agreement is None for row in rows) else []
    shown = [i for i, name in enumerate(rows[0].COLUMNS) if name not in wide]
    for i in shown:
        justify: Literal["left", "right"] = "right" if i else "left"
        table.add_column(rows[0].COLUMNS[i], justify=justify, no_wrap=i > 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape(row.cells[i]) for i in shown))
    Console(highlight=False).print(table)


def _short(fit: str) -> str:
    """The name of a fit, ``arm/seed``, so that it leaves room on a line of 80 columns."""
    return fit if len(fit) <= 30 else f"{fit[:20]}…{fit[-9:]}"


class _Progress:
    """A live bar for the fit at hand, on the terminal; a line for each finished fit."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:>14}"),
            BarColumn(),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f} steps"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._said: set[str] = set()  # of the teacher: arms alike say the same

    def __enter__(self) -> "_Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def observe(self, event: dict[str, Any]) -> None:
        """Take in one event of the run."""
        kind = event["event"]
        if kind == "tick":
            if self._task is None:
                self._task = self._bar.add_task(_short(event["fit"]), total=event["steps"])
            self._bar.update(self._task, completed=event["step"])
        elif kind == "machine" and event["processes"] > 1:
            self._console.print(f"{event['processes']} processes on {event['device']}")
        elif kind == "teacher_error" and event["line"] not in self._said:
            self._said.add(event["line"])
            self._console.print(Text(event["line"]), soft_wrap=True)
        elif kind == "not_compiled":
            network = event.get("network", "student")
            self._console.print(Text(f"the {network} is not compiled: {event['reason']}"))
        elif kind == "teacher_live":
            self._console.print(Text(f"{event['arm']} asks the teacher live: {event['reason']}"))
        elif kind in ("teacher_saved", "exhibits_failed"):
            self._console.print(Text(event["line"]))
        elif kind == "fit_finished":
            line = f"{_short(event['fit']):>14}"
            for metric in event["best"].keys() - {"step"}:  # the task's headline figure
                line += f"  {metric} {event['metrics'][metric]:.4f}"
            self._console.print(Text(f"{line}  ({event['seconds']:.0f} s)"))
            if self._task is not None:
                self._bar.remove_task(self._task)
                self._task = None
