"""The text of a recipe: YAML that holds plain values only, where each key stands, overrides."""

from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from congener.errors import RecipeError

__all__ = ["Source", "override_value", "parse_yaml", "plain"]


class Source:
    """A recipe's text: plain values, and where each key stands."""

    def __init__(self, label: str, node: Any) -> None:
        self.label, self.node = label, node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source)  # recipes are equal wherever they were read

    __hash__ = None  # type: ignore[assignment]

    def place(self, path: Sequence[int | str]) -> str:
        """``file, line n`` of the deepest key of ``path`` that the text has."""
        node: Any = self.node
        line: int | None = None
        for key in path:
            try:
                held: Any = node.lc  # ruamel's record of lines and columns
                position = held.key(key) if isinstance(node, Mapping) else held.item(key)
                line, node = position[0] + 1, node[key]
            except (AttributeError, KeyError, IndexError, TypeError):
                continue
        return self.label if line is None else f"{self.label}, line {line}"


def parse_yaml(text: str, label: str) -> Any:
    """The nodes of a YAML text; ``label`` is what messages call it."""
    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(error.problem or error.context).strip().splitlines()[0]
        if problem.startswith("but "):  # the second half of a sentence
            problem = f"{error.context}, {problem}"
        raise RecipeError(f"{label}{line}: this is no valid YAML ({problem}).") from error
    except YAMLError as error:
        problem = str(error).strip().splitlines()[0]
        raise RecipeError(f"{label}: this is no valid YAML ({problem}).") from error
    except RecursionError:
        raise RecipeError(f"{label}: this is no valid YAML (it is nested too deeply).") from None


def plain(node: Any, label: str) -> Any:
    """Plain Python values; a tag would be a request to build an object, and is refused."""
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag:
        line = getattr(getattr(node, "lc", None), "line", None)
        place = label if line is None else f"{label}, line {line + 1}"
        raise RecipeError(f"{place}: the tag {tag!r} is refused; a recipe holds plain values only.")
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str | int | float):
                raise RecipeError(f"{label}: the key {key!r} is no text; keys are plain words.")
        return {str(key): plain(value, label) for key, value in node.items()}
    if isinstance(node, str):
        return str(node)
    if isinstance(node, Sequence):
        return [plain(value, label) for value in node]
    for kind in (bool, int, float):
        if isinstance(node, kind):
            return kind(node)
    return node


def override_value(values: dict[str, Any], override: str) -> None:
    """Set ``a.b.0.c=value`` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise RecipeError(f"The override {override!r} should read key=value, as in train.lr=0.1.")
    value = plain(parse_yaml(text, f"override {override!r}"), f"override {override!r}")
    node: Any = values
    keys = path.split(".")
    for position, key in enumerate(keys):
        slot: Any = key
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise RecipeError(
                    f"The override {override!r} asks for item {key!r} of a list of {len(node)}."
                )
            slot = int(key)
        if position == len(keys) - 1:
            node[slot] = value
            return
        child = node[slot] if isinstance(node, list) else node.get(slot)
        if child is None or isinstance(child, str):
            child = {} if child is None else {"name": child}
            node[slot] = child
        if not isinstance(child, dict | list):
            raise RecipeError(
                f"The override {override!r} looks inside {'.'.join(keys[: position + 1])!r}, "
                f"which is {child!r}."
            )
        node = child
