"""Superclasses, the clusters of a teacher's features, and whole runs whose batches need groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import TinyData, TinyPictureTask, TinyTask, conv_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from torch.utils.data import Dataset

import congener.runner
from congener.engine import FitConfig, fit, superclasses
from congener.errors import DataError, RecipeError, TapError
from congener.recipe import parse_recipe
from congener.runner import execute
from congener.tasks.image_classification import ImageClassification
from congener.tasks.image_classification.data.splits import Arrays, divide


class Counted(nn.Module):
    """Says where a sample lies, and how often it was asked."""

    def __init__(self, **answers: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(answers.get("scale", 1.0)))
        self.feature = nn.Identity()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.feature(x * self.scale)[:, :3]


CLUSTERS = FitConfig(
    steps=1, batch_size=12, per_class=4, superclasses=3, sampler="superclass_uniform", threads=1
)


def find(teacher: nn.Module, task: TinyTask | None = None, **options: Any) -> Tensor:
    task = task or well_apart()
    config = options.pop("config", CLUSTERS)
    return superclasses(teacher, task, config, train=task.splits["train"], **options)


def well_apart() -> TinyTask:
    task = TinyTask(30)
    data = task.splits["train"]
    assert isinstance(data, TinyData)
    data.images = data.images + 50.0 * nn.functional.one_hot(data.labels, 6)
    return task


def same_partition(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a[:, None] == a, b[:, None] == b)


def test_clusters_of_samples_that_lie_apart_are_found_in_order() -> None:
    labels = well_apart().splits["train"].labels
    for tap in (None, "feature"):
        found = find(Counted(), tap=tap)
        assert found.dtype == torch.int64
        assert same_partition(found, labels)
    assert find(Counted(), config=CLUSTERS.model_copy(update={"superclasses": 5})).max() == 4
    with pytest.raises(TapError, match="nowhere"):
        find(Counted(), tap="nowhere")


def test_every_seed_finds_them_and_numbers_them_its_own_way() -> None:
    """Starts that lie apart do; samples picked at random would often share a cluster."""
    labels = well_apart().splits["train"].labels
    found = [find(Counted(), tap="feature", seed=seed) for seed in range(6)]
    assert all(same_partition(each, labels) for each in found)
    assert len({tuple(each.tolist()) for each in found}) > 1


def test_the_tap_is_what_is_clustered() -> None:
    """The logits cannot tell the samples apart; the fifth feature can."""
    task, side = TinyTask(30), torch.arange(30) % 2
    task.splits["train"].images = torch.zeros(30, 6)
    task.splits["train"].images[:, 4] = side.float()
    config = CLUSTERS.model_copy(update={"superclasses": 2, "batch_size": 8})
    assert same_partition(find(Counted(), task, config=config, tap="feature"), side)
    assert not same_partition(find(Counted(), task, config=config), side)


def test_maps_are_averaged_over_space() -> None:
    task, net = TinyPictureTask(30), conv_net().eval()
    images = task.splits["train"].images
    with torch.no_grad():
        pooled = net.layer1(images).mean((2, 3))
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    plain = TinyTask(30)
    plain.splits["train"].images = nn.functional.pad(pooled, (0, 56))
    teacher[1].weight.data = torch.eye(3, 64)
    wanted = find(nn.Sequential(nn.Identity(), teacher), plain, tap="0")
    assert same_partition(find(net, task, tap="layer1"), wanted)
    assert len(torch.unique(wanted)) == 3


def test_the_result_is_kept_for_the_teacher_the_data_and_the_settings(tmp_path: Path) -> None:
    teacher = Counted()
    first = find(teacher, folder=tmp_path)
    asked = teacher.calls
    assert asked == 1  # 30 samples, fewer than one batch of a survey
    torch.manual_seed(7)
    assert torch.equal(find(teacher, folder=tmp_path), first)
    assert teacher.calls == asked
    for changes in ({"tap": "feature"}, {"seed": 1}, {"task": TinyTask(30)}):
        find(teacher, **({"folder": tmp_path} | changes))
        assert teacher.calls > asked
        asked = teacher.calls
    more = CLUSTERS.model_copy(update={"superclasses": 4})
    find(teacher, folder=tmp_path, config=more)
    assert teacher.calls > asked
    other = Counted(scale=2.0)
    find(other, folder=tmp_path)
    assert other.calls
    assert len(list(tmp_path.glob("superclasses-*.safetensors"))) == 6


def test_images_are_clustered_without_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(
        TinyTask, "prepare", lambda self, batch, train, **_: modes.append(train) or batch
    )
    teacher = teacher_net().train()
    assert torch.equal(find(teacher), find(teacher))  # it has dropout
    assert set(modes) == {False}


def test_too_few_distinct_samples_leave_clusters_empty() -> None:
    task = TinyTask(30)
    task.splits["train"].images = torch.ones(30, 6)
    assert len(torch.unique(find(Counted(), task))) == 1
    task.splits["train"].images[3, 0] = torch.nan
    with pytest.raises(DataError, match="The teacher's logits are not finite on some training"):
        find(Counted(), task)


def _clusters(rank: int) -> list[int]:
    return find(Counted(), tap="feature").tolist()


def test_two_processes_find_the_same_clusters(tmp_path: Path) -> None:
    assert in_two_processes(tmp_path, _clusters) == [_clusters(0)] * 2


def samples(**division: Any) -> ImageClassification:
    """Noise as long as MNIST-1D's signals, in 10 classes."""
    generator = torch.Generator().manual_seed(0)
    arrays = Arrays(torch.randn(300, 1, 40, generator=generator), torch.arange(300) % 10)
    names = [str(k) for k in range(10)]
    return ImageClassification(
        divide("noise", arrays, arrays, class_names=names, mean=[0.0], std=[1.0], **division)
    )


def recipe(sampler: str, *, data: Any = None, **changes: Any) -> Any:
    train = {"epochs": 1, "batch_size": 40, "threads": 1, "device": "cpu"}
    return parse_recipe(
        {
            "task": samples(pool=200, **(data or {})),
            "teacher": {
                "name": "cnn1d",
                "channels": 16,
                "train": train | {"steps": 2, "epochs": None},
            },
            "student": {"name": "mlp", "hidden": [8]},
            "arms": {
                "kd": {"terms": [{"loss": "kd"}]},
                "cckd": {"terms": [{"loss": "cckd", "student": "hidden", "teacher": "layer3"}]},
            },
            "train": train | {"sampler": sampler},
        }
        | changes
    )


def fits(described: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The groups of every fit, by its name; and the steps."""
    seen, asked = {}, []

    def listen(*args: Any, **options: Any) -> Any:
        seen[options["name"]] = (options["groups"], len(options["train"]))
        return fit(*args, **options)

    def survey(*args: Any, **options: Any) -> Tensor:
        asked.append(options["tap"])
        return superclasses(*args, **options)

    monkeypatch.setattr(congener.runner, "fit", listen)
    monkeypatch.setattr(congener.runner, "superclasses", survey)
    seen["steps"] = execute(described, folder).metrics["steps"]
    return seen | {"taps": asked}


def test_all_arms_draw_from_the_same_superclasses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"name": "mnist1d", "pool": 200}
    described = recipe("superclass_uniform", task={"name": "image_classification", "data": data})
    found = fits(described, tmp_path / "run", monkeypatch)
    assert found["taps"] == ["layer3"]
    assert found["steps"] == 5
    assert found["teacher"] == (None, 200)
    groups, count = found["alone/0"]
    assert count == len(groups) == 200
    assert 10 <= len(torch.unique(groups)) <= 20
    assert groups.max() == 19
    for arm in ("kd/0", "cckd/0"):
        assert torch.equal(found[arm][0], groups)
    assert len(list((tmp_path / "run" / "stages").glob("superclasses-*"))) == 1


def test_without_feature_terms_the_logits_are_clustered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"kd": {"terms": [{"loss": "kd"}]}}
    found = fits(recipe("superclass_uniform", arms=arms), tmp_path / "run", monkeypatch)
    assert found["taps"] == [None]


def test_a_tap_of_another_teacher_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student of an earlier arm has other layers than the teacher."""
    feature = {"loss": "cckd", "student": "hidden"}
    arms = {
        "kd": {"terms": [{"loss": "kd"}]},
        "again": {"terms": [feature | {"teacher": "hidden"}], "learns_from": "kd"},
        "cckd": {"terms": [feature | {"teacher": "layer2"}]},
    }
    found = fits(recipe("superclass_uniform", arms=arms), tmp_path / "run", monkeypatch)
    assert found["taps"] == ["layer2"]


def test_classes_are_those_of_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = recipe("class_uniform", data={"teacher": 100})
    train = described.teacher.train.model_copy(update={"sampler": "class_uniform"})
    described = described.model_copy(
        update={"teacher": described.teacher.model_copy(update={"train": train})}
    )
    found = fits(described, tmp_path / "run", monkeypatch)
    task = samples(pool=200, teacher=100)
    assert found["taps"] == []
    assert torch.equal(found["teacher"][0], task.splits["teacher"].labels)
    for arm in ("alone/0", "kd/0", "cckd/0"):
        assert torch.equal(found[arm][0], task.splits["train"].labels)


def test_alone_the_labelled_samples_keep_their_superclasses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = recipe("superclass_uniform", data={"labelled": 150, "teacher": 100})
    found = fits(described, tmp_path / "run", monkeypatch)
    assert found["alone/0"][1] == 150
    assert torch.equal(found["alone/0"][0], found["kd/0"][0][:150])
    assert found["kd/0"][1] == 200


@pytest.mark.parametrize(
    ("sampler", "changes", "sentence"),
    [
        (
            "class_uniform",
            {"data": {"labelled": 150}},
            "but 50 of 200 have no label; set labelled_per_batch, or use sampler",
        ),
        ("superclass_uniform", {"teacher": None, "arms": {}}, "what the teacher sees; give a"),
        (
            "class_uniform",
            {"train": {"steps": 1, "batch_size": 44, "sampler": "class_uniform"}},
            "needs 11 groups for a batch of 44 with per_class=4, but the training set has 10",
        ),
        (
            "shuffle",
            {"teacher": {"name": "cnn1d", "train": {"steps": 1, "sampler": "superclass_uniform"}}},
            "so the teacher itself cannot learn with it",
        ),
    ],
)
def test_refused_before_anything_is_trained(
    sampler: str, changes: Any, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, DataError), match=sentence):
        execute(recipe(sampler, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_a_data_set_does_not_tell(tmp_path: Path) -> None:
    class Untold(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return torch.zeros(1, 40), index % 10

    task = ImageClassification.from_datasets(Untold(), Untold(), num_classes=10)
    with pytest.raises(DataError, match="which this data set does not tell without loading them"):
        execute(recipe("class_uniform", task=task), tmp_path / "run")
