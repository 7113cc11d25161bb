"""``congener cache`` says what is kept, builds it, and finds what is damaged."""

from pathlib import Path

import pytest
from tests.cli.refusal import refused
from tests.trajectory.whole_runs import save_teacher

from congener import caching

RECIPE = """
task: {name: image_classification, data: {name: mnist1d, pool: 300}}
teacher: {name: cnn1d, channels: 8, checkpoint: TEACHER}
student: cnn1d
arms:
  kd: {terms: [kd]}
  adain: {terms: [{loss: adain, student: layer3, teacher: layer3}]}
alone: false
train: {epochs: 8, batch_size: 100, threads: 1, device: cpu}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    text = RECIPE.replace("TEACHER", str(save_teacher(tmp_path)))
    path.write_text(text.replace("terms: [kd]", "terms: [{loss: kd}]"))
    return path


def test_from_the_plan_to_the_run(
    congener, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "WORTH_TELLING", 0.0)
    said = congener("cache", "info", str(recipe))
    assert (said.code, said.err) == (0, "")
    assert "kd: learns from the store (logits)" in said.out
    assert "adain: the teacher runs on each batch, since the teacher goes on from a map" in said.out

    out = str(tmp_path / "run")
    said = congener("cache", "build", str(recipe), "--out", out)
    assert (said.code, said.err) == (0, "")
    assert "Asking the teacher about 300 samples in 1 view: " in said.out
    assert "300 samples, 1 view" in said.out
    assert f"Go on with: congener run {recipe} --out {out} --resume" in said.out

    assert congener("cache", "verify", out).out.endswith("every byte as it was written\n")
    said = congener("run", str(recipe), "--out", out, "--resume")
    assert said.code == 0
    said_on_the_way = said.err.replace("\n", " ")
    assert "In this session the teacher ran for 0.0 s instead of about" in said_on_the_way


def test_damage_is_found_and_mended(congener, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    congener("cache", "build", str(recipe), "--out", str(out))
    (shard,) = out.rglob("view-0/*.safetensors")
    good = shard.read_bytes()
    bad = bytearray(good)
    bad[-100] ^= 1
    shard.write_bytes(bytes(bad))
    said = congener("cache", "verify", str(out))
    assert said.code == 1
    assert shard.name in said.out
    refused(congener("run", str(recipe), "--out", str(out), "--resume"), shard.name)
    shard.unlink()
    assert congener("cache", "build", str(recipe), "--out", str(out)).code == 0
    assert shard.read_bytes() == good
    assert congener("cache", "verify", str(out)).code == 0


def test_a_demand_that_cannot_be_met_is_one_sentence(congener, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + "cache: {dtype: fp16}\n")
    sentence = "line 10: `cache` keeps what the teacher says, but the arm 'adain' needs it live"
    refused(congener("cache", "info", str(recipe)), sentence)
    refused(congener("run", str(recipe), "--out", "nowhere"), sentence)
    assert not Path("nowhere").exists()


def test_a_folder_without_a_store(congener, tmp_path: Path) -> None:
    refused(congener("cache", "verify", str(tmp_path)), "There is no teacher store in")


def test_the_way_on_repeats_what_was_asked(congener, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = congener("cache", "build", str(recipe), "train.epochs=9", "--out", str(out))
    way = said.out.splitlines()[-1].removeprefix("Go on with: congener ")
    assert congener(*way.split()).code == 0
    logged = (out / "events.jsonl").read_text()
    assert congener("cache", "build", *way.split()[1:-1]).code == 0
    assert (out / "events.jsonl").read_text() == logged  # a finished run stays finished


def test_where_nothing_is_kept(congener, recipe: Path, tmp_path: Path) -> None:
    said = congener("cache", "build", str(recipe), "train.epochs=1", "--out", str(tmp_path / "run"))
    assert said.code == 0
    assert "which does not pay" in said.out
    assert not (tmp_path / "run" / "cache").exists()


def test_a_manifest_of_something_else(congener, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    refused(congener("cache", "info", str(tmp_path)), "is of no teacher store, or damaged")
