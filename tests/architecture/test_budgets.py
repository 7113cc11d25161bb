"""Files stay small, hyper-parameters few, and whatever is public is documented."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.architecture.test_floors import PROJECT, SOURCE

import congener
from congener import losses, systems
from congener.assembly import tasks_by_name
from congener.catalogue import losses_by_name, systems_by_name

ANY, LOSS, SYSTEM, LOOP = 500, 150, 300, 300
PARAMETERS = 8
FILES = sorted(SOURCE.rglob("*.py"))


def budget(path: Path) -> int:
    """The most lines that a file of the package may have (DESIGN.md, section 8)."""
    inside = path.relative_to(SOURCE)
    if inside.parts[0] in ("losses", "systems") and path.name != "__init__.py":
        return LOSS if inside.parts[0] == "losses" else SYSTEM
    return LOOP if inside == Path("engine/loop.py") else ANY


def too_long(path: Path, limit: int) -> bool:
    return len(path.read_text(encoding="utf-8").splitlines()) > limit


def test_files_keep_their_budgets() -> None:
    long = {str(p.relative_to(SOURCE)) for p in FILES if too_long(p, budget(p))}
    assert not long


def test_a_long_file_would_be_seen(tmp_path) -> None:
    path = tmp_path / "long.py"
    path.write_text("x = 1\n" * (LOSS + 1))
    assert too_long(path, LOSS)
    assert not too_long(path, LOSS + 1)
    limits = [budget(SOURCE / name) for name in ("losses/sp.py", "systems/a.py", "engine/loop.py",
                                                 "engine/config.py", "cli.py")]  # fmt: skip
    assert limits == [LOSS, SYSTEM, LOOP, ANY, ANY]


@pytest.mark.parametrize("loss", sorted(set(losses_by_name().values()), key=lambda x: x.name))
def test_a_loss_has_few_hyper_parameters_with_a_source_each(loss) -> None:
    names = list(inspect.signature(loss).parameters)
    # What only the caller can know, such as a network's channels, is nothing to choose.
    chosen = [name for name in names if not loss.sources[name].startswith("yours:")]
    assert len(chosen) <= PARAMETERS
    assert set(names) == set(loss.sources)
    assert all(source.strip() for source in loss.sources.values())


@pytest.mark.parametrize("system", systems_by_name().values(), ids=lambda system: system.name)
def test_a_system_has_few_hyper_parameters_with_a_source_each(system) -> None:
    names = set(inspect.signature(system).parameters) - {"student", "teacher", "task"}
    assert names == set(system.sources)
    chosen = [name for name in names if not system.sources[name].startswith("yours:")]
    assert len(chosen) <= PARAMETERS
    assert all(source.strip() for source in system.sources.values())
    assert system.equation


def public() -> Iterator[tuple[str, object]]:
    for module in (congener, losses, systems):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


@pytest.mark.parametrize(("name", "thing"), list(public()), ids=[name for name, _ in public()])
def test_whatever_is_public_is_documented(name, thing) -> None:
    own = thing.__dict__.get("__doc__") if inspect.isclass(thing) else thing.__doc__
    assert own, name
    assert len(own.split()) >= 3


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_it_is(path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_list_of_public_names_resolves() -> None:
    for path in FILES:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(["congener", *(part for part in parts if part != "__init__")])
        if name != "congener.__main__":
            module = importlib.import_module(name)
            missing = [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
            assert not missing, name
            assert len(set(getattr(module, "__all__", ()))) == len(getattr(module, "__all__", ()))


def test_names_of_the_package() -> None:
    assert congener.__version__ == PROJECT["project"]["version"]
    assert set(congener.__all__) <= set(dir(congener))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = congener.nonsense
    names = {}
    exec("from congener import *", names)
    assert set(congener.__all__) <= set(names)


def test_every_short_name_is_unique() -> None:
    classes = set(losses_by_name().values())
    assert len({loss.name for loss in classes}) == len(classes)
    assert "image_classification" in tasks_by_name()


def test_types_are_promised() -> None:
    assert (SOURCE / "py.typed").is_file()
