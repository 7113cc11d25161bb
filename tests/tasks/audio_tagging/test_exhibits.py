"""The picture of a clip: which is chosen, what networks are read at, and what is shown."""

import math

import pytest
import torch
from torch import Tensor, nn

from congener.losses import iusp_loss
from congener.tasks.audio_tagging import AudioTagging, ClipDataset, LogMel, Splits
from congener.types import Exhibit

RATE, SAMPLES = 8000, 8000
TAGS = ("low", "high", "noise")


def notes(pattern: str) -> Tensor:
    """A second of low (l) and high (h) notes, of both at once (b), and pauses (.)."""
    times = torch.arange(SAMPLES // len(pattern)) / RATE
    low, high = (torch.sin(2 * math.pi * pitch * times) / 4 for pitch in (400, 2500))
    sounds = {"l": low, "h": high, "b": low + high, ".": torch.zeros_like(low)}
    sound = torch.cat([sounds[letter] for letter in pattern])
    return torch.nn.functional.pad(sound, (0, SAMPLES - len(sound)))


def tagging(clips: list[Tensor], labels: list[list[int]], lengths: list[int]) -> AudioTagging:
    waveform = (torch.stack(clips) * 32767).to(torch.int16)
    data = ClipDataset(waveform, torch.tensor(lengths), torch.tensor(labels, dtype=torch.int8))
    return AudioTagging(Splits(data, data, TAGS, RATE))


@pytest.fixture
def task() -> AudioTagging:
    """The one to show is the fourth: the first has one tag, and the others repeat nothing."""
    clips = [
        notes("lhlhlh.."),
        notes("bbbbbbbb"),
        notes("........"),
        notes("lhlhlhlh"),
        notes("b......b"),
    ]
    labels = [[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, -100], [1, 1, 0]]
    return tagging(clips, labels, [SAMPLES, SAMPLES, SAMPLES, 6000, 400])


def networks(task: AudioTagging) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "teacher": task.build_model("crnn", channels=(4, 4), hidden=6),
        "alone": task.build_model("small_crnn"),
        "iusp": task.build_model("small_crnn", hop=0.01),
    }


def shown(task: AudioTagging, taps: dict[str, str | None]) -> Exhibit:
    (exhibit,) = task.exhibits(networks(task), taps)
    return exhibit


TAPS = {"teacher": "gru", "alone": None, "iusp": "layers.1"}


def test_the_clip_has_several_tags_and_notes_that_come_back(task: AudioTagging) -> None:
    exhibit = shown(task, TAPS)
    assert exhibit.sound is not None
    sound, rate = exhibit.sound
    assert rate == RATE
    assert torch.equal(sound, task.splits["test"].waveform[3, :6000].float() / 32768)
    (panel,) = exhibit.rows["clip"]
    assert panel.caption == "low, high"
    assert panel.kind == "spectrogram"
    expected = LogMel(RATE, 64)(sound[None], torch.tensor([6000]))[0, 0]
    assert panel.picture is not None
    torch.testing.assert_close(panel.picture, expected.T.flip(0))
    half = panel.picture.shape[0] // 2  # a high note comes second, and stands above
    assert panel.picture[:half, 20].sum() > panel.picture[half:, 20].sum()
    assert panel.picture[half:, 5].sum() > panel.picture[:half, 5].sum()


def test_networks_are_read_at_a_tap_that_they_have(task: AudioTagging) -> None:
    """Their own; or the first of the others': the teacher's, which the student has, too."""
    rows = shown(task, TAPS).rows["similarity of frames"]
    assert [panel.caption for panel in rows] == ["teacher", "alone", "iusp"]
    assert {panel.kind for panel in rows} == {"similarity"}
    assert {tuple(panel.picture.shape) for panel in rows if panel.picture is not None} == {(19, 19)}
    own = shown(task, TAPS | {"alone": "gru"}).rows["similarity of frames"]
    other = shown(task, TAPS | {"alone": "layers.0"}).rows["similarity of frames"]
    assert own[1].picture is not None
    assert other[1].picture is not None
    assert torch.equal(own[1].picture, rows[1].picture)
    assert not torch.equal(other[1].picture, rows[1].picture)


def test_what_cannot_be_read_is_left_out(task: AudioTagging) -> None:
    rows = shown(task, {"teacher": "gru", "alone": "layers.1:gram", "iusp": "head"}).rows
    assert [p.caption for p in rows["similarity of frames"]] == ["teacher", "alone", "iusp"]
    frames = shown(task, dict.fromkeys(TAPS, "gru")).rows["similarity of frames"]
    for summary, expected in zip(rows["similarity of frames"], frames, strict=True):
        assert summary.picture is not None
        assert expected.picture is not None
        assert torch.equal(summary.picture, expected.picture)
    rows = shown(task, {"teacher": "layers.9", "alone": "layers.2", "iusp": None}).rows
    assert [p.caption for p in rows["similarity of frames"]] == ["alone", "iusp"]
    nothing = {"teacher": None, "alone": None, "iusp": None}
    assert task.exhibits(networks(task), nothing) == ()
    assert task.exhibits({}, {}) == ()


def test_matrices_are_what_iusp_compares(task: AudioTagging) -> None:
    exhibit = shown(task, {"teacher": "gru", "alone": "gru", "iusp": None})
    rows = exhibit.rows["similarity of frames"]
    pictures = [panel.picture for panel in rows if panel.picture is not None]
    for picture in pictures:
        torch.testing.assert_close(picture.norm(dim=1), torch.ones(len(picture)))
    batch = {
        "waveform": task.splits["test"].waveform[3:4, :6000].float() / 32768,
        "length": torch.tensor([6000]),
    }
    features = []
    for network in list(networks(task).values())[:2]:
        read: list[Tensor] = []
        network.gru.register_forward_hook(lambda _m, _i, output, read=read: read.append(output))
        with torch.no_grad():
            task.call(network.eval(), batch)
        features.append(read[0])
    distance = (pictures[0] - pictures[1]).square().sum() / len(pictures[0]) ** 2
    torch.testing.assert_close(distance, iusp_loss(features[1], features[0]), rtol=1e-4, atol=1e-6)


def test_networks_stay_as_they_were(task: AudioTagging) -> None:
    given = networks(task)
    given["alone"].train()
    before = {name: value.clone() for name, value in given["alone"].state_dict().items()}
    task.exhibits(given, TAPS)
    assert given["alone"].training
    for name, value in given["alone"].state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in given["alone"].modules())


def test_silence_and_one_tag_are_shown_too() -> None:
    silent = tagging([notes("."), notes(".")], [[0, 0, 0], [-100] * 3], [SAMPLES, 1])
    exhibit = shown(silent, TAPS)
    assert exhibit.rows["clip"][0].caption == "no tag"
    for row in exhibit.rows.values():
        assert all(panel.picture is not None and panel.picture.isfinite().all() for panel in row)
    sustained = notes("llllhhhh")  # nothing comes back
    single = tagging([sustained, notes("l......."), notes("l..l..l.")], [[1, 0, 0]] * 3,
                     [SAMPLES] * 3)  # fmt: skip
    exhibit = shown(single, TAPS)
    assert exhibit.rows["clip"][0].caption == "low"
    assert exhibit.sound is not None
    assert exhibit.sound[0][3000:3900].any()
