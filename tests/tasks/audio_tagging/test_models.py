"""Networks: sizes, taps, and that nothing but a clip itself decides its logits."""

import math
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.taps import Taps
from congener.tasks.audio_tagging import models

RATE = 8000
SMALL: dict[str, dict[str, Any]] = {
    "crnn": {"channels": (4, 6), "hidden": 5, "bands": 12},
    "small_crnn": {"bands": 11},
    "cnn_lstm": {"channels": 4, "hidden": 6, "bands": 9},
    "mobilenet": {"width": 0.25, "bands": 16},
}
NAMES = pytest.mark.parametrize("name", SMALL)


def build(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(1)
    return models.build(name, SMALL[name] | arguments, {"num_tags": 3, "sample_rate": RATE})


def clips(samples: int = 4000, *lengths: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    length = torch.tensor(lengths or (4000, 2311, 170, 1))
    waveform = 0.2 * torch.randn(len(length), samples, generator=generator)
    return waveform.masked_fill(torch.arange(samples) >= length[:, None], 0), length


def warmed(network: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics that are those of the clips."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(*clips())
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def features(network: nn.Module, path: str, *inputs: Tensor) -> Tensor:
    with Taps(network, [path]) as taps, torch.no_grad():
        return taps(partial(network, *inputs))[1][path]


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("crnn", {}, 249_488),
        ("crnn", {"bands": 40}, 175_760),
        ("small_crnn", {}, 4_268),
        ("cnn_lstm", {"num_tags": 8}, 83_784),
        ("mobilenet", {}, 137_488),
    ],
)
def test_sizes_are_those_that_the_documentation_names(
    name: str, arguments: dict[str, Any], parameters: int
) -> None:
    network = models.build(name, arguments, {"num_tags": 16, "sample_rate": 16000})
    assert sum(each.numel() for each in network.parameters()) == parameters
    words = getattr(models, name).__doc__
    assert f"{parameters:,}" in words


@NAMES
def test_padding_changes_no_logit(name: str) -> None:
    network = warmed(build(name))
    waveform, length = clips()
    with torch.no_grad():
        together = network(waveform, length)
        longer = network(torch.nn.functional.pad(waveform, (0, 1234)), length)
        alone = [
            network(waveform[i : i + 1, : int(n)], length[i : i + 1]) for i, n in enumerate(length)
        ]
    assert together.shape == (4, 3)
    assert together.isfinite().all()
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    torch.testing.assert_close(longer, together, rtol=0, atol=1e-5)


@NAMES
def test_padding_changes_no_step_of_training(name: str) -> None:
    """Logits, gradients and running statistics of a batch, whatever it is padded to."""
    waveform, length = clips(4000, 2000, 1311, 170)

    def step(samples: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        network = build(name).train()
        logits = network(waveform[:, :samples], length)
        logits.square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert len(gradients) == len(list(network.parameters()))
        return logits, gradients, list(network.buffers())

    for tight, padded in zip(step(2000), step(4000), strict=True):
        for one, other in zip(tight, padded, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=2e-4)


@NAMES
def test_every_second_of_a_clip_matters(name: str) -> None:
    network = warmed(build(name))
    waveform, length = clips(4000, 2000)
    with torch.no_grad():
        expected = network(waveform, length)
        for start in (0, 800, 1700):
            changed = waveform.clone()
            changed[:, start : start + 200] += 0.5
            assert (network(changed, length) - expected).abs().max() > 1e-5


@NAMES
def test_silence_and_clips_shorter_than_a_frame_are_defined(name: str) -> None:
    for network in (build(name), warmed(build(name))):
        for samples in (1, 100, 3000):
            logits = network(torch.zeros(2, samples), torch.tensor([samples, 1]))
            logits.sum().backward()
            assert logits.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_batch_normalisation_is_torchs_on_the_frames_that_count() -> None:
    ours, theirs = models._Norm(3), nn.BatchNorm2d(3)
    maps = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    past = torch.arange(6) >= torch.tensor([6, 4, 1, 3])[:, None]
    frames = maps.transpose(1, 2)[~past]  # (frames that count, channels, frequencies)
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
            norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    for _ in range(2):
        found = ours(maps, past).transpose(1, 2)[~past]
        expected = theirs(frames[..., None])[..., 0]
        torch.testing.assert_close(found, expected)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    broken = maps.masked_fill(past[:, None, :, None], torch.nan)
    torch.testing.assert_close(ours(broken, past).transpose(1, 2)[~past], expected)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours.eval()(maps, past), theirs.eval()(maps))


def test_a_gru_both_ways_is_torchs_on_each_clip() -> None:
    ours = models._Recurrence(nn.GRU, 4, 3, both_ways=True)
    theirs = nn.GRU(4, 3, batch_first=True, bidirectional=True)
    assert ours.back is not None
    state = dict(ours.ahead.state_dict())
    state |= {f"{name}_reverse": value for name, value in ours.back.state_dict().items()}
    theirs.load_state_dict(state)
    frames = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([7, 4, 1])
    found = ours(frames, torch.arange(7) >= counts[:, None])
    for row, count in enumerate(counts.tolist()):
        expected = theirs(frames[row : row + 1, :count])[0][0]
        torch.testing.assert_close(found[row, :count], expected)
        assert not found[row, count:].any()


def test_attention_is_a_mean_over_the_frames_that_count() -> None:
    head = models._Attention(4, 2)
    frames = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    past = torch.arange(5) >= torch.tensor([5, 2])[:, None]
    found = head(frames, past)
    for row, count in ((0, 5), (1, 2)):
        scores, attention = (layer(frames[row, :count]) for layer in (head.scores, head.attention))
        shares = attention.exp() / attention.exp().sum(0)
        torch.testing.assert_close(found[row], (shares * scores).sum(0))


# 0.5 s at 8 kHz: 25 frames of 20 ms, 50 of 10 ms; the shapes that the documentation names.
TAPS = [
    ("crnn", "layers.0", (4, 13, 6)),
    ("crnn", "layers.1", (6, 13, 3)),
    ("crnn", "gru", (13, 10)),
    ("crnn", "head.scores", (13, 3)),
    ("small_crnn", "layers.2", (8, 13, 2)),
    ("small_crnn", "gru", (13, 16)),
    ("cnn_lstm", "conv", (4, 25, 3)),
    ("cnn_lstm", "lstm", (25, 6)),
    ("mobilenet", "layers.0", (8, 13, 8)),
    ("mobilenet", "layers.8", (64, 7, 1)),
    ("mobilenet", "classifier:input", (64,)),
]


@pytest.mark.parametrize(("name", "path", "shape"), TAPS)
def test_taps_are_as_documented(name: str, path: str, shape: tuple[int, ...]) -> None:
    network = build(name).eval()
    found = features(network, path, *clips(4000, 4000, 2000))
    assert found.shape == (2, *shape)


@pytest.mark.parametrize(
    ("name", "path"), [("crnn", "layers.0"), ("crnn", "gru"), ("cnn_lstm", "lstm"),
                       ("small_crnn", "layers.2"), ("mobilenet", "layers.4")],
)  # fmt: skip
def test_a_clip_has_as_many_frames_as_without_padding(name: str, path: str) -> None:
    network = warmed(build(name))
    waveform, length = clips(4000, 4000, 2311)
    whole = features(network, path, waveform, length)[1]
    alone = features(network, path, waveform[1:, :2311], length[1:])[0]
    whole, alone = (x if x.dim() == 2 else x.transpose(0, 1).flatten(1) for x in (whole, alone))
    torch.testing.assert_close(whole[: len(alone)], alone, rtol=0, atol=1e-5)
    assert not whole[len(alone) :].any()


def test_the_lstm_reads_frames_in_order() -> None:
    """A frame of its input is all channels of one frame of the map, which the peer scrambles."""
    network = build("cnn_lstm").eval()
    inputs = clips(4000, 4000)
    maps, read = (features(network, path, *inputs) for path in ("conv", "lstm.ahead:input"))
    assert torch.equal(read[0, 7], maps[0, :, 7].flatten())
    states = features(network, "lstm", *inputs)
    torch.testing.assert_close(network(*inputs), network.classifier(states[:, -1]))


def test_front_ends_and_hops_are_the_networks_own() -> None:
    student, teacher = build("small_crnn", hop=0.01), build("crnn")
    inputs = clips(4000, 4000)
    assert features(student, "gru", *inputs).shape[1] == 25
    assert features(teacher, "gru", *inputs).shape[1] == 13
    assert (student.front_end.bands, teacher.front_end.bands) == (11, 12)
    one_way = build("crnn", bidirectional=False)
    assert features(one_way, "gru", *inputs).shape == (1, 13, 5)


@NAMES
def test_the_state_holds_no_front_end_and_loads(name: str) -> None:
    network, other = warmed(build(name)), build(name)
    assert not [key for key in network.state_dict() if key.startswith("front_end")]
    other.load_state_dict(network.state_dict())
    assert torch.equal(other.eval()(*clips()), network(*clips()))


@NAMES
def test_networks_run_under_autocast(name: str) -> None:
    network = build(name)
    with torch.autocast("cpu", torch.bfloat16):
        network(*clips()).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    warmed(network)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = network(*clips())
    torch.testing.assert_close(logits.float(), network(*clips()), rtol=0.1, atol=0.15)


@pytest.mark.parametrize("name", ["small_crnn", "cnn_lstm"])
def test_a_student_is_exported_with_its_front_end(name: str) -> None:
    """Of a fixed width; a shorter clip says so by its length."""
    network = warmed(build(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*were assigned during export")
        program = torch.export.export(network, clips(800, 800, 300))
    other = clips(800, 511, 80)
    torch.testing.assert_close(program.module()(*other), network(*other))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("cnn_lstm", {"bands": 4}, "fewer than the 5"),
        ("crnn", {"channels": ()}, "channels is empty"),
        ("crnn", {"hidden": 0}, "'crnn' cannot be built"),
        ("crnn", {"hop": 1.0}, "no longer than the window"),
        ("crnn", {"window": math.inf}, "'crnn' cannot be built"),
        ("mobilenet", {"width": 0}, "width=0 leaves no channels"),
        ("mobilenet", {"width": -1.0}, "width=-1.0 leaves no channels"),
        ("crnn", {"bands": "many"}, "a whole number"),
        ("crnn", {"bnads": 3}, "'bands'"),
        ("small_crnnn", {}, "'small_crnn'"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        models.build(name, arguments, {"num_tags": 3, "sample_rate": RATE})
