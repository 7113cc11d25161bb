"""A teacher sees its own normalisation, whatever the student's images are."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.engine import load_weights
from congener.errors import RecipeError, ShapeError
from congener.taps import Taps
from congener.tasks.image_classification import models
from congener.tasks.image_classification.models import external
from congener.teachers import Bridge, FrozenTeacher, Preprocessing, bridge, fingerprint
from congener.teachers.bridge import own_preprocessing

GREY, COLOUR = ((0.3,), (0.2,)), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
OWN = Preprocessing((0.5, 0.4, 0.3), (0.25, 0.5, 0.1))


def raw(channels: int, side: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, channels, side, side, generator=generator)


def normalised(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    parts = [(images[:, i] - m) / s for i, (m, s) in enumerate(zip(mean, std, strict=True))]
    return torch.stack(parts, dim=1)


class Kept(nn.Module):
    """Keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.head(self.stem(images).mean(dim=(2, 3)))


def test_the_teacher_sees_its_own_normalisation() -> None:
    net = Kept()
    bridge(net, COLOUR, OWN)(normalised(raw(3), *COLOUR))
    torch.testing.assert_close(net.seen, normalised(raw(3), OWN.mean, OWN.std))


def test_grey_images_become_colour() -> None:
    net = Kept()
    bridge(net, GREY, OWN)(normalised(raw(1), *GREY))
    torch.testing.assert_close(net.seen, normalised(raw(1).repeat(1, 3, 1, 1), OWN.mean, OWN.std))


@pytest.mark.parametrize(("size", "sides"), [(9, (9, 9)), ((4, 8), (4, 8))])
def test_the_teacher_sees_its_own_size(size, sides) -> None:
    net, own = Kept(), Preprocessing(OWN.mean, OWN.std, size)
    bridge(net, COLOUR, own)(normalised(raw(3), *COLOUR))
    resized = F.interpolate(raw(3), sides, mode="bilinear", antialias=True)
    torch.testing.assert_close(net.seen, normalised(resized, OWN.mean, OWN.std))


def test_what_is_equal_stays_the_same_tensor() -> None:
    net = Kept()
    assert bridge(net, COLOUR, Preprocessing(*COLOUR)) is net
    images = normalised(raw(3), *COLOUR)
    Bridge(net, Preprocessing(*COLOUR), Preprocessing(*COLOUR, 6))(images)
    assert net.seen is images


def test_half_precision_stays_half() -> None:
    net = Kept()
    bridge(net.bfloat16(), COLOUR, OWN)(raw(3).bfloat16())
    assert net.seen.dtype == torch.bfloat16


def test_taps_and_checkpoints_are_those_of_the_network(tmp_path) -> None:
    net = Kept()
    found = bridge(net, COLOUR, OWN)
    _, seen = Taps(found, ["stem", "head:input"])(lambda: found(raw(3)))
    assert seen["stem"].shape == (2, 4, 4, 4)
    other = Kept()
    torch.save(other.state_dict(), tmp_path / "weights.pt")
    load_weights(found, tmp_path / "weights.pt")
    assert torch.equal(net.head.weight, other.head.weight)
    assert fingerprint(found) != fingerprint(net)  # another preprocessing is another teacher


def test_a_bridged_teacher_is_frozen(tmp_path) -> None:
    net = Kept()
    FrozenTeacher(bridge(net, COLOUR, OWN), task=None, taps=["stem"])
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.training


@pytest.mark.parametrize(("arguments", "sentence"), [
    (((), ()), r"one mean and one positive std for each channel, not \[\] and \[\]\."),
    (((0.5,), (0.5, 0.5)), r"not \[0.5\] and \[0.5, 0.5\]"),
    (((0.5,), (0.0,)), r"one positive std"),
    (((0.5,), (0.5,), 0), "must be positive, not 0"),
    (((0.5,), (0.5,), (4, -1)), r"must be positive, not \(4, -1\)"),
])  # fmt: skip
def test_a_preprocessing_that_is_none_is_refused(arguments, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Preprocessing(*arguments)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="has 1 channels but the images have 3"):
        bridge(Kept(), COLOUR, Preprocessing((0.5,), (0.5,)))
    with pytest.raises(RecipeError, match="do not say by which mean and std"):
        bridge(Kept(), None, OWN)
    with pytest.raises(RecipeError, match="Kept carries no preprocessing of its own; write it out"):
        bridge(Kept(), COLOUR, "own")
    with pytest.raises(ShapeError, match=r"images \(2, 1, 6, 6\) must be \(batch, 3, height, "):
        bridge(Kept(), COLOUR, OWN)(raw(1))


def given(side: int) -> dict[str, object]:
    return {"num_classes": 5, "in_channels": 3, "input_shape": (3, side, side), "in_features": 1}


def test_a_network_of_timm_carries_its_own() -> None:
    net = models.build("timm:lcnet_050", {}, given(64))
    own = own_preprocessing(net)
    assert own == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
    vit = models.build("timm:vit_tiny_patch16_224", {"depth": 1, "img_size": 32}, given(64))
    own = own_preprocessing(vit)
    assert own == Preprocessing((0.5,) * 3, (0.5,) * 3, (32, 32))  # it was built for 32 × 32
    found = bridge(vit, COLOUR, "own")
    assert found(raw(3, 64)).shape == (2, 5)
    assert own_preprocessing(models.build("vgg8", {}, given(32))) is None


def test_a_network_of_torchvision_with_weights_carries_theirs(monkeypatch) -> None:
    build = external.torchvision.models.get_model
    monkeypatch.setattr(
        external.torchvision.models, "get_model", lambda name, **_: build(name, weights=None)
    )
    net = models.build("torchvision:squeezenet1_1", {"weights": "DEFAULT"}, given(64) | {
        "num_classes": 1000})  # fmt: skip
    own = own_preprocessing(net)
    assert own == Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224))
