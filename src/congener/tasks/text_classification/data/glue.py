"""The tasks of GLUE (Wang et al., ICLR 2019), as their archives hold them."""

from pathlib import Path
from typing import NamedTuple, Unpack

from congener.errors import DataError, did_you_mean

from .splits import Division, Splits, divide, shuffled
from .tables import Columns, class_names_of, documents_of, read_table

__all__ = ["glue"]


class Layout(NamedTuple):
    """Where an archive has what.

    Attributes:
        folder: what it unpacks to.
        columns: of its tables.
        test: the file that is tested on: the labels of ``test.tsv`` are not public.
        header: whether the first line names the columns.
        regression: whether labels are numbers.
    """

    folder: str
    columns: Columns
    test: str = "dev.tsv"
    header: bool = True
    regression: bool = False


SENTENCES = "sentence1", "sentence2"
LAYOUTS = {
    "cola": Layout("CoLA", Columns(3, 1), header=False),
    "sst2": Layout("SST-2", Columns("sentence", "label")),
    "mrpc": Layout("MRPC", Columns("#1 String", "Quality", "#2 String")),
    "qqp": Layout("QQP", Columns("question1", "is_duplicate", "question2")),
    "stsb": Layout("STS-B", Columns(SENTENCES[0], "score", SENTENCES[1]), regression=True),
    "mnli": Layout("MNLI", Columns(SENTENCES[0], "gold_label", SENTENCES[1]), "dev_matched.tsv"),
    "mnli_mismatched": Layout(
        "MNLI", Columns(SENTENCES[0], "gold_label", SENTENCES[1]), "dev_mismatched.tsv"
    ),
    "qnli": Layout("QNLI", Columns("question", "label", "sentence")),
    "rte": Layout("RTE", Columns(SENTENCES[0], "label", SENTENCES[1])),
    "wnli": Layout("WNLI", Columns(SENTENCES[0], "label", SENTENCES[1])),
}


def glue(root: str | Path, task: str = "sst2", **division: Unpack[Division]) -> Splits:
    """A task of GLUE; tested on its development set, for the test set's labels are not public.

    The training set is put into a fixed random order before it is divided. Damaged rows, of which
    QQP has some, are left out with a notice.

    Args:
        root: the folder with the unpacked archives, or that of the task.
        task: cola, sst2, mrpc, qqp, stsb, mnli, mnli_mismatched, qnli, rte or wnli.
        **division: teacher, pool, labelled, holdout; see :func:`.divide`.

    Raises:
        DataError: an unknown task, or a table that is missing or damaged.
    """
    layout = LAYOUTS.get(task)
    if layout is None:
        raise DataError(f"GLUE has no task {task!r}; {did_you_mean(task, LAYOUTS)}")
    below = Path(root) / layout.folder
    folder = below if below.is_dir() else Path(root)
    paths = folder / "train.tsv", folder / layout.test
    columns = layout.columns
    rows = [read_table(path, columns, header=layout.header, damaged="skip") for path in paths]
    names = None if layout.regression else class_names_of(rows[0], columns.label)
    train, test = (
        documents_of(path, some, columns, names) for path, some in zip(paths, rows, strict=True)
    )
    return divide(f"GLUE's {task}", shuffled(train), test, class_names=names or (), **division)
