"""The task: what it is built of, what networks see, and what it shows."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.tiny import batch_of
from tests.tasks.retrieval.emoji_files import save_emoji
from tests.tasks.retrieval.tiny import splits, task
from torch import Tensor, nn

from congener.errors import DataError, RecipeError
from congener.tasks.retrieval import Retrieval, augment
from congener.tasks.retrieval.contrast import contrast


def test_a_recipe_names_the_data(tmp_path: Path) -> None:
    save_emoji(tmp_path, 14)
    found = Retrieval(
        {"name": "emoji", "root": str(tmp_path), "size": 8, "train": 9, "labelled": 3}
    )
    assert found.input_shape == (3, 8, 8)
    assert found.labelled is not None
    assert found.labelled.tolist() == list(range(6))
    assert len(found.names) == 13
    assert found.class_names == ()
    labels = found.labels("train")
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, *[-100] * 12]


def test_what_a_network_sees() -> None:
    found = task()
    assert found.labelled is None
    assert "teacher" not in found.splits
    raw = batch_of(found, 4)
    ready = found.prepare(raw, train=True, seed=0, epoch=0)
    assert ready["image"].dtype == torch.float32
    torch.testing.assert_close(ready["image"], raw["image"] / 127.5 - 1)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in found.normalisation)
    torch.testing.assert_close(ready["image"], (raw["image"] / 255 - mean) / std)
    assert raw["image"].dtype == torch.uint8


def test_only_training_batches_are_augmented() -> None:
    found = task(augment={"name": "redrawn", "degrees": 30})
    assert found.augments
    raw = batch_of(found, 4)
    plain = found.prepare(raw, train=False, seed=0, epoch=0)["image"]
    assert torch.equal(plain, raw["image"] / 127.5 - 1)
    first, again, later, seeded = (
        found.prepare(raw, train=True, seed=seed, epoch=epoch)["image"]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for other in (plain, later, seeded))
    assert not task(augment="none").augments


def test_augmentations_of_images_can_be_named() -> None:
    found = task(augment={"name": "shift", "pad": 1})
    raw = batch_of(found, 3)
    assert found.prepare(raw, train=True, seed=0, epoch=0)["image"].shape == (3, 3, 8, 8)


def test_the_teacher_may_know_more_labels() -> None:
    found = task({"labelled": 5, "teacher": "all"})
    assert list(found.splits) == ["train", "test", "teacher"]
    assert found.labels("teacher").min() == 0
    assert (found.labels("train") == -100).sum() == 30


def test_the_loss_is_contrast_at_the_temperature() -> None:
    found = task({"labelled": 5}, temperature=0.3)
    batch = batch_of(found, 40)
    logits = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    expected = contrast(logits, batch["labels"], 0.3)
    torch.testing.assert_close(found.loss(logits, batch), expected)
    torch.testing.assert_close(found.loss(5 * logits, batch), expected)


def test_figures() -> None:
    found = task()
    batch = batch_of(found, 20, "test")
    figures = found.metrics(torch.device("cpu"))
    figures.update(F.one_hot(batch["labels"]).float(), batch)
    assert figures.compute()[found.metric] == 1
    assert found.higher_is_better


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "emojis"}, "no data set named 'emojis'.*'emoji'"),
        ({"data": {"root": "x"}}, "data set is a mapping without a 'name'"),
        ({"data": {"name": "emoji", "roots": 1}}, "takes no argument 'roots'"),
        ({"augment": "redraw"}, "no augmentation named 'redraw'.*'redrawn'"),
        ({"augment": {"name": "redrawn", "degree": 3}}, "takes no argument 'degree'"),
        ({"augment": {"name": "redrawn", "degrees": "x"}}, "'degrees' .* expected a number"),
        ({"augment": {"name": "redrawn", "scale": 1.5}}, "expected a scale from 0 to below 1"),
        ({"augment": "jitter"}, "jitter works on floats"),
        ({"augment": {"name": "crop_flip", "pad": -3}}, "'crop_flip'.* does not work on"),
    ],
)
def test_what_a_recipe_gets_wrong(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((RecipeError, DataError), match=sentence):
        Retrieval(**{"data": splits()} | options)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        task(temperature=temperature)


def test_small_cnn() -> None:
    found = task()
    net = found.build_model("small_cnn", widths=[4, 6], dims=5)
    assert [name for name, _ in net.named_children()] == [
        "layer1",
        "layer2",
        "flatten",
        "classifier",
    ]
    image = batch_of(found, 3)["image"].float()
    assert net(image).shape == (3, 5)
    assert net.get_submodule("layer2")(net.get_submodule("layer1")(image)).shape == (3, 6, 2, 2)
    assert net.get_submodule("classifier").in_features == 24
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    bare = found.build_model("small_cnn", norm=False)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in bare.modules())
    assert bare(image).shape == (3, 64)


@pytest.mark.parametrize("options", [{"widths": []}, {"widths": [4, 0]}, {"convolutions": 0}])
def test_a_small_cnn_of_nothing(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="expected a stage or more"):
        task().build_model("small_cnn", **options)


def test_sizes_of_small_cnn_are_as_its_documentation_says() -> None:
    pixels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    found = task({"train_images": pixels, "test_images": pixels[:20]})

    def size(**options: Any) -> int:
        return sum(p.numel() for p in found.build_model("small_cnn", **options).parameters())

    assert size() == 410_848
    assert size(widths=(8, 16, 16), convolutions=1, dims=32) == 12_360


def test_networks_of_image_classification_embed_too() -> None:
    found = task()
    image = batch_of(found, 3)["image"].float()
    assert found.build_model("resnet20")(image).shape == (3, 64)
    assert found.build_model("mlp", dims=7)(image).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("smal_cnn", {}, "no network named 'smal_cnn'.*'small_cnn'"),
        ("small_cnn", {"widht": 3}, "takes no argument 'widht'"),
        ("small_cnn", {"dims": 0}, "dims=0 is not a number of dimensions"),
        ("mlp", {"dims": "many"}, "dims='many' is not a number"),
        ("mlp", {"widht": 3}, "takes no argument 'widht'"),
    ],
)
def test_networks_that_are_none(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        task().build_model(name, **options)


def test_samples_become_a_batch() -> None:
    found = task()
    sample = found.splits["train"][3]
    batch = found.collate([sample, sample])
    assert batch["image"].shape == (2, 3, 8, 8)
    with pytest.raises(DataError, match="no 'camera', only"):
        found.collate([{"image": torch.zeros(1), "labels": torch.tensor(0)}])


@pytest.mark.parametrize("result", [torch.zeros(2, 3, 4, 4), (torch.zeros(2, 3),)])
def test_what_is_no_embedding(result: Any) -> None:
    with pytest.raises(DataError, match=r"The network returned .*; expected an embedding"):
        task().logits(result)


class Pixels(nn.Module):
    """Embeds an image as its pixels, or the opposite of it in one camera, known by its mark."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, image: Tensor) -> Tensor:
        return self.sign * image.flatten(1)


class Noise(nn.Module):
    """Embeds by a fixed random projection on one number of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([torch.sin(999 * image.sum((1, 2, 3))), image[:, 0, 0, 0]], dim=1)


def test_the_exhibit_shows_a_query_on_which_networks_disagree() -> None:
    found = task()
    good, bad = Pixels().train(), Noise()
    (shown,) = found.exhibits({"teacher": good, "alone": bad}, {"teacher": None, "alone": None})
    assert list(shown.rows) == ["teacher", "alone"]
    assert good.training
    test = found.splits["test"]
    for name, row in shown.rows.items():
        assert len(row) == 11  # the query, and ten images of the other camera
        query = row[0]
        assert query.hit is None
        assert query.caption == shown.rows["teacher"][0].caption
        assert all(panel.kind == "image" for panel in row)
        assert sum(bool(panel.hit) for panel in row) == 1
        assert all(panel.hit == (panel.caption == query.caption) for panel in row[1:])
        assert (row[1].hit is True) == (name == "teacher")
        place = int(query.caption.removeprefix("identity ")) - 20
        pixels = [test.images[2 * place + camera].permute(1, 2, 0) for camera in (0, 1)]
        assert any(torch.equal(query.picture, each) for each in pixels)


def test_the_exhibit_where_all_agree_is_of_the_first_query() -> None:
    found = task()
    (shown,) = found.exhibits({"alone": Pixels()}, {"alone": None})
    assert [panel.caption for panel in shown.rows["alone"][:2]] == ["identity 20", "identity 20"]
    assert shown.rows["alone"][1].hit


def test_captions_are_names_where_there_are_some(tmp_path: Path) -> None:
    save_emoji(tmp_path, 14)
    found = Retrieval({"name": "emoji", "root": str(tmp_path), "size": 8, "train": 9})
    (shown,) = found.exhibits({"alone": Pixels()}, {"alone": None})
    assert len(shown.rows["alone"]) == 5  # four emoji in the gallery
    assert all(panel.caption in found.names for panel in shown.rows["alone"])


def test_the_control_is_chosen_on_the_slice() -> None:
    found, held = task(), task({"holdout": 6})
    chosen = found.control(held)
    assert chosen["metric"] == "recall_at_1"
    assert len(chosen["chosen_on"]) == 9
    assert chosen["chosen_on"][chosen["classifier"]] == max(chosen["chosen_on"].values())
    assert chosen["classifier"].startswith("nearest neighbour, ")
    assert chosen["package"].startswith("scikit-learn ")
    # Noise hides the patterns but little; where they are of one identity no more, nothing is found.
    assert chosen["value"] > 0.9
    mixed = task({"test_labels": torch.arange(20) % 10, "test_cameras": torch.arange(20) // 10})
    assert mixed.control(held)["value"] < 0.5
    assert mixed.control(held)["chosen_on"] == chosen["chosen_on"]


def test_a_missing_package_names_its_install_line() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from congener.errors import CongenerError\n"
        "try:\n    import congener.tasks.retrieval\n"
        "except CongenerError as error:\n    print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'install it with: pip install "congener[retrieval]"' in shown.stdout


def redraw(images: Tensor, **options: float) -> Tensor:
    still = dict.fromkeys(("degrees", "scale", "shift", "colour", "grey", "permute"), 0.0)
    ids = torch.arange(len(images))
    return augment.redrawn(images, ids, seed=0, epoch=0, **still | options)


def noise(count: int = 40, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)


def test_redrawing_with_nothing_changes_nothing() -> None:
    assert torch.equal(redraw(noise()), noise())


def test_colours_that_go_and_that_change_places() -> None:
    images = noise()
    grey = redraw(images, grey=1.0)
    assert (grey == grey[:, :1]).all()
    torch.testing.assert_close(grey[:, 0].float(), images.float().mean(1), atol=0.51, rtol=0)
    some = redraw(images, grey=0.5)
    kept = (some == images).flatten(1).all(1)
    assert 8 < int(kept.sum()) < 32
    swapped = redraw(images, permute=1.0)
    assert torch.equal(swapped.sort(1).values, images.sort(1).values)
    assert 2 < int((swapped == images).flatten(1).all(1).sum()) < 16  # one of six orders


def test_factors_of_the_channels() -> None:
    images = torch.full((40, 3, 4, 4), 100, dtype=torch.uint8)
    factors = redraw(images, colour=0.3).float() / 100
    assert factors.min() >= 0.69
    assert factors.max() <= 1.31
    assert factors.std() > 0.1
    assert (factors[:, 0] != factors[:, 1]).any()
    assert redraw(images + 155, colour=0.3).max() == 255  # it does not wrap around


def blob(x: int, y: int) -> Tensor:
    image = torch.full((20, 3, 33, 33), 255, dtype=torch.uint8)
    image[:, :, y - 2 : y + 3, x - 2 : x + 3] = 0
    return image


def centre(images: Tensor) -> Tensor:
    dark = 255 - images[:, 0].double()
    places = torch.arange(33, dtype=torch.float64)
    total = dark.sum((1, 2))
    return (
        torch.stack([(dark.sum(1) * places).sum(1), (dark.sum(2) * places).sum(1)], 1)
        / total[:, None]
    )


def test_moves_turns_and_sizes_stay_within_their_limits() -> None:
    moved = centre(redraw(blob(16, 16), shift=0.1)) - 16
    assert (moved.abs().amax(0) > 2).all()
    assert moved.abs().max() <= 3.4
    assert (moved[:, 0] != moved[:, 1]).any()
    turned = centre(redraw(blob(26, 16), degrees=20)) - 16
    torch.testing.assert_close(
        turned.norm(dim=1), torch.full((20,), 10.0).double(), atol=0.2, rtol=0
    )
    angles = torch.rad2deg(torch.atan2(turned[:, 1], turned[:, 0])).abs()
    assert 12 < angles.max() <= 20.5
    sized = centre(redraw(blob(26, 22), scale=0.2)) - 16
    ratios = sized / torch.tensor([10.0, 6.0])
    assert ratios.min() > 0.78
    assert ratios.max() < 1.22
    assert ratios.std() > 0.05
    assert (ratios[:, 0] - ratios[:, 1]).abs().max() > 0.1
    assert (redraw(blob(16, 16), shift=0.3)[:, :, 0] == 255).all()  # the border goes on
