"""What is listed is read off the code, and read right."""

import inspect

import pytest

from congener import losses
from congener.catalogue import describe, entries, functions_beside, plain, read_page
from congener.losses import CRDLoss, CSKDLoss, DKDLoss, SPLoss, VIDLoss

DOCSTRING = r"""A title that
runs on.

First paragraph, two
lines. With ``code`` and :math:`\\tau`.

.. math::
    a = b

    c = d

======  =====  =======
symbol  name   default
======  =====  =======
x y     ``z``  1, ours
======  =====  =======

Conventions
    One sentence.
    Another.

    More of it.

Differences from the authors' code
    None.
"""


def test_a_docstring_in_parts() -> None:
    page = read_page(inspect.cleandoc(DOCSTRING.replace("\\\\", "\\")))
    assert page.title == "A title that runs on."
    assert page.paragraphs == ["First paragraph, two lines. With ``code`` and :math:`\\tau`."]
    assert page.latex == ["a = b", "c = d"]
    assert page.symbols == [["symbol", "name", "default"], ["x y", "``z``", "1, ours"]]
    assert page.sections == {
        "Conventions": "One sentence. Another. More of it.",
        "Differences from the authors' code": "None.",
    }
    assert plain(page.paragraphs[0]) == "First paragraph, two lines. With code and τ."
    assert plain(":func:`~a.b` \\Omega \\hat x") == "a.b Ω \\hat x"


def test_entries_of_known_losses() -> None:
    sp, dkd, vid = (describe(cls) for cls in (SPLoss, DKDLoss, VIDLoss))
    assert (sp.needs_features, sp.needs_labels, sp.batch_coupled) == (True, False, True)
    assert sp.variants == ["normalize=gram_rows", "normalize=features"]
    assert (dkd.needs_features, dkd.needs_labels, dkd.batch_coupled) == (False, True, False)
    assert vid.trains_parameters
    assert not sp.trains_parameters
    assert [option.default for option in vid.options][:2] == ["", ""]


def test_functions_stand_beside_their_loss() -> None:
    assert functions_beside(CSKDLoss) == [
        "cskd_batch_loss",
        "cskd_class_loss",
        "cskd_loss",
        "cswt_loss",
    ]
    assert "crd_loss" in functions_beside(CRDLoss)
    assert functions_beside(SPLoss) == ["sp_loss"]


def test_every_loss_function_stands_beside_some_loss() -> None:
    claimed = {name for entry in entries() for name in entry.functions}
    functions = {
        name
        for name in losses.__all__
        if inspect.isfunction(getattr(losses, name)) and name.endswith("_loss")
    }
    assert functions - claimed <= {"mixed_cross_entropy_loss"}  # a task loss of STKD and MixKD


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_docstring_has_its_parts(entry) -> None:
    if entry.kind == "loss":
        assert entry.page.paragraphs
        assert entry.page.latex
        assert entry.page.symbols[0][0] == "symbol"
        assert {"Conventions", "Differences from the authors' code"} <= set(entry.page.sections)
        assert entry.facts()["year"] >= 2012
