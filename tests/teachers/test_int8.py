"""A teacher in int8 answers nearly as the network, with its taps; the network stays as it is."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.systems.tiny import conv_teacher
from torch import Tensor, nn

from congener.errors import CheckpointError, RecipeError
from congener.teachers import fingerprint
from congener.teachers import int8 as module
from congener.teachers.int8 import Int8, Request, check_int8, quantised

TAPS = ["layer1", "layer2:input", "layer2.0", "classifier:input"]


def images(rows: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def requests(count: int = 3) -> list[Request]:
    return [((images(seed=seed),), {}) for seed in range(count)]


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return conv_teacher().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def small(net: nn.Sequential, folder: Path) -> Int8:
    before = fingerprint(net)
    built = quantised(net, TAPS, requests(), folder)
    assert fingerprint(net) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    return built


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_answers_nearly_as_the_network(net: nn.Sequential, small: Int8, rows: int) -> None:
    """Off by some of 256 steps: less than 5 % of the norm, and not by nothing."""
    x = images(rows, seed=9)
    logits, features = small.read(lambda: small(x))
    first = net.layer1(x)
    read = (first, first, net.layer2[0](first), net.pooled(net.layer2(first)))
    wanted = dict(zip(TAPS, read, strict=True))
    assert list(features) == TAPS
    for name, value in (wanted | {"logits": net(x)}).items():
        found = logits if name == "logits" else features[name]
        assert found.shape == value.shape
        assert found.dtype == torch.float32
        assert 1e-4 < float((found - value).norm() / value.norm()) < 0.05


def test_a_linear_layer_is_quantised_as_it_should_be() -> None:
    """Weights of each output in steps of max|w|/127, what they multiply in 256 steps of its range.

    The answer itself is in 256 steps of the range seen, too.
    """
    generator = torch.Generator().manual_seed(2)
    layer = nn.Linear(6, 4).eval().requires_grad_(False)
    seen = torch.randn(64, 6, generator=generator)
    found = quantised(layer, [], [((seen,), {})])(seen).double()

    def in_steps(x: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        low, high = whole.min().clamp(max=0), whole.max().clamp(min=0)
        step = (high - low) / 255
        zero = (-low / step).round()
        return ((x / step).round() + zero).clamp(0, 255).sub(zero) * step, step

    x, weight = seen.double(), layer.weight.double()
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    weight = (weight / scale).round() * scale
    answer = in_steps(x, x)[0] @ weight.T + layer.bias.double()
    rounded, step = in_steps(answer, layer(seen).double())
    assert (found - rounded).abs().max() <= 1.01 * step  # a step where rounding is on the fence
    assert (found - rounded).abs().gt(step / 2).double().mean() < 0.05


class Worded(nn.Module):
    """Takes a named tensor beside the images, and answers with a record."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 3)

    def forward(self, x: Tensor, *, scale: Tensor) -> dict[str, Any]:
        return {"logits": self.inner(x.flatten(1)) * scale, "aux": (x.mean((1, 2, 3)), x)}


def test_named_arguments_and_records() -> None:
    torch.manual_seed(0)
    net = Worded().eval()
    x, scale = images(16), torch.rand(16, 3) + 1.0
    small = quantised(net, ["inner"], [((x,), {"scale": scale})])
    result, features = small.read(lambda: small(x[:5], scale=scale[:5]))
    with torch.no_grad():
        wanted = net(x[:5], scale=scale[:5])
    torch.testing.assert_close(result["logits"], wanted["logits"], rtol=0, atol=0.05)
    torch.testing.assert_close(result["aux"][0], wanted["aux"][0])
    assert torch.equal(result["aux"][1], x[:5])
    torch.testing.assert_close(features["inner"] * scale[:5], result["logits"])


def test_a_kept_graph_is_found_again(
    net: nn.Sequential, small: Int8, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = folder.iterdir()
    made: list[Any] = []
    monkeypatch.setattr(module, "_graph", lambda *given: made.append(given) or kept.read_bytes())
    x = images(4, seed=7)
    assert torch.equal(quantised(net, TAPS, requests(), folder)(x), small(x))
    assert not made
    other = conv_teacher().eval().requires_grad_(False)
    other.classifier.bias.data[0] += 1e-3
    for changed in (
        (other, TAPS, requests()), (net, TAPS[:1], requests()), (net, TAPS, requests(2)),
    ):  # fmt: skip
        before = len(made)
        monkeypatch.setattr(module, "Int8", lambda *_: None)
        quantised(*changed, folder)
        assert len(made) == before + 1
    assert len(list(folder.iterdir())) == 4


def test_a_damaged_graph_is_named(net: nn.Sequential, tmp_path: Path) -> None:
    path = (
        tmp_path / f"teacher-int8-{module._key(net, TAPS, [list(r[0]) for r in requests()])}.onnx"
    )
    path.write_bytes(b"\x08\x07torn")
    with pytest.raises(CheckpointError, match=r"teacher-int8-\w+\.onnx is damaged; remove it"):
        quantised(net, TAPS, requests(), tmp_path)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Wordy(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        return x.flatten(1), "spoken"


@pytest.mark.parametrize(
    ("net", "words"),
    [(Branching(), r"cannot be exported.*\(.*\); use bf16"), (Wordy(), "not a str; use bf16")],
)
def test_what_cannot_be_quantised(net: nn.Module, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        quantised(net.eval(), [], requests(1))


def test_missing_packages_and_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_int8(torch.device("cpu"))
    with pytest.raises(RecipeError, match="runs on a CPU, and this fit on cuda"):
        check_int8(torch.device("cuda"))
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else there(name)
    )
    with pytest.raises(RecipeError, match=r"needs onnxruntime: pip install 'congener\[int8\]'"):
        check_int8(torch.device("cpu"))
