"""Arguments of a recipe, bound to what they are for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from congener.errors import RecipeError
from congener.naming import bind
from congener.systems.ascent import Ascent


def takes(
    width: int = 1,
    weight: float = 1.0,
    on: bool = False,
    word: str = "",
    where: Path | None = None,
    taps: Sequence[str] = (),
    ascent: Ascent | Mapping[str, Any] | None = None,
) -> None: ...


@pytest.mark.parametrize(
    ("key", "given", "passed"),
    [
        ("width", "8", 8),
        ("width", 1e2, 100),
        ("weight", "1e-3", 1e-3),
        ("weight", 3, 3),
        ("on", "yes", True),
        ("word", "8", "8"),
        ("taps", ["8"], ["8"]),
        ("where", "a/b", Path("a/b")),
    ],
)
def test_text_and_numbers_are_what_they_stand_for(key: str, given: Any, passed: Any) -> None:
    found = bind("system", "toy", takes, {key: given})[key]
    assert found == passed
    assert type(found) is type(passed)


@pytest.mark.parametrize(
    ("key", "given", "sentence"),
    [
        ("width", "wide", "'width' of the system 'toy' is 'wide': expected a whole number."),
        ("width", 1.5, "is 1.5: expected a whole number."),
        ("taps", "layer1", "is 'layer1': expected a list, as in [0, 1]."),
        ("ascent", "sign", "is 'sign': expected a mapping of names to values."),
        ("ascent", 3, "is 3: expected a mapping of names to values."),
    ],
)
def test_what_stands_for_nothing_is_refused(key: str, given: Any, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        bind("system", "toy", takes, {key: given})
    assert str(error.value).endswith(sentence)
