"""AudioTagging: batches, preparation, masks, the loss, and the control."""

import importlib
import math
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from congener.errors import CongenerError, DataError, RecipeError
from congener.losses import IUSPLoss
from congener.taps import Taps
from congener.tasks.audio_tagging import AudioTagging, ClipDataset, Splits, augment
from congener.types import Batch

RATE = 8000
TAGS = ("low", "middle", "high")


def tones(clips: int, seed: int, seconds: float = 0.5) -> ClipDataset:
    """Any of three pitches, in clips of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)
    samples = round(seconds * RATE)
    times = torch.arange(samples) / RATE
    waves = torch.stack([torch.sin(2 * math.pi * pitch * times) for pitch in (400, 1000, 2500)])
    labels = (torch.rand(clips, 3, generator=generator) < 0.5).to(torch.int8)
    length = torch.randint(samples // 2, samples + 1, (clips,), generator=generator)
    sound = labels.float() @ waves + 0.3 * torch.randn(clips, samples, generator=generator)
    sound = sound.masked_fill(torch.arange(samples) >= length[:, None], 0)
    return ClipDataset((sound / 5 * 32767).to(torch.int16), length, labels)


def tagging(train: ClipDataset | None = None, **options: Any) -> AudioTagging:
    splits = Splits(train or tones(40, 1), tones(24, 2), TAGS, RATE)
    return AudioTagging(splits, **options)


def batch_of(task: AudioTagging, count: int = 8, split: str = "train") -> Batch:
    data: Any = task.splits[split]
    return task.collate(data.__getitems__(range(count)))


def test_a_batch_becomes_floats() -> None:
    task = tagging()
    raw = batch_of(task)
    before = raw["waveform"].clone()
    ready = task.prepare(raw, train=False, seed=0, epoch=0)
    assert torch.equal(raw["waveform"], before)
    assert torch.equal(ready["waveform"], before.float() / 32768)
    assert ready["labels"].dtype == torch.float32
    assert torch.equal(ready["length"], raw["length"])
    floats = task.prepare(ready, train=False, seed=0, epoch=0)
    assert torch.equal(floats["waveform"], ready["waveform"])


def test_training_batches_are_augmented() -> None:
    task = tagging(augment={"name": "shift", "share": 0.4})
    raw = batch_of(task)
    assert task.augments
    options = {"seed": 3, "epoch": 2}
    found = task.prepare(raw, train=True, **options)["waveform"]
    floats = raw["waveform"].float() / 32768
    expected = augment.shift(floats, raw["length"], raw["index"], share=0.4, **options)
    assert torch.equal(found, expected)
    assert torch.equal(task.prepare(raw, train=False, **options)["waveform"], floats)
    plain = tagging()
    assert not plain.augments
    assert torch.equal(plain.prepare(raw, train=True, **options)["waveform"], floats)


def test_what_the_engine_is_told() -> None:
    train = tones(10, 1)
    train.labels[[2, 5]] = -100
    train.labels[3, :2] = -100
    task = tagging(train)
    assert task.labelled is not None
    assert task.labelled.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert task.labels("train") is None
    assert tagging().labelled is None
    assert (task.metric, task.higher_is_better) == ("micro_auprc", True)
    assert (task.tag_names, task.sample_rate) == (TAGS, RATE)
    assert set(task.splits) == {"train", "test"}
    three = AudioTagging(Splits(train, tones(4, 2), TAGS, RATE, teacher=tones(5, 3)))
    assert set(three.splits) == {"train", "test", "teacher"}


def test_networks_know_the_tags_and_the_rate() -> None:
    task = tagging()
    network = task.build_model("small_crnn", bands=8)
    ready = task.prepare(batch_of(task), train=False, seed=0, epoch=0)
    assert network.front_end.hop == RATE // 50
    assert task.logits(task.call(network, ready)).shape == (8, 3)
    assert task.build_model("cnn_lstm", num_tags=5).classifier.out_features == 5


@pytest.mark.parametrize("weight", [None, 3.0, [1.0, 2.0, 5.0]])
def test_the_loss_is_the_mean_over_known_tags(weight: Any) -> None:
    task = tagging(pos_weight=weight)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 1], [0, -100, 1], [-100] * 3, [0, 0, 0], [1, 1, -100]]).float()
    factors = weight if isinstance(weight, list) else [weight or 1.0] * 3
    values = []
    for row in range(5):
        for tag in range(3):
            probability = 1 / (1 + math.exp(-float(logits[row, tag])))
            if labels[row, tag] == 1:
                values.append(-factors[tag] * math.log(probability))
            elif labels[row, tag] == 0:
                values.append(-math.log(1 - probability))
    assert len(values) == 10
    found = task.loss(logits, {"labels": labels})
    assert float(found) == pytest.approx(sum(values) / 10, rel=1e-5)


def test_a_network_of_other_tags_is_refused() -> None:
    task = tagging()
    with pytest.raises(DataError, match=r"logits \(2, 5\) for labels \(2, 3\); expected one for"):
        task.loss(torch.zeros(2, 5), {"labels": torch.zeros(2, 3)})


def test_unknown_tags_have_no_gradient_and_extremes_are_finite() -> None:
    task = tagging()
    logits = torch.tensor([[1e4, -1e4, 0.0], [3.0, 1.0, 2.0]], requires_grad=True)
    task.loss(logits, {"labels": torch.tensor([[0.0, 1, 1], [-100] * 3])}).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert not logits.grad[1].any()
    nothing = task.loss(logits, {"labels": torch.full((2, 3), -100.0)})
    assert nothing == 0
    nothing.backward()
    half = torch.tensor([[0.3, -1.7, 2.1]], dtype=torch.float16)
    batch = {"labels": torch.tensor([[1.0, 0, 0]])}
    assert torch.equal(task.loss(half, batch), task.loss(half.float(), batch))


def test_the_mask_is_of_frames_within_their_clip() -> None:
    task = tagging()
    batch = {"waveform": torch.zeros(5, 1000), "length": torch.tensor([1000, 999, 500, 99, 1])}
    found = task.mask(batch, torch.zeros(5, 4, 10, 7))
    assert found.dtype == torch.bool
    assert found.sum(1).tolist() == [10, 9, 5, 1, 1]
    assert found[:, 0].all()
    assert (found == found.sort(dim=1, descending=True).values).all()
    assert torch.equal(task.mask(batch, torch.zeros(5, 10, 3)), found)


@pytest.mark.parametrize("width", [4000, 3987])
@pytest.mark.parametrize(
    ("name", "path", "span"),
    [("crnn", "gru", 320), ("small_crnn", "layers.0", 320), ("cnn_lstm", "lstm", 160),
     ("mobilenet", "layers.6", 640)],
)  # fmt: skip
def test_the_mask_never_counts_a_frame_that_a_network_does_not(
    width: int, name: str, path: str, span: int
) -> None:
    """And of a network's frames of ``span`` samples, it counts all that are whole."""
    task = tagging()
    network = task.build_model(name).train()
    length = torch.cat([torch.arange(1, width, 61), torch.tensor([width])])
    batch = {"waveform": torch.randn(len(length), width).div(9), "length": length}
    with Taps(network, [path]) as taps, torch.no_grad():
        feature = taps(partial(task.call, network, batch))[1][path]
    mask = task.mask(batch, feature)
    heard = (-(-length // span)).clamp(min=1)
    assert bool((mask.sum(1) <= heard).all())
    assert bool((mask.sum(1) >= heard - 1).all())
    assert mask[-1].all()
    if width % span == 0:
        whole = length % span == 0
        assert torch.equal(mask.sum(1)[whole], heard[whole])


def test_iusp_of_a_padded_batch_is_that_of_the_clips_alone() -> None:
    """Of whole frames, through two networks of unlike front ends."""
    task = tagging()
    student, teacher = task.build_model("small_crnn").eval(), task.build_model("crnn").eval()
    length = torch.tensor([4000, 1600, 640])
    waveform = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)) / 5

    def loss(batch: Mapping[str, Tensor]) -> Tensor:
        read = []
        for network in (student, teacher):
            with Taps(network, ["gru"]) as taps, torch.no_grad():
                read.append(taps(partial(task.call, network, dict(batch)))[1]["gru"])
        return IUSPLoss(reduction="none")(*read, mask=task.mask(dict(batch), read[0]))

    whole = loss({"waveform": waveform, "length": length})
    for row, samples in enumerate(length.tolist()):
        one = {"waveform": waveform[row : row + 1, :samples], "length": length[row : row + 1]}
        torch.testing.assert_close(loss(one)[0], whole[row])


def test_collate_takes_batches_and_lists() -> None:
    task = tagging()
    data: Any = task.splits["train"]
    found = task.collate([data[3], data[5]])
    assert torch.equal(found["waveform"], data.waveform[[3, 5]])
    assert found["index"].tolist() == [3, 5]
    loader = DataLoader(Subset(data, [4, 7]), batch_size=2, collate_fn=task.collate)
    assert next(iter(loader))["index"].tolist() == [4, 7]
    with pytest.raises(DataError, match="one width"):
        task.collate([data[0], data[1] | {"waveform": torch.zeros(3, dtype=torch.int16)}])
    with pytest.raises(DataError, match=r"no 'length'.*'waveform', 'length' and 'labels'"):
        task.collate({"waveform": data.waveform, "labels": data.labels})
    with pytest.raises(DataError, match="no 'labels'"):
        task.collate([(torch.zeros(3), 1)])


def test_results_are_tensors_or_records() -> None:
    class Record:
        logits = torch.ones(2, 3)

    assert tagging().logits(Record()) is Record.logits
    with pytest.raises(DataError, match="returned dict; expected a tensor of logits"):
        tagging().logits({})
    metrics = tagging().metrics(torch.device("cpu"))
    metrics.update(Record(), {"labels": torch.tensor([[0.0, 1, 1], [1, 0, 0]])})
    assert metrics.compute()["macro_ap"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "shfit"}, "'shift'"),
        ({"augment": {"name": "shift", "shaer": 1}}, "'share'"),
        ({"augment": {"share": 0.1}}, "without a 'name'"),
        ({"augment": {"name": "shift", "seed": 0.5}}, "'seed'"),
        ({"data": "instrumnets"}, "'instruments'"),
        ({"data": {"name": "instruments", "trian": 3}}, "'train'"),
        ({"pos_weight": 0.0}, "positive number"),
        ({"pos_weight": [1.0, 2.0]}, "3 tags"),
        ({"pos_weight": [1.0, 2.0, math.inf]}, "one for each tag"),
        ({"pos_weight": math.nan}, "positive number"),
        ({"pos_weight": ["1", "2", "3"]}, "one for each tag"),
    ],
)
def test_options_are_refused(options: dict[str, Any], words: str) -> None:
    data = options.pop("data", Splits(tones(4, 1), tones(4, 2), TAGS, RATE))
    with pytest.raises(RecipeError, match=words):
        AudioTagging(data, **options)


def test_a_wrong_augmentation_shows_at_once() -> None:
    with pytest.raises(DataError, match="share"):
        tagging(augment={"name": "shift", "share": 4.0})


def test_the_control_is_chosen_on_the_slice_and_measured_on_the_test_set() -> None:
    task = tagging(tones(60, 1))
    data: Any = task.splits["train"]
    held = AudioTagging(Splits(data.part(slice(0, 40)), data.part(slice(40, 60)), TAGS, RATE))
    found = task.control(held)
    assert found["metric"] == "micro_auprc"
    assert found["package"].startswith("scikit-learn ")
    chosen_on = found["chosen_on"]
    assert chosen_on[found["classifier"]] == max(chosen_on.values())
    assert len(chosen_on) == 4
    assert found["value"] > 0.95  # the tones are easy to tell
    # Trained on all that the task trains on, and measured on its test set.
    assert task.control(task)["chosen_on"][found["classifier"]] == found["value"]


def test_the_control_is_defined_where_tags_are_rare_or_not_known() -> None:
    train = tones(30, 1)
    train.labels[:, 0] = 0
    train.labels[:, 1] = -100
    train.labels[:10, 2] = -100
    task = tagging(train)
    found = task.control(task)
    assert math.isfinite(found["value"])
    train.labels[:, 1] = 1
    assert math.isfinite(task.control(task)["value"])


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import congener.tasks.audio_tagging as pack

    for name in ("torchaudio", "soundfile", "torchmetrics"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(CongenerError, match=rf"{name}.*pip install \"congener\[audio\]\""):
                importlib.reload(pack)
    importlib.reload(pack)
