"""What every mistake of a user must come to."""

import re
from pathlib import Path


def refused(said, sentence: str) -> None:
    """Exit code 2, one sentence on stderr, and nothing else."""
    assert said.code == 2, said
    assert said.out == ""
    assert re.fullmatch(r"error: [^\n]+[.?]\n", said.err), said.err
    assert re.search(sentence, said.err.strip()), said.err


def names(folder: str = ".") -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())
