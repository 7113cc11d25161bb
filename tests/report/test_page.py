"""What a reader finds on the page, and what the page must never hold."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from congener.report import write_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Collects tags, ids, tables and text; complains about unclosed tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, name: str) -> list[str]:
        return [
            value or "" for _, attrs in self.tags for key, value in attrs.items() if key == name
        ]


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    return Reader(page)


def written(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text("utf-8"))


def change(folder: Path, **fields: object) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_headline_and_arms_in_the_order_of_the_run(reader: Reader) -> None:
    assert (
        "SP lifts the mlp student from 61.0 to 70.5 % accuracy (+9.5 points, 3 of 3 seeds); "
        "the teacher has 92.4 %." in reader.text
    )
    arms = [row[0].split()[0] for row in reader.tables[0][1:]]
    assert arms == ["teacher", "alone", "kd", "sp", "kd+sp"]


def test_all_figures_of_the_last_epoch_are_told_where_there_are_several(copy: Path) -> None:
    arms = json.loads((copy / "metrics.json").read_text())["arms"]
    for arm in arms.values():
        arm["metrics"] = {"accuracy": arm["accuracy"]}
    change(copy, arms=arms)
    assert "All figures" not in written(copy).text
    arms["kd"]["metrics"] |= {"map_small": [0.25, 0.5, 0.75], "loss": [1.0, 2.0, 3.0]}
    change(copy, arms=arms)
    page = written(copy)
    assert "All figures of the last epoch" in page.text
    (table,) = [each for each in page.tables if each[0][1:2] == ["accuracy %"]]
    assert table[0] == ["arm", "accuracy %", "mAP small %", "loss"]
    rows = {row[0]: row[1:] for row in table[1:]}
    assert list(rows) == list(arms)
    accuracy = 100 * np.mean(arms["kd"]["accuracy"])
    assert rows["kd"] == [f"{accuracy:.1f}", "50.0", "2.000"]
    assert rows["sp"][1:] == ["–", "–"]


def test_numbers_of_the_result_are_those_of_the_run(reader: Reader, folder: Path) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    head, *rows = [[" ".join(cell.split()) for cell in row] for row in reader.tables[0]]
    assert "last epoch" in head[1]
    assert head[-1] == "best epochnot the result"
    for row in rows:
        name = row[0].split()[0]
        arm = metrics["arms"][name]
        values = 100 * np.array(arm["accuracy"])
        assert row[1].startswith(f"{values.mean():.1f}")
        assert row[-1] == f"{100 * np.mean(arm['best']):.1f}"
        if name == "teacher":
            assert row[1].endswith("n = 1")
            assert row[2:6] == ["–"] * 4
            continue
        assert row[1].endswith(f"± {values.std(ddof=1):.1f}")
        with np.load(folder / "analysis" / f"{name}.npz") as stored:
            same = (stored["predictions"] == stored["teacher_predictions"]).mean()
        assert row[5] == f"{100 * same:.1f}"
        if name != "alone":
            comparison = metrics["comparisons"][name]
            assert row[2] == f"+{100 * comparison['mean_difference']:.1f}"
            assert row[3:5] == ["3 of 3", "0.002"]


def test_best_epoch_is_the_minor_column(page: str) -> None:
    assert '<th scope="col" class="minor">best epoch' in page
    assert re.search(r'<td class="main">70\.5 ', page)
    assert '<td class="minor">71.3</td>' in page


def test_costs(reader: Reader) -> None:
    costs = next(table for table in reader.tables if "MACs" in table[0])
    student = next(row for row in costs if row[0] == "sp")
    assert student[1:] == ["mlp", "61.8k84.8×", "61.4k993×", "247 kB84.8×", "0.42 ms11.0×", "38 s"]


def test_gram_distance_is_that_of_the_stored_matrices(reader: Reader, folder: Path) -> None:
    def gram(name: str) -> np.ndarray:
        with np.load(folder / "analysis" / f"{name}.npz") as stored:
            return stored["gram"].astype(np.float64)

    m = gram("teacher").shape[0]
    distances = {
        name: ((gram("teacher") - gram(name)) ** 2).sum() / m**2 for name in ("alone", "sp")
    }
    exponent = int(np.floor(np.log10(max(distances.values()))))
    for distance in distances.values():
        assert f"distance {distance / 10.0**exponent:.2f} × 10" in reader.text
    assert f"{distances['sp'] / distances['alone']:.2f} of alone's" in reader.text


def test_change_per_class_has_a_table(reader: Reader, folder: Path) -> None:
    table = next(table for table in reader.tables if table[0][0] == "class")
    assert [row[0] for row in table[1:]] == [f"digit {label}" for label in range(10)]

    def accuracy(name: str, label: int) -> float:
        with np.load(folder / "analysis" / f"{name}.npz") as stored:
            of_class = stored["labels"] == label
            return float((stored["predictions"][:, of_class] == label).mean())

    for label in range(10):
        change = 100 * (accuracy("sp", label) - accuracy("alone", label))
        assert table[1 + label][1] == f"{100 * accuracy('alone', label):.1f}"
        assert float(table[1 + label][3].replace("−", "-")) == pytest.approx(change, abs=0.051)


def test_terms_equations_papers_and_sources(reader: Reader, page: str) -> None:
    for words in (
        "scope='global'",
        "3000",
        "net.2",
        "net.6",
        "SPLoss",
        "congener run sp-mnist1d",
        "name: sp-mnist1d",
    ):
        assert words in reader.text
    assert 'href="https://arxiv.org/abs/1907.09682"' in page
    assert "L = ‖Gᵗ − Gˢ‖²<sub>F</sub> / B²" in page
    assert "2.14.1" in reader.text


def test_every_picture_is_described_and_ids_are_unique(reader: Reader, page: str) -> None:
    pictures = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(pictures) > 15
    for attrs in pictures:
        assert attrs.get("aria-hidden") == "true" or attrs["aria-label"]
    ids = reader.values("id")
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]*)\)", page)) | {
        value[1:] for value in reader.values("href") if value.startswith("#")
    }
    assert used
    assert used <= set(ids)


def test_no_network(reader: Reader, page: str) -> None:
    for tag, attrs in reader.tags:
        assert tag not in ("script", "link", "img", "iframe", "object")
        for key in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            value = attrs.get(key) or "#"
            assert tag == "a" or value.startswith(("#", "data:image/png;base64,"))
    assert "@import" not in page
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", page))


def test_colours_follow_the_page(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert not re.search(r"#0(?:10203|a0b0\d)", page)
    assert "var(--series-1)" in page


def test_small_and_the_same_twice(copy: Path, page: str) -> None:
    again = write_report(copy).read_bytes()  # over the copied page, in another folder
    assert again == page.encode()
    assert len(again) < 3_000_000
    assert not list(copy.glob(".report-*"))


def test_the_readers_own_matplotlib_settings_do_not_matter(copy: Path, page: str) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(mpl.rcParams)
        assert write_report(copy).read_text("utf-8") == page
        assert dict(mpl.rcParams) == before


def test_published_column_only_when_there_is_one(copy: Path, reader: Reader) -> None:
    assert "published" not in reader.text.lower()
    change(copy, published={"source": "Table 2 of the paper", "arms": {"sp": 0.8812}})
    page = written(copy)
    rows = {row[0].split()[0]: row for row in page.tables[0]}
    assert rows["sp"][6] == "88.1"
    assert rows["kd"][6] == "–"
    assert "Published figures: Table 2 of the paper." in page.text
    assert "may differ from this run's" in page.text


def test_missing_analysis_leaves_its_sections_out(copy: Path) -> None:
    shutil.rmtree(copy / "analysis")
    page = written(copy)
    assert "Left out: analysis/teacher.npz is not there." in page.text
    assert "analysis/sp.npz is not there" in page.text
    assert page.tables[0][4][5] == "–"
    assert "SP lifts" in page.text


def test_one_damaged_analysis_leaves_one_arm_out(copy: Path) -> None:
    (copy / "analysis" / "kd.npz").write_bytes(b"PK\x03\x04 torn")
    with np.load(copy / "analysis" / "alone.npz") as stored:
        kept = {key: stored[key] for key in stored.files if not key.startswith("gram")}
    np.savez(copy / "analysis" / "alone.npz", **kept)
    page = written(copy)
    assert "Left out: analysis/kd.npz cannot be read." in page.text
    assert "Without a Gram matrix: alone, kd." in page.text
    assert "of alone's" not in page.text
    head = next(table for table in page.tables if table[0][0] == "class")[0]
    assert [cell.split()[0][:5] for cell in head[2:]] == ["sppoi", "kd+sp"]


def test_torn_last_event_is_tolerated(copy: Path, reader: Reader) -> None:
    path = copy / "events.jsonl"
    path.write_text(path.read_text() + '{"event": "step", "fit": "sp/0", "st')
    page = written(copy)
    assert "1 torn line of events.jsonl skipped." in page.text
    assert page.values("aria-label") == reader.values("aria-label")


def test_without_events_recipe_and_environment(copy: Path) -> None:
    for name in ("events.jsonl", "recipe.yaml", "environment.json"):
        (copy / name).unlink()
    page = written(copy)
    assert "Left out: events.jsonl holds fewer than two evaluations of a student." in page.text
    assert "no recipe.yaml" in page.text


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds(tmp_path: Path, make, seeds: int) -> None:
    page = written(make.run(tmp_path / "run", make.metrics(seeds=seeds)))
    assert ("±" in page.tables[0][2][1]) == (seeds > 1)
    assert any("paired t-test" in cell for cell in page.tables[0][0]) == (seeds > 1)
    assert ("one seed" in page.text) == (seeds == 1)


def test_hostile_names_are_text(tmp_path: Path, make) -> None:
    content = make.metrics()
    hostile = "<script>alert(1)</script>"
    content["arms"] = {hostile if key == "kd" else key: arm for key, arm in content["arms"].items()}
    content["arms"]["$x_{$"] = content["arms"].pop("kd+sp")
    content["title"] = content["command"] = content["name"] = hostile
    content["class_names"][0] = "</svg><script>x</script>"
    content["class_names"][1] = "鳥 $a$"
    content["arms"]["sp"]["terms"] = [
        make.terms["sp"] | {"paper": "javascript:alert(1)", "equation": hostile}
    ]
    folder = tmp_path / "run"
    (folder / "analysis").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "recipe.yaml").write_text(hostile)
    events = [
        {"event": "evaluation", "fit": f"{name}/0", "step": step, "metrics": {"accuracy": 0.5}}
        for name in content["arms"]
        for step in (1, 2)
    ]
    (folder / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    labels = np.arange(20) % 10
    for name in ("teacher", "alone", "sp"):
        np.savez(
            folder / "analysis" / f"{name}.npz",
            labels=labels,
            predictions=labels[None],
            teacher_predictions=labels,
        )
    source = write_report(folder).read_text("utf-8")
    page = Reader(source)
    assert "<script" not in source
    assert "javascript:" not in " ".join(page.values("href"))
    assert page.text.count(hostile) >= 6
    assert "$x_{$" in page.text


def test_an_arm_cannot_name_a_file_elsewhere(tmp_path: Path, make) -> None:
    content = make.metrics()
    folder = make.run(tmp_path / "run", content)
    shutil.move(folder / "analysis" / "kd.npz", folder / "kd.npz")
    content["arms"]["../kd"] = content["arms"].pop("kd")
    (folder / "metrics.json").write_text(json.dumps(content))
    assert "analysis/../kd.npz is not there" in written(folder).text


def test_many_classes_and_samples_stay_small(tmp_path: Path, make) -> None:
    content = make.metrics()
    content["class_names"] = [f"class number {label}" for label in range(10)]
    folder = make.run(tmp_path / "run", content, samples=640)
    labels = np.arange(1000) % 100
    for name in content["arms"]:
        np.savez(
            folder / "analysis" / f"{name}.npz",
            labels=labels,
            predictions=np.stack([labels, np.roll(labels, 1), labels]),
            teacher_predictions=labels,
            gram=np.random.default_rng(0).uniform(0, 0.2, (640, 640)).astype(np.float32),
            gram_labels=np.arange(640) * 100 // 640,
        )
    path = write_report(folder)
    page = Reader(path.read_text("utf-8"))
    assert path.stat().st_size < 3_000_000
    assert "The 76 classes in the middle are only in the table." in page.text
    assert "class 99" in page.text


def test_report_does_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from congener.report import write_report\n"
        f"write_report(Path({str(folder)!r}))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    failing = "import matplotlib.pyplot\n" + code.replace(
        f"write_report(Path({str(folder)!r}))\n", ""
    )
    assert subprocess.run([sys.executable, "-c", failing], capture_output=True).returncode == 1


def test_one_evaluation_at_step_nought_and_a_nan(copy: Path) -> None:
    events = [
        {"event": "evaluation", "fit": "sp/0", "step": 0, "metrics": {"accuracy": 0.1}},
        {"event": "evaluation", "fit": "kd/0", "step": 0, "metrics": {"accuracy": float("nan")}},
        {"event": "step", "fit": "sp/0", "step": 0, "weighted": {"task": 0.0, "sp": 0.0}},
        {"event": "step", "fit": "kd/0", "step": 0, "weighted": {"task": -1.0}},
    ]
    (copy / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    page = written(copy)  # one point is no curve
    assert not any("at the end: " in label for label in page.values("aria-label"))
    assert "fewer than two evaluations of a student" in page.text


def test_a_resumed_fit_counts_its_later_lines(copy: Path) -> None:
    again = {"event": "evaluation", "fit": "sp/0", "step": 3000, "metrics": {"accuracy": 0.999}}
    path = copy / "events.jsonl"
    ends = {
        event["fit"]: event["metrics"]["accuracy"]
        for event in map(json.loads, path.read_text().splitlines())
        if event["event"] == "evaluation" and event["step"] == 3000
    }
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    label = next(text for text in written(copy).values("aria-label") if "Line chart of acc" in text)
    last = (0.999 + ends["sp/1"] + ends["sp/2"]) / 3
    assert f"sp {100 * last:.1f} %" in label


def test_the_loss_balance(copy: Path) -> None:
    assert "Loss balance" not in written(copy).text
    norms = {0: (2.0, 6.0), 100: (1.0, 1.0), 200: (1.0, 1.0), 300: (1.0, 1.0), 400: (4.0, 1.0)}
    events = [
        {"event": "balance", "fit": f"sp/{seed}", "step": step, "terms": {
            "task": {"weighted": 2.0, "gradient_norm": task, "cosine": 1.0},
            "sp": {"weighted": 0.5 + seed, "gradient_norm": sp, "cosine": -0.25 if step else None},
        }}
        for step, (task, sp) in norms.items()
        for seed in (0, 1)
    ]  # fmt: skip
    path = copy / "events.jsonl"
    path.write_text(path.read_text() + "\n".join(map(json.dumps, events)) + "\n")
    page = written(copy)
    table = next(t for t in page.tables if t[0][-1] == "cosine with task")
    assert table[1:] == [
        ["sp", "task", "2 → 2", "2 → 4", "25% → 80%", "+1.00 → +1.00"],
        ["sp", "sp", "1 → 1", "6 → 1", "75% → 20%", "– → −0.25"],
    ]


def test_schedules_and_further_teachers_stand_beside_the_weight(copy: Path) -> None:
    content = json.loads((copy / "metrics.json").read_text())
    term = content["arms"]["kd"]["terms"][0]
    term |= {"schedules": {"weight": "0 → 1, linear over 20 epochs"}, "of": "second"}
    (copy / "metrics.json").write_text(json.dumps(content))
    text = written(copy).text
    assert "weight × (0 → 1, linear over 20 epochs)" in text
    assert "of second" in text
