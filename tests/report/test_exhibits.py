"""Tasks that are no classification: a run, what of it the page shows, and what it leaves out."""

import base64
import io
import json
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread
from safetensors.torch import load_file
from tests.report.tagging import Frames, Tones
from tests.report.test_page import Reader
from torch import Tensor

import congener
from congener import Term
from congener.analysis import _keep, _one_label, _ordered
from congener.cli import _Progress
from congener.losses import IUSPLoss, MultiLabelKDLoss
from congener.report import exhibits as pages
from congener.report import summary_table, write_report
from congener.report.data import Analysis, read_run
from congener.report.page import _class_order, _exhibits
from congener.report.svg import style
from congener.report.words import headline
from congener.runlog import RunLog
from congener.types import Exhibit, Panel

SETTINGS: dict[str, Any] = {
    "steps": 4, "batch_size": 16, "device": "cpu", "threads": 1, "evaluate_every": 2, "lr": 0.05,
}  # fmt: skip


def distilled(out: Path, task: Tones) -> congener.Run:
    torch.manual_seed(1)
    student, teacher = Frames(4), Frames(8)
    terms = [Term(MultiLabelKDLoss()), Term(IUSPLoss(), 1.0, "frames", "frames")]
    return congener.distill(
        student, teacher, task, terms=terms, alone=True, seeds=(0, 1), out=out, **SETTINGS
    ).run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run on a task of tags, given as an object; tests only read it."""
    return distilled(tmp_path_factory.mktemp("tags") / "run", Tones()).folder


@pytest.fixture(scope="module")
def page(run: Path) -> Reader:
    return Reader((run / "report.html").read_text("utf-8"))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def written(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text("utf-8"))


def shown(folder: Path, *exhibits: Exhibit) -> list[pages.Shown]:
    """What the page gets of exhibits that a run keeps."""
    folder.mkdir(exist_ok=True)
    _keep(exhibits, folder)
    return pages.read_exhibits(folder)


def pixels(source: str) -> Any:
    kind, _, data = source.partition(",")
    assert kind == "data:image/png;base64"
    return imread(io.BytesIO(base64.b64decode(data)))


# a run on tags


def test_what_needs_one_class_a_sample_is_left_out_without_a_word(run: Path, page: Reader) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["classifies"] is False
    assert metrics["metric"] == "micro_auprc"
    for arm in ("teacher", "alone", "distilled"):
        with np.load(run / "analysis" / f"{arm}.npz") as stored:
            assert set(stored.files) == {"gram", "gram_labels", "gram_tap"}
            assert str(stored["gram_tap"]) == "frames"
    assert {"agreement", "classes"}.isdisjoint(page.values("id"))
    assert "Left out" not in page.text
    assert "agreement" not in page.text.lower()
    assert all(row.agreement is None for row in summary_table(run))
    assert [len(row) for row in page.tables[0]] == [len(page.tables[0][0])] * 4


def test_the_metric_is_in_words(run: Path, page: Reader) -> None:
    assert "micro_auprc" not in page.text.replace("micro_auprc:", "")
    assert page.tables[0][0][1].startswith("micro AUPRC %")
    assert "Micro AUPRC in percent, last epoch" in page.text
    assert "micro AUPRC" in headline(read_run(run))
    assert any("Line chart of micro AUPRC" in label for label in page.values("aria-label"))


def test_the_matrix_is_ordered_by_the_first_tag(run: Path, page: Reader) -> None:
    labels: Tensor = Tones().splits["test"].columns["labels"]  # type: ignore[attr-defined]
    first = [row.index(1.0) for row in labels.tolist() if 1.0 in row]
    with np.load(run / "analysis" / "alone.npz") as stored:
        assert stored["gram_labels"].tolist() == sorted(first)
    assert "samples ordered by label." in " ".join(page.values("aria-label"))
    assert "against itself, ordered by label: bright" in page.text
    assert "Labels from the top: low, middle, high." in page.text


def test_each_network_is_shown_with_its_tap_in_the_order_of_the_run(page: Reader) -> None:
    assert "Frames of <a> clip" in page.text
    assert "Bright & alike." in page.text
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [
        "Spectrogram, clip: as it is",
        "Similarity matrix, teacher: tap frames",
        "Similarity matrix, alone: tap frames",
        "Similarity matrix, distilled: tap frames",
    ]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in pictures)
    (player,) = [attrs for tag, attrs in page.tags if tag == "audio"]
    assert player["src"].startswith("data:audio/wav;base64,")
    assert "controls" in player
    assert player["aria-label"] == "Player: Frames of <a> clip"
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert tag == "a" or not (attrs.get("href") or "#").startswith("http")


def test_a_failing_exhibit_does_not_lose_the_run(tmp_path: Path, capsys: Any) -> None:
    """And what it was given: the networks that seed 0 left, in the order of the run."""
    seen = {}

    class Fails(Tones):
        def exhibits(self, networks: Any, taps: Any) -> Any:
            seen.update({name: net.head.bias.clone() for name, net in networks.items()})
            raise ValueError("no <clip>\nis there.")

    finished = distilled(tmp_path / "run", Fails())
    assert list(seen) == ["teacher", "alone", "distilled"]
    for arm in ("alone", "distilled"):
        path = tmp_path / "run" / "arms" / arm / "seed-0" / "weights.safetensors"
        assert torch.equal(seen[arm], load_file(path)["head.bias"])
    line = "The task's exhibits are left out: ValueError: no <clip> is there."
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(each) for each in lines]
    (event,) = [event for event in events if event["event"] == "exhibits_failed"]
    assert event["line"] == line
    assert finished.metrics["arms"]["distilled"]
    text = Reader((tmp_path / "run" / "report.html").read_text("utf-8")).text
    assert text.count(line) == 1
    assert not (tmp_path / "run" / "exhibits.json").exists()
    _Progress().observe(event)
    assert line in " ".join(capsys.readouterr().err.split())


def test_what_an_earlier_session_kept_is_removed(tmp_path: Path) -> None:
    from congener.analysis import Analysis as Eyes

    log = RunLog(tmp_path)
    log.emit("exhibits_failed", line="old")
    for name in ("exhibits.json", "exhibits.npz"):
        (tmp_path / name).write_text("old")

    class Quiet(Tones):
        def exhibits(self, networks: Any, taps: Any) -> Any:
            return ()

    Eyes(Quiet(), None, None, torch.device("cpu")).exhibit(tmp_path, log)
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]
    assert (tmp_path / "events.jsonl").read_text() == ""


@pytest.mark.parametrize("picture", [
    Panel("", torch.zeros(3, 4, 4, dtype=torch.uint8)), Panel("", torch.zeros(4, 4, 3)),
    Panel("", torch.zeros(4, 4, 3, dtype=torch.uint8), "similarity"),
])  # fmt: skip
def test_a_picture_of_another_kind_is_refused(tmp_path: Path, picture: Panel) -> None:
    with pytest.raises(ValueError, match="is no "):
        _keep([Exhibit("", "", {"a": [picture]})], tmp_path)
    assert not list(tmp_path.iterdir())


# what is damaged


@pytest.mark.parametrize(("name", "damage", "said"), [
    ("exhibits.json", lambda text: text[:40], "exhibits.json is not readable JSON"),
    ("exhibits.json", lambda text: text.replace(b'"title"', b'"head"'), "exhibits.0.title: Field"),
    ("exhibits.json", lambda text: text.replace(b'"a1"', b'"a9"'), "does not hold the pictures"),
    ("exhibits.json", lambda text: text.replace(b'"a1"', b'"a4"'), "does not hold the pictures"),
    ("exhibits.json", lambda text: text.replace(b'"a4"', b'"a0"'), "does not hold the sound"),
    ("exhibits.npz", lambda data: data[:200], "exhibits.npz cannot be read."),
    ("exhibits.npz", None, "exhibits.npz cannot be read."),
])  # fmt: skip
def test_damaged_files_cost_one_sentence(copy: Path, name: str, damage: Any, said: str) -> None:
    path = copy / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with style():
        found = _exhibits(read_run(copy))
    assert found["shown"] == []
    (sentence,) = found["missing"]
    assert sentence.startswith("Exhibits are left out: ")
    assert said in sentence
    assert sentence.endswith(".")
    assert not sentence.endswith("..")


def test_nothing_is_unpickled(copy: Path) -> None:
    np.savez(copy / "exhibits.npz", a0=np.array([{"a": 1}], dtype=object))
    page = written(copy)
    assert "Exhibits are left out: exhibits.npz cannot be read." in page.text
    assert not [tag for tag, _ in page.tags if tag in ("img", "audio")]
    assert "Cost" in page.text


# pictures


def test_a_kind_has_one_scale_of_colours(tmp_path: Path) -> None:
    values = torch.linspace(0, 1, 400).view(20, 20)
    rows = {"a": [Panel("", values, "similarity")], "b": [Panel("", values / 2, "similarity"),
            Panel("", 30 * values - 50, "spectrogram")]}  # fmt: skip
    (only,) = shown(tmp_path / "run", Exhibit("", "", rows))
    a, b = pixels(only.rows[0][1][0].source), pixels(only.rows[1][1][0].source)
    high = np.quantile(np.concatenate([values.numpy().ravel(), values.numpy().ravel() / 2]), 0.99)
    wanted = colormaps["viridis"](values.numpy() / high)
    assert np.allclose(a, wanted, atol=0.02)
    assert np.allclose(b, colormaps["viridis"](values.numpy() / 2 / high), atol=0.02)
    tones = pixels(only.rows[1][1][1].source)
    assert tones[0, 0, :3].max() < 0.05  # magma's black: the least value, at the top left
    assert tones[-1, -1, :3].min() > 0.7
    assert only.scale is not None
    assert f"to {high:.2g} (bright)" in only.scale.label


def test_pixels_are_as_they_were_given(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    (only,) = shown(tmp_path / "run", Exhibit("", "", {"a": [Panel("it", image)]}))
    picture = only.rows[0][1][0]
    assert (picture.width, picture.height) == (7, 5)
    assert np.array_equal((255 * pixels(picture.source)[..., :3]).round(), image.numpy())
    assert only.scale is None
    assert only.player is None


def test_values_that_are_none_have_no_colour(tmp_path: Path) -> None:
    values = torch.full((3, 3), torch.nan)
    values[0, 0] = 1.0
    panels = [Panel("", values, "similarity"), Panel("", values * torch.nan, "spectrogram")]
    (only,) = shown(tmp_path / "run", Exhibit("", "", {"a": panels}))
    alpha = pixels(only.rows[0][1][0].source)[..., 3]
    assert alpha[0, 0] == 1
    assert alpha[1:].max() == 0
    assert pixels(only.rows[0][1][1].source)[..., 3].max() == 0


def test_large_pictures_become_small(tmp_path: Path) -> None:
    values = torch.arange(1000.0)[:, None].expand(1000, 1000)
    panels = [Panel("", values, "similarity"), Panel("", values[:64], "spectrogram")]
    (only,) = shown(tmp_path / "run", Exhibit("", "", {"a": panels}))
    square, tones = (pixels(panel.source) for panel in only.rows[0][1])
    assert square.shape == (256, 256, 4)
    assert tones.shape == (64, 512, 4)
    assert square[0, 0, 0] < square[-1, 0, 0]


def test_hits_are_marked_by_more_than_colour(copy: Path) -> None:
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    hostile = "<script>alert(1)</script>"
    panels = [Panel("query", image), Panel("dog", image, hit=True), Panel("cat", image, hit=False),
              Panel(hostile, hit=True)]  # fmt: skip
    _keep([Exhibit(hostile, hostile, {hostile: panels})], copy)
    source = write_report(copy).read_text("utf-8")
    assert "<script" not in source
    page = Reader(source)
    assert page.text.count(hostile) == 4
    classes = [attrs["class"] for tag, attrs in page.tags if tag == "li"]
    assert classes == ["image", "image hit", "image miss", "card hit"]
    marks = [attrs["aria-label"] for tag, attrs in page.tags if tag == "b"]
    assert marks == ["hit", "no hit", "hit"]
    assert "✓ dog" in page.text
    assert "✗ cat" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3


# sound


def test_the_player_plays_the_waveform(tmp_path: Path, monkeypatch: Any) -> None:
    waveform = torch.tensor([0.0, 0.5, -1.0, 1.0, 2.0, torch.nan])
    exhibit = Exhibit("", "", {}, (waveform, 8000))
    (only,) = shown(tmp_path / "run", exhibit)
    assert only.player is not None
    stream = io.BytesIO(base64.b64decode(only.player.source.partition(",")[2]))
    with wave.open(stream) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        samples = np.frombuffer(file.readframes(6), dtype="<i2")
    assert samples.tolist() == [0, 16384, -32767, 32767, 32767, 0]
    assert only.player.of is None
    monkeypatch.setattr(pages, "SOUND", 4)
    (cut,) = shown(tmp_path / "run", exhibit)
    assert cut.player is not None
    assert (cut.player.seconds, cut.player.of) == (4 / 8000, 6 / 8000)


def test_a_long_sound_is_cut_and_says_so(copy: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pages, "SOUND", 8000)
    _keep([Exhibit("", "", {}, (torch.zeros(20000), 8000))], copy)
    assert "The player holds the first 1.0 s of 2.5 s." in written(copy).text


# labels


def test_test_samples_without_a_label_count_for_no_class() -> None:
    labels = np.array([0, 0, 1, -100, -100])
    said = np.array([[0, 1, 1, 0, 2], [0, 0, 0, 0, 2]])
    found = Analysis(labels, said, said[0]).class_accuracy(3)
    assert found[:2].tolist() == [0.75, 0.5]
    assert np.isnan(found[2])


def test_samples_are_ordered_by_their_label() -> None:
    labels = torch.tensor([1, -100, 0, 1, 0, 1])
    assert _ordered(labels, 4).tolist() == [2, 4, 0, 3]
    assert _ordered(torch.full((5,), -100), 3).tolist() == [0, 1, 2]
    many = torch.arange(50).repeat(3)  # of identities two each, so that there is something alike
    assert many[_ordered(many, 20)].tolist() == [k for k in range(10) for _ in range(2)]
    tags = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 1], [-100, -100, -100]])
    assert _one_label(tags).tolist() == [1, -1, 0, -1]
    assert _one_label(labels) is labels


def test_names_of_labels_that_have_none(copy: Path) -> None:
    path = copy / "metrics.json"
    content = json.loads(path.read_text()) | {"class_names": []}
    path.write_text(json.dumps(content))
    text = written(copy).text
    assert "from the top" not in text
    assert "ordered by label: bright" in text
    path.write_text(json.dumps(content | {"classifies": True}))
    run = read_run(copy)
    gram = run.grams["alone"]
    assert _class_order(run, gram) == ["class 0", "class 1", "class 2"]
    unknown = replace(gram, labels=np.full_like(gram.labels, -100))
    assert _class_order(run, unknown) == []
