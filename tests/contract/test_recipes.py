"""Every shipped recipe is short, says what it is, fits its networks and data, and runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.tasks.audio_tagging import test_data_sonyc as sonyc
from tests.tasks.image_classification.conftest import idx
from tests.tasks.retrieval.emoji_files import save_emoji
from tests.tasks.text_classification.tiny import save_encoder, save_tokenizer, sentences

import congener
from congener.recipe import Recipe, load_recipe
from congener.runlog import read_json
from congener.runner import execute
from congener.tasks.audio_tagging.data.sonyc import TAGS as SONYC_TAGS

FOLDER = Path(congener.__file__).parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))

# CRD's benchmark has the same arms for thirteen pairs of networks: one alike and one unlike, whose
# networks no other recipe has, in the default tier.
PAIRS = ("resnet56-resnet20", "resnet50-vgg8")
RUNS = [
    pytest.param(path, marks=pytest.mark.slow)
    if path.stem.startswith("crd_benchmark-") and not path.stem.endswith(PAIRS)
    else path
    for path in RECIPES
]

# Enough training samples for what the recipes divide them into: the published number where one
# does, else a few, because CIFAR takes long to read.
TRAIN = {"fashion_mnist": 60_000, "mnist": 60_000, "cifar10": 100, "cifar100": 100, "sonyc_ust": 8}
TEST = 4
# What of a data set is enough for two steps, and whether it has a folder.
SMALL = {
    "instruments": {"train": 12, "test": 8, "seconds": 0.5},
    "emoji": {"train": 16, "labelled": 8},
    "emoji_names": {"queries": 6, "labelled": 12},
    "newsgroups": {"teacher": 12, "pool": 12, "labelled": 6, "test": 8},
    "digit_scenes": {"scenes": 40, "test": 8, "teacher": 16, "pool": 24, "labelled": 12},
    "shuffle": {"samples": 60, "test": 8, "teacher": 24, "labelled": 8},
}
FOLDERS = {*TRAIN, "emoji", "emoji_names", "sonyc_ust", "newsgroups"}

# What a task learns from where its recipe names nothing, and fewer samples of what is made anew.
DEFAULTS = {
    "image_classification": "mnist1d", "audio_tagging": "instruments", "retrieval": "emoji",
    "cross_modal_retrieval": "emoji_names", "text_classification": "newsgroups",
    "language_modelling": "shuffle", "detection": "digit_scenes",
}  # fmt: skip
FEW = {"instruments": {"train": 24, "test": 12, "seconds": 0.5}}


def write_idx(folder: Path, count: int) -> None:
    for part, samples in (("train", count), ("t10k", TEST)):
        labels = bytes(i % 10 for i in range(samples))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels, samples))
        with (folder / f"{part}-images-idx3-ubyte").open("wb") as file:
            file.write(idx(b"", samples, 28, 28))
            file.truncate(16 + samples * 784)  # black images, which take no room on the disk


def write_cifar(folder: Path, files: dict[str, int], labels: int, classes: int) -> None:
    for name, samples in files.items():
        rows = np.memmap(folder / name, np.uint8, "w+", shape=(samples, labels + 3072))
        rows[:, labels:] = np.random.default_rng(samples).integers(0, 256, (samples, 3072))
        rows[:, labels - 1] = np.arange(samples) % classes
        rows.flush()


def write_sonyc(folder: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    tags = [f"{number}_{tag}_presence" for number, tag in enumerate(SONYC_TAGS, 1)]
    lines = [",".join(["split", "audio_filename", "annotator_id", *tags])]
    for split, clips in (("train", TRAIN["sonyc_ust"]), ("validate", TEST)):
        (folder / split).mkdir()
        for clip in range(clips):
            noise = np.random.default_rng((clips, clip)).normal(0, 0.1, 8000)
            soundfile.write(folder / split / f"{split}{clip}.wav", noise, 16000)
            heard = [str(int((clip + tag) % 3 == 0)) for tag in range(len(tags))]
            lines.append(",".join([split, f"{split}{clip}.wav", "0", *heard]))
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")


def write_newsgroups(folder: Path) -> None:
    """The tables of Orange, and an encoder with its tokenizer for what they hold."""
    for part in ("train", "test"):
        lines = [f"{kind}\t{text}" for text, kind in zip(*sentences(40), strict=True)]
        head = ["label\ttext", "discrete\tstring", "class\tmeta"]
        table = folder / f"20newsgroups-{part}.tab"
        table.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    save_encoder(save_tokenizer(folder / "encoder"), max_position_embeddings=64)


def write(data: str, folder: Path) -> None:
    """The files of a data set in their original format."""
    if data == "sonyc_ust":
        write_sonyc(folder)
    elif data == "cifar10":
        each = TRAIN[data] // 5
        batches = {f"data_batch_{number}.bin": each for number in range(1, 6)}
        write_cifar(folder, batches | {"test_batch.bin": TEST}, 1, 10)
    elif data == "cifar100":
        write_cifar(folder, {"train.bin": TRAIN[data], "test.bin": TEST}, 2, 100)
    elif data == "sonyc_ust":
        sonyc.write_table(folder)
        sonyc.write_sounds(folder, "{split}")
    elif data in ("emoji", "emoji_names"):
        save_emoji(folder, 32)
    elif data == "newsgroups":
        write_newsgroups(folder)
    else:
        write_idx(folder, TRAIN[data])


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a data set, written when it is first asked for."""
    made: dict[str, Path] = {}

    def root(data: str) -> Path:
        if data not in made:
            made[data] = tmp_path_factory.mktemp(data)
            write(data, made[data])
        return made[data]

    return root


def data_of(recipe: Recipe) -> str:
    data = recipe.task.arguments.get("data", DEFAULTS[recipe.task.name])
    return data if isinstance(data, str) else data["name"]


def shortened(path: Path, files: Callable[[str], Path]) -> Recipe:
    """The recipe with two steps of four samples, one seed, and files where it needs some."""
    recipe = load_recipe(path)
    overrides = ["seeds=[0]"]
    parts = ["train"]
    if recipe.teacher is not None and recipe.teacher.train is not None:
        parts.append("teacher.train")
    for part in parts:
        settings = {"steps": 2, "epochs": "null", "batch_size": 4, "evaluate_every": 0,
                    "checkpoint_every": 0, "accumulate": 1,
                    "device": "cpu", "threads": 1}  # fmt: skip
        overrides += [f"{part}.{key}={value}" for key, value in settings.items()]
    if recipe.train.labelled_per_batch:
        overrides.append("train.labelled_per_batch=2")
    if recipe.train.sampler == "class_uniform":
        overrides.append("train.per_class=2")
    if recipe.train.sampler == "superclass_uniform":  # black images are all of one cluster
        overrides.append("train.sampler=shuffle")
    data = data_of(recipe)
    given = recipe.task.arguments.get("data", {})
    if isinstance(given, dict) and data in SMALL:
        overrides += [f"task.data.{key}={value}" for key, value in SMALL[data].items()]
    elif data in SMALL:
        overrides.append("task.data=" + json.dumps({"name": data} | SMALL[data]))
    for name, arm in recipe.contenders.items():
        if arm.system is not None and arm.system.arguments.get("head"):  # SSKD's stage
            overrides.append(f"arms.{name}.system.head={{steps: 2, schedule: constant}}")
        for position, term in enumerate(arm.terms):
            if term.loss.name == "crd" and data in TRAIN and TRAIN[data] < 1000:
                overrides.append(f"arms.{name}.terms.{position}.loss.samples={TRAIN[data]}")
                overrides.append(f"arms.{name}.terms.{position}.loss.negatives=16")
    if data in FEW:
        overrides.append(f"task.data={json.dumps({'name': data} | FEW[data])}")
    if data in FOLDERS:
        overrides.append(f"task.data.root={json.dumps(str(files(data)))}")
    if recipe.task.name == "text_classification":
        encoder = json.dumps(str(files(data) / "encoder"))
        overrides += [
            f"{key}={encoder}" for key in ("task.tokenizer", "teacher.model", "student.model")
        ]
    return load_recipe(path, overrides)


def test_there_are_recipes() -> None:
    assert "demo" in {path.stem for path in RECIPES}
    assert len({path.stem for path in RECIPES}) == len(RECIPES)  # `congener run NAME` is unique


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_says_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert len(lines[0]) > 20
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 15
    recipe = load_recipe(path)
    assert path.parent.parent == FOLDER
    assert path.parent.name == recipe.task.name
    if recipe.published:
        assert set(recipe.published.arms) <= {"teacher", *recipe.all_arms}
        assert all(0 < value < 1 for value in recipe.published.arms.values())


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_recipe_validates_and_runs_two_steps(path, tmp_path, files, monkeypatch) -> None:
    recipe = shortened(path, files)
    facts = {"parameters": 1, "macs": 1, "bytes": 1, "latency_ms": 1.0}
    # Timing a network takes longer than these two steps, and so does waiting for the disk.
    monkeypatch.setattr("congener.runner.cost", lambda *_: facts)
    monkeypatch.setattr("os.fsync", lambda _: None)
    run = execute(recipe, tmp_path / "run")  # it validates every arm first
    assert list(run.metrics["arms"]) == [*(["teacher"] if recipe.teacher else []), *recipe.all_arms]
    assert run.metrics["steps"] == 2
    for arm in run.metrics["arms"].values():
        assert 0 <= arm[run.metrics["metric"]][0] <= 1
    for arm in recipe.all_arms:
        steps = read_json(run.folder / "arms" / arm / "seed-0" / "result.json")["steps"]
        assert steps == 2


def test_the_check_can_fail(tmp_path, files) -> None:
    text = (FOLDER / "image_classification" / "demo.yaml").read_text()
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("student: hidden", "student: hiden"))
    with pytest.raises(congener.CongenerError, match="no module 'hiden' to tap"):
        execute(shortened(broken, files), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
