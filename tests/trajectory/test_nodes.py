"""Processes on machines that share no folder, and processes that were started on different things.

The run folder is the first process' own: the others neither need it nor make it.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.trajectory.processes import in_two_processes
from tests.trajectory.whole_runs import timeless, weights

import congener.api
import congener.tasks.image_classification
from congener.errors import RunError

RECIPE: dict[str, Any] = {
    "name": "nodes",
    "task": {"name": "image_classification", "data": "mnist1d"},
    "teacher": {
        "name": "cnn1d",
        "channels": 8,
        "train": {"steps": 4, "batch_size": 64, "threads": 1, "device": "cpu"},
    },
    "student": {"name": "mlp", "hidden": [16]},
    "alone": False,
    "arms": {
        "kd": {"terms": [{"loss": "kd"}]},
        "nd": {
            "starts_from": "kd",
            "terms": [{"loss": "nd", "student": "hidden", "teacher": "flatten"}],
        },
        "again": {"learns_from": "kd", "terms": [{"loss": "kd"}]},
    },
    "train": {"steps": 6, "batch_size": 64, "checkpoint_every": 2, "threads": 1, "device": "cpu"},
}


@pytest.fixture(autouse=True, scope="module")
def _drawn_once() -> Any:
    """The data, before processes are forked that would each draw them."""
    from mnist1d import data

    drawn = data.make_dataset(data.get_dataset_args())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "make_dataset", lambda _: drawn)
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes that see one folder."""
    folder = tmp_path_factory.mktemp("shared")
    in_two_processes(folder, _run, [folder / "run"] * 2)
    return folder / "run"


def test_the_others_need_not_see_the_run_folder(shared: Path, tmp_path: Path) -> None:
    """Nor to resume: the first reads for all what arms, stages and checkpoints left."""
    outs = [tmp_path / "first" / "run", tmp_path / "second" / "run"]
    in_two_processes(tmp_path, _run, outs)
    assert not outs[1].exists()
    assert len(weights(outs[0])) == 4
    assert weights(outs[0]) == weights(shared)
    assert timeless(outs[0]) == timeless(shared)

    for arm in ("nd", "again"):  # the one goes on from its checkpoint, the other starts anew
        (outs[0] / "arms" / arm / "seed-0" / "result.json").unlink()
    (outs[0] / "arms" / "again" / "seed-0" / "checkpoint.pt").unlink()
    in_two_processes(tmp_path, _run, outs, True)
    assert not outs[1].exists()
    assert weights(outs[0]) == weights(shared)

    shutil.rmtree(outs[0])
    for said in in_two_processes(tmp_path, _run, outs, True):
        assert said == f"There is no run in {outs[0]} to resume; leave --resume out to start one."


def _run(rank: int, outs: list[Path], resume: bool = False, **changes: Any) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(congener.api, "write_report", lambda folder: folder / "report.html")
        try:
            congener.run(RECIPE | changes, out=outs[rank], resume=resume)
        except RunError as error:
            return str(error)
    return None


def test_another_recipe_is_told_by_all(tmp_path: Path) -> None:
    for said in in_two_processes(tmp_path, _run_another, tmp_path / "run"):
        assert said == (
            "The processes differ in the recipe: 'hidden:' on process 0, 'hidden: []' on process "
            "1; start all of them on the same recipe, data and packages."
        )
    assert not (tmp_path / "run").exists()


def _run_another(rank: int, out: Path) -> str | None:
    student = {"name": "mlp", "hidden": [] if rank else [16]}
    return _run(rank, [out] * 2, student=student)


def test_other_packages_are_told_by_all(tmp_path: Path) -> None:
    for said in in_two_processes(tmp_path, _run_with_other_packages, tmp_path / "run"):
        assert said is not None
        assert 'differ in versions: \'"torch": "' in said
        assert '\'"torch": "0.4.1",\' on process 1' in said


def _run_with_other_packages(rank: int, out: Path) -> str | None:
    from congener import runner

    with pytest.MonkeyPatch.context() as patch:
        if rank:
            mine = runner.versions()
            patch.setattr(runner, "versions", lambda: mine | {"torch": "0.4.1"})
        return _run(rank, [out] * 2)
