"""Networks of three libraries learn from each other without one tap written by hand."""

from pathlib import Path

import pytest
from tests.planning.pairs import FAST, SLOW, learn

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"


def check(names: tuple[str, str]) -> None:
    for name in names:
        if name.startswith("transformers:"):
            pytest.importorskip("transformers")
    found, totals = learn(names)
    assert [term.loss.name for term in found.terms] == ["kd", "sp"]
    assert min(totals[-3:]) < 0.95 * totals[0], totals


@pytest.mark.parametrize("names", FAST, ids=" ".join)
def test_a_pair_of_each_kind_learns(names) -> None:
    check(names)


@pytest.mark.slow
@pytest.mark.parametrize("names", SLOW, ids=" ".join)
def test_any_pair_learns(names) -> None:
    check(names)


def test_the_page_lists_every_pair() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len({*FAST, *SLOW}) == len(FAST) + len(SLOW) >= 30
    for student, teacher in [*FAST, *SLOW]:
        assert f"| `{student}` | `{teacher}` |" in text
