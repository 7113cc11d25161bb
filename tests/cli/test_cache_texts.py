"""``congener cache`` of a language model: what is kept of each token, and at what cost."""

import json
from pathlib import Path

import pytest
from tests.cli.refusal import refused
from tests.trajectory.whole_texts import ARMS, recipe, save_language_teacher

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_teacher(tmp_path_factory.mktemp("teacher"))


def test_the_command_builds_tells_and_checks(congener, teacher, tmp_path) -> None:
    path, out = tmp_path / "texts.yaml", str(tmp_path / "run")
    arms = ARMS | {"written": {"system": {"name": "skd", "text": "student"}}}
    path.write_text(json.dumps(recipe(teacher, arms=arms)))
    said = congener("cache", "info", str(path))
    assert "kd: learns from the store (logits)" in said.out
    assert "supervised: learns from the store (logits)" in said.out
    assert "written: the teacher runs on each batch, since the texts" in said.out

    path.write_text(json.dumps(recipe(teacher, cache={"dtype": "fp16", "top_k": 3})))
    said = congener("cache", "build", str(path), "--out", out)
    assert (said.code, said.err) == (0, "")
    kept = "logits: float32 [14] of up to 4 tokens kept as fp16, top 3 at 1"
    assert kept in said.out
    assert "of the logits, " in said.out
    assert "% of the probability lies beyond the top 3, shared evenly" in said.out
    assert congener("cache", "verify", out).out.endswith("every byte as it was written\n")
    said = congener("cache", "info", out)
    assert kept in said.out
    assert "KL is a lower bound" in said.out
    assert "sketch of the input: 8 bytes for each sample" in said.out
    assert congener("run", str(path), "--out", out, "--resume").code == 0


@pytest.mark.parametrize(("term", "cache", "sentence"), [
    ({"name": "gkd", "beta": 0.5}, {}, "at temperature 1, which teach without bias where"),
    ({"name": "gkd", "beta": 1.0}, {}, "`sampled` keeps draws"),
    ({"name": "kd", "temperature": 2.0}, {}, "this arm's is not"),
    ({"name": "kd", "temperature": 2.0}, {"temperature": 2.0}, ""),
])  # fmt: skip
def test_draws_are_for_losses_that_are_right_on_average(
    congener, teacher, tmp_path, term, cache, sentence
) -> None:
    arms = {"distilled": {"terms": [{"loss": term}]}}
    path = tmp_path / "texts.yaml"
    path.write_text(json.dumps(recipe(teacher, arms=arms, cache={"sampled": 8} | cache)))
    said = congener("cache", "info", str(path))
    if sentence:
        refused(said, sentence)
    else:
        assert "distilled: learns from the store (logits)" in said.out
