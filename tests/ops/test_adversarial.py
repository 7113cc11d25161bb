"""The attack against loops written from its formula, its bounds, and what it must not depend on."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as V

from congener.errors import NonFiniteLossError, ShapeError
from congener.ops.adversarial import Attack, attacked
from congener.ops.keyed_random import keyed_uniform

IDS = torch.tensor([5, 11, 12, 40, 41, 900])


def pictures(*shape: int) -> Tensor:
    """Images whose channels have ranges of their own."""
    drawn = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([1.0, 4.0, 2.0])[: shape[1], None, None] * (1 + torch.arange(shape[0]))[
        :, None, None, None
    ].to(drawn)
    return (drawn - 0.4) * scales


IMAGES = pictures(6, 3, 10, 10)


def teacher() -> nn.Module:
    torch.manual_seed(3)
    layers = [nn.Conv2d(3, 5, 3, stride=2), nn.Tanh(), nn.Conv2d(5, 2, 3)]
    return nn.Sequential(*layers).double()


def network_loss(net: nn.Module, mean: bool = False) -> Callable[[Tensor], Tensor]:
    def loss(images: Tensor) -> Tensor:
        per_image = nn.functional.softplus(net(images)).mean((1, 2, 3))
        return per_image.mean() if mean else per_image.sum()

    return loss


def attack(images: Tensor = IMAGES, ids: Tensor = IDS, seed: int = 0, **settings: Any) -> Tensor:
    return attacked(images, network_loss(teacher()), ids, seed=seed, settings=Attack(**settings))


def span(images: Tensor) -> Tensor:
    """1/255 of each image's largest channel range."""
    flat = images.flatten(2)
    return ((flat.max(2).values - flat.min(2).values).max(1).values / 255)[:, None, None, None]


def slowly(image: np.ndarray, gradient: Callable, settings: Attack) -> np.ndarray:
    """One image, without diversity, value by value."""
    ranges = [channel.max() - channel.min() for channel in image]
    epsilon, alpha = (x * max(ranges) / 255 for x in (settings.epsilon, settings.step_size))
    now, momentum = image.copy(), np.zeros_like(image)
    for _ in range(settings.steps):
        found = gradient(now)
        momentum = found / np.abs(found).sum() + settings.decay * momentum
        for place in np.ndindex(image.shape):
            change = now[place] + alpha * np.sign(momentum[place]) - image[place]
            change = min(max(change, -epsilon), epsilon)
            channel = image[place[0]]
            now[place] = min(max(image[place] + change, channel.min()), channel.max())
    return now


@pytest.mark.parametrize(
    "settings",
    [
        Attack(diversity=0),
        Attack(diversity=0, epsilon=3, step_size=2, steps=4, decay=0.5),
        Attack(diversity=0, epsilon=30, step_size=7, steps=9, decay=0),
        Attack(diversity=0, epsilon=60, step_size=9, steps=9, decay=1.3),
        Attack(resize=1, diversity=1, epsilon=5, step_size=1, steps=7),
    ],
)
def test_equals_the_slow_way(settings: Attack) -> None:
    """Of Σ aᵢ (x − b)² − c x⁴, whose gradient turns on the way and differs in length."""
    b = IMAGES.roll(1, 0) * 0.2
    a = torch.tensor([1.0, -2, 30, 0.01, -0.3, 1]).double()[:, None, None, None]
    quartic = 0.3

    def loss(x: Tensor) -> Tensor:
        return (a * (x - b).square() - quartic * x.pow(4)).sum()

    found = attacked(IMAGES, loss, IDS, seed=0, settings=settings)
    for row in range(len(IMAGES)):

        def gradient(x: np.ndarray, row: int = row) -> np.ndarray:
            return 2 * a[row].numpy() * (x - b[row].numpy()) - 4 * quartic * x**3

        expected = torch.from_numpy(slowly(IMAGES[row].numpy(), gradient, settings))
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-12)


def test_without_steps_the_images_stay() -> None:
    for settings in ({"steps": 0}, {"epsilon": 0}, {"step_size": 0}):
        assert torch.equal(attack(**settings), IMAGES)


def test_a_single_step_is_fgsm() -> None:
    images = IMAGES.clone().requires_grad_()
    network_loss(teacher())(images).backward()
    assert images.grad is not None
    step = 6 * span(IMAGES) * images.grad.sign()
    low, high = IMAGES.amin((2, 3), keepdim=True), IMAGES.amax((2, 3), keepdim=True)
    expected = torch.clamp(IMAGES + step, low, high)
    found = attack(steps=1, step_size=6, decay=0, diversity=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(attack(steps=1, step_size=6, decay=9, diversity=0), found)


@pytest.mark.parametrize("settings", [{}, {"epsilon": 1.5}, {"epsilon": 40, "step_size": 30}])
def test_bounds(settings: dict) -> None:
    found, furthest = attack(**settings), settings.get("epsilon", 8) * span(IMAGES)
    change = (found - IMAGES).abs()
    assert (change <= furthest + 1e-12).all()
    assert (change > 0.99 * furthest).flatten(1).any(1).all()
    flat, own = found.flatten(2), IMAGES.flatten(2)
    assert (flat.amin(2) >= own.amin(2)).all()
    assert (flat.amax(2) <= own.amax(2)).all()


def test_the_loss_of_a_linear_model_grows() -> None:
    weight = pictures(1, 3, 10, 10)
    found = attacked(
        IMAGES, lambda x: (weight * x).sum(), IDS, seed=0, settings=Attack(diversity=0)
    )
    gain = (weight * (found - IMAGES)).sum((1, 2, 3))
    assert (gain > 0.5 * (weight.abs().sum() * 8 * span(IMAGES)).flatten()).all()
    small = attacked(IMAGES, lambda x: (weight * x).sum(), IDS, seed=0, settings=Attack())
    assert ((weight * (small - IMAGES)).sum((1, 2, 3)) > 0).all()


def test_any_normalisation_gives_the_same_attack() -> None:
    found = attack(diversity=0)
    loss = network_loss(teacher())
    other = attacked(
        IMAGES * 3 + 2, lambda x: loss((x - 2) / 3), IDS, seed=0, settings=Attack(diversity=0)
    )
    torch.testing.assert_close(other, found * 3 + 2)


@pytest.mark.parametrize("mean", [False, True])
def test_whatever_the_batch(mean: bool) -> None:
    loss, settings = network_loss(teacher(), mean), Attack(diversity=0.7)
    whole = attacked(IMAGES, loss, IDS, seed=0, settings=settings)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    torch.manual_seed(77)
    for parts in (order.split(1), order.split(4)):
        found = [attacked(IMAGES[i], loss, IDS[i], seed=0, settings=settings) for i in parts]
        torch.testing.assert_close(torch.cat(found), whole[order], rtol=0, atol=1e-12)


def test_draws_come_of_seed_and_id_alone() -> None:
    found, loss = attack(), network_loss(teacher())
    state = torch.get_rng_state()
    assert torch.equal(attacked(IMAGES, loss, IDS, seed=0, settings=Attack()), found)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (attack(seed=1), attack(ids=IDS + 1)):
        assert (other != found).flatten(1).any(1).float().mean() > 0.6


def test_they_are_not_the_draws_of_an_augmentation() -> None:
    ids = torch.arange(2000)
    seen = shown(torch.ones(2000, 1, 10, 10), ids, Attack(steps=1))
    shrunk = (seen[0] == 0).flatten(1).any(1)
    coin = keyed_uniform(ids, seed=0, epoch=0, count=1)[:, 0] < 0.5
    assert 0.45 < (shrunk == coin).float().mean() < 0.55


def test_leaves_nothing_behind() -> None:
    net, given = teacher(), IMAGES.clone().requires_grad_()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        found = attacked(given, network_loss(net), IDS, seed=0, settings=Attack())
        assert not torch.is_grad_enabled()
    assert not found.requires_grad
    assert given.requires_grad
    assert given.grad is None
    assert torch.equal(given, IMAGES)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_flat_images_and_flat_losses_stay() -> None:
    images = IMAGES.clone()
    images[1] = 0.25
    weight = torch.ones(6, 1, 1, 1).double()
    weight[3] = 0
    found = attacked(images, lambda x: (weight * x).sum(), IDS, seed=0, settings=Attack())
    moved = (found != images).flatten(1).any(1)
    assert moved.tolist() == [True, False, True, False, True, True]
    assert found.isfinite().all()
    stuck = attacked(
        images, lambda x: weight.sum().requires_grad_(), IDS, seed=0, settings=Attack()
    )
    assert torch.equal(stuck, images)


def shown(images: Tensor, ids: Tensor, settings: Attack) -> list[Tensor]:
    """What the loss is given in each step."""
    seen: list[Tensor] = []

    def loss(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum()

    attacked(images, loss, ids, seed=0, settings=settings)
    return seen


def block(image: Tensor) -> tuple[int, int, int, int]:
    """Where the image is not 0: first row, first column, rows, columns."""
    filled = image[0] != 0
    rows, columns = filled.any(1).nonzero()[:, 0], filled.any(0).nonzero()[:, 0]
    return int(rows[0]), int(columns[0]), len(rows), len(columns)


def test_how_images_are_shrunk() -> None:
    """The width is uniform in [0.7 W, W), the place in what is left but its last pixel."""
    ones = torch.ones(6000, 1, 20, 20)
    blocks = [block(x) for x in shown(ones, torch.arange(6000), Attack(steps=1, resize=0.7))[0]]
    shrunk = [found for found in blocks if found[2] < 20]
    assert len(shrunk) / 6000 == pytest.approx(0.5, abs=0.02)
    for _, _, rows, columns in blocks:
        assert rows == columns
    counts = np.bincount([columns for *_, columns in shrunk], minlength=21)
    assert counts[14:20] / len(shrunk) == pytest.approx(np.full(6, 1 / 6), abs=0.02)
    assert counts.sum() == counts[14:20].sum()
    places = np.zeros((6, 6))
    for top, left, rows, _ in shrunk:
        assert max(top, left) < 20 - rows
        places[top, left] += rows == 14
    for axis in (0, 1):
        assert places.sum(axis) / places.sum() == pytest.approx(np.full(6, 1 / 6), abs=0.06)
    assert (places > 0).all()


def test_what_is_shrunk() -> None:
    """The image as torchvision resizes it, and anew in each step."""
    images = pictures(6, 3, 12, 12) + 9
    steps = shown(images, IDS, Attack(diversity=1, step_size=0, resize=0.6))
    found = [[block(image) for image in seen] for seen in steps]
    assert len({tuple(blocks) for blocks in found}) == 5
    for seen, blocks in zip(steps, found, strict=True):
        for image, original, (top, left, rows, columns) in zip(seen, images, blocks, strict=True):
            small = V.resize(original, [rows, columns], antialias=False)
            part = image[:, top : top + rows, left : left + columns]
            torch.testing.assert_close(part, small)


def test_the_gradient_goes_through_the_shrinking() -> None:
    """With weights on the left half, what is left of it moves; with resizing, no other pixel."""
    weight = torch.zeros(10, 10).double()
    weight[:, :3] = 1
    settings = Attack(diversity=1, resize=0.5, steps=1)
    found = attacked(IMAGES, lambda x: (weight * x).sum(), IDS, seed=0, settings=settings)
    moved = (found != IMAGES).any(1).any(1)
    assert not moved[:, 7:].any()
    assert moved.any(1).float().mean() > 0.3


@pytest.mark.parametrize(("height", "width"), [(10, 20), (30, 20), (1, 9)])
def test_images_that_are_not_square_keep_their_shape(height: int, width: int) -> None:
    ones = torch.ones(200, 1, height, width)
    seen = shown(ones, torch.arange(200), Attack(steps=1, diversity=1, resize=0.5))[0]
    assert seen.shape == ones.shape
    for image in seen:
        top, left, rows, columns = block(image)
        assert rows == max(1, int(columns * height / width + 0.5))
        assert width // 2 <= columns < width
        assert top + rows <= height
        assert left + columns <= width


def test_the_authors_square() -> None:
    settings = Attack(steps=1, diversity=1, square=True)
    for height in (10, 30):
        seen = shown(torch.ones(1, 1, height, 20), IDS[:1], settings)[0]
        assert seen.shape == (1, 1, 20, 20)
        assert block(seen[0])[2:] in ((18, 18), (19, 19))
    with pytest.raises(ShapeError, match="attack one at a time"):
        shown(torch.ones(2, 1, 10, 20), IDS[:2], settings)
    one, other = (shown(IMAGES, IDS, Attack(square=flag))[1] for flag in (True, False))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epsilon": -1}, "epsilon must be finite and not negative"),
        ({"epsilon": float("nan")}, "epsilon must be finite"),
        ({"step_size": -0.1}, "step_size must be finite and not negative"),
        ({"steps": -1}, "steps must be finite and not negative"),
        ({"steps": 1.5}, "steps must be a whole number"),
        ({"decay": float("inf")}, "decay must be finite"),
        ({"diversity": 1.1}, r"diversity must be in \[0, 1\]"),
        ({"resize": 0}, "resize must be above 0 and at most 1"),
        ({"resize": 1.2}, "resize must be above 0 and at most 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Attack(**settings)


def test_bad_input() -> None:
    def run(images: Tensor, ids: Tensor, loss: Callable[[Tensor], Tensor] = torch.sum) -> None:
        attacked(images, loss, ids, seed=0, settings=Attack())

    with pytest.raises(ShapeError, match="one sample id for each image"):
        run(IMAGES, IDS[:4])
    with pytest.raises(ShapeError, match="must be \\(batch, channels, height, width\\)"):
        run(IMAGES[0], IDS[:3])
    with pytest.raises(ValueError, match="images must be floating point"):
        run(IMAGES.to(torch.uint8), IDS)
    for loss in (lambda x: x.detach().sum(), lambda x: x.sum((1, 2, 3))):
        with pytest.raises(ValueError, match="a scalar with gradients to the images"):
            run(IMAGES, IDS, loss)
    with pytest.raises(NonFiniteLossError, match="not finite"):
        run(IMAGES, IDS, lambda x: x.abs().sqrt().log().sum() * float("nan"))


def test_every_setting_has_a_source() -> None:
    assert set(Attack.sources) == {field.name for field in fields(Attack)}
