"""``congener cache``: what a teacher said, kept: build it, look at it, check every byte of it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from congener.cli_words import Overrides, Trust, run_command
from congener.errors import RunError
from congener.shipped import recipe_path, shipped_recipes

if TYPE_CHECKING:
    from congener.caching import Answers

__all__ = ["cache"]

cache = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="What the teacher said about each view of each sample, kept on disk.",
)


@cache.command()
def build(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped one.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    trust: Trust = None,
) -> None:
    """Ask the teacher once about all that a run will read; what is there already stays."""
    from congener.recipe import load_recipe
    from congener.runner import keep_answers

    console = Console(highlight=False, soft_wrap=True)
    described = load_recipe(recipe_path(recipe), overrides or ())
    folder = out or Path("runs") / described.name

    def show(event: dict[str, Any]) -> None:
        if event["event"] == "cache_build":
            what = f"{event['samples']:,} samples in {_views(event['views'])}"
            _say(console, f"Asking the teacher about {what}: {_size(event['bytes'])} on disk")

    answers = keep_answers(described, folder, trust=trust or (), observers=(show,))
    _print_plan(console, answers)
    if any(not plan.live for plan in answers.plans.values()):
        _print_stores(console, answers.folder)
    way = shlex.join([*run_command(recipe, overrides, folder, trust), "--resume"])
    _say(console, f"Go on with: {way}")


@cache.command()
def info(
    place: Annotated[str, typer.Argument(help="A store, a run folder, or a recipe.")],
    overrides: Overrides = None,
    trust: Trust = None,
) -> None:
    """Show what stores hold; of a recipe, which arms would learn from one, and why others not."""
    console = Console(highlight=False, soft_wrap=True)
    if Path(place).is_dir() and (any(_manifests(Path(place))) or place not in shipped_recipes()):
        _print_stores(console, Path(place))
        return
    from congener.assembly import Assembly
    from congener.caching import Answers
    from congener.recipe import load_recipe
    from congener.runlog import RunLog

    described = load_recipe(recipe_path(place), overrides or ())
    assembly = Assembly(described, trust or ())
    answers = Answers(described, assembly, Path("runs") / described.name, RunLog(None))
    answers.plan(assembly.teacher())
    _print_plan(console, answers)


@cache.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A store, or a run folder.")],
) -> None:
    """Read every byte of the stores and check it; exit code 1 if anything is damaged."""
    console = Console(highlight=False, soft_wrap=True)
    problems = 0
    for store in _stores(folder):
        found = store.verify()
        problems += len(found)
        for sentence in found:
            _say(console, sentence)
        if not found:
            _say(console, f"{store.folder}: {_size(store.nbytes)}, every byte as it was written")
    if problems:
        raise typer.Exit(1)


def _print_plan(console: Console, answers: "Answers") -> None:
    if not answers.plans:
        _say(console, "No arm learns from a teacher whose answers could be kept.")
    for arm, plan in answers.plans.items():
        if plan.live:
            _say(console, f"{arm}: the teacher runs on each batch, since {plan.live}")
        else:
            read = ", ".join(field.name for fields in plan.fields.values() for field in fields)
            _say(console, f"{arm}: learns from the store ({read})")


def _print_stores(console: Console, folder: Path) -> None:
    from congener.teachers import Fidelity
    from congener.teachers.store import WITNESS

    for store in _stores(folder):
        facts = store.info()
        console.print(f"[bold]{escape(str(facts['folder']))}[/]")
        state = f"{facts['missing']} of {facts['shards']} files are missing"
        _say(console, f"  {facts['samples']:,} samples, {_views(facts['views'])}")
        _say(console, f"  {_size(facts['bytes'])}, {state if facts['missing'] else 'complete'}")
        for kind in ("fields", "identity", "versions"):
            for name, value in facts[kind].items():
                if name == WITNESS:
                    size = store.fields[WITNESS].nbytes
                    name, value = "sketch of the input", f"{size} bytes for each sample"
                _say(console, f"  {name}: {value}")
        lost = Fidelity.read(store.folder)
        if lost is not None:
            _say(console, f"  of the logits, {lost.words(store.fields['logits'])}")


def _stores(folder: Path) -> list[Any]:
    from congener.teachers import TeacherStore

    manifests = _manifests(folder)
    if not manifests:
        raise RunError(
            f"There is no teacher store in {folder}; name a run folder, or make one with `congener "
            "cache build RECIPE`."
        )
    return [TeacherStore.open(path.parent) for path in manifests]


def _manifests(folder: Path) -> list[Path]:
    """Those of a store, of a folder of stores, or of a run."""
    places = ("manifest.json", "*/manifest.json", "cache/*/manifest.json")
    return sorted(path for place in places for path in folder.glob(place))


def _size(count: int) -> str:
    for unit, each in (("GB", 1e9), ("MB", 1e6)):
        if count >= each:
            return f"{count / each:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _views(count: int) -> str:
    return f"{count} view{'' if count == 1 else 's'}"


def _say(console: Console, words: str) -> None:
    console.print(escape(words))
