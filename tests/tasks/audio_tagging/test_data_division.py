"""How clips are divided, and arrays of the user's own."""

import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from congener.engine.held import held
from congener.errors import DataError
from congener.tasks.audio_tagging.data import tensors
from congener.tasks.audio_tagging.data.splits import Splits, labelled_positions


def given(count: int = 30, **changes: Any) -> dict[str, Any]:
    """Clip i has the sample value i, the length 5 + i % 4, and of 3 tags the tag i % 3."""
    place = torch.arange(count)
    options: dict[str, Any] = {
        "train_waveform": place[:, None].expand(-1, 8).to(torch.int16),
        "train_length": 5 + place % 4,
        "train_labels": (place[:, None] % 3 == torch.arange(3)).long(),
        "test_waveform": torch.zeros(6, 9),
        "test_labels": torch.eye(3).repeat(2, 1),
        "sample_rate": 100,
    }
    return options | changes


def arrays(count: int = 30, **changes: Any) -> Splits:
    return tensors(**given(count, **changes))


def test_defaults_leave_nothing_out() -> None:
    splits = arrays()
    assert splits.teacher is None
    assert splits.tag_names == ("0", "1", "2")
    assert splits.sample_rate == 100
    assert (len(splits.train), len(splits.test)) == (30, 6)
    assert splits.train.labels.dtype == splits.test.labels.dtype == torch.int8
    assert splits.train.waveform.dtype == torch.int16
    assert splits.test.waveform.dtype == torch.float32
    assert splits.test.length.tolist() == [9] * 6
    assert splits.train.length.dtype == torch.int64
    assert splits.train.frame_labels is None


def test_what_follows_a_clip_is_silent() -> None:
    train = arrays().train
    for clip in range(30):
        samples = 5 + clip % 4
        assert train.waveform[clip].tolist() == [clip] * samples + [0] * (8 - samples)


def test_the_given_arrays_are_left_as_they_are() -> None:
    options = given()
    options["train_waveform"] = options["train_waveform"].clone()
    tensors(**options, labelled=3)
    assert (options["train_waveform"] == torch.arange(30)[:, None]).all()
    assert (options["train_labels"].sum(1) == 1).all()


def test_parts_are_disjoint_and_where_documented() -> None:
    splits = arrays(teacher=9, pool=12, labelled=6, holdout=6)
    assert splits.teacher is not None
    assert splits.teacher.ids.tolist() == list(range(9))
    assert splits.train.ids.tolist() == list(range(9, 21))
    assert splits.test.ids.tolist() == list(range(24, 30))
    for part in (splits.teacher, splits.train, splits.test):
        assert part.waveform[:, 0].tolist() == part.ids.tolist()
        assert part.length.tolist() == [5 + i % 4 for i in part.ids.tolist()]
        known = (part.labels != -100).any(1)
        assert part.labels[known].argmax(1).tolist() == [i % 3 for i in part.ids[known].tolist()]
    assert int((splits.train.labels == 1).sum()) == 6
    assert (splits.teacher.labels >= 0).all()


def test_labelled_clips_are_a_fixed_choice_with_every_tag() -> None:
    labels = torch.zeros(200, 4, dtype=torch.int64)
    labels[:, 0] = 1
    labels[150, 1] = labels[7, 2] = labels[99, 3] = 1
    options = {
        "train_waveform": torch.zeros(200, 2),
        "train_length": None,
        "train_labels": labels,
        "test_labels": torch.ones(6, 4),
    }
    for count in (4, 5, 40):
        train = arrays(**options, labelled=count).train
        known = labelled_positions(train.labels)
        assert known is not None
        assert len(known) == count
        assert {150, 7, 99} <= set(known.tolist())
        assert torch.equal(train.labels[known].long(), labels[known])
        assert (train.labels[[i for i in range(200) if i not in known.tolist()]] == -100).all()
        again = labelled_positions(arrays(**options, labelled=count).train.labels)
        assert torch.equal(known, again)  # type: ignore[arg-type]
    few = labelled_positions(arrays(labelled=6).train.labels)
    assert few.tolist() == [9, 13, 14, 23, 27, 29]  # type: ignore[union-attr]
    with pytest.warns(UserWarning, match=r"No labelled training clip of .* has the tag \d"):
        assert len(labelled_positions(arrays(**options, labelled=2).train.labels)) == 2  # type: ignore[arg-type]


def test_more_labels_keep_the_fewer() -> None:
    chosen = [
        set(labelled_positions(arrays(labelled=k).train.labels).tolist())  # type: ignore[union-attr]
        for k in (3, 10, 29)
    ]
    assert chosen[0] < chosen[1] < chosen[2]


def test_labelled_positions() -> None:
    labels = torch.tensor([[0, 0], [-100, -100], [-100, 1], [0, -100]])
    assert labelled_positions(labels).tolist() == [0, 2, 3]  # type: ignore[union-attr]
    assert labelled_positions(labels[[0, 2]]) is None
    assert labelled_positions(labels[[1, 1]]) is None


def test_no_labels_at_all_for_the_student() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = arrays(labelled=0)
    assert (splits.train.labels == -100).all()
    assert labelled_positions(splits.train.labels) is None


def test_a_tag_that_no_training_clip_has() -> None:
    labels = given()["train_labels"]
    labels[:, 1] = 0
    with pytest.warns(UserWarning, match="has the tag creak: nothing tells a network") as caught:
        arrays(train_labels=labels, tag_names=["hum", "creak", "clap"])
    assert len(caught) == 1
    # Known to the teacher: no notice. In no test clip: no notice.
    labels = given()["train_labels"]
    labels[9:, 1] = 0
    arrays(train_labels=labels, teacher=9)
    test = torch.eye(3).repeat(2, 1)
    test[:, 1] = 0
    arrays(train_labels=labels.index_fill(1, torch.tensor(1), 0), test_labels=test)


def test_figures_on_a_slice_need_a_tag_too() -> None:
    labels = given()["train_labels"]
    labels[-4:] = 0
    with pytest.raises(DataError, match=r"No clip .* to test on is known to have a tag"):
        arrays(train_labels=labels, holdout=4)


def test_one_tag() -> None:
    splits = arrays(
        train_labels=torch.arange(30)[:, None] % 2, test_labels=torch.ones(6, 1), tag_names=["dog"]
    )
    assert splits.tag_names == ("dog",)
    assert splits.train.labels.shape == (30, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": 15, "pool": 10, "holdout": 6}, r"30 training samples, too few for teacher=15"),
        ({"pool": 5, "labelled": 6}, r"labelled=6 is more than the 5 samples the student sees"),
        ({"holdout": 0}, r"holdout=0 is not a number of samples"),
        ({"tag_names": ["a", "b"]}, r"labels for 3 tags, but there are 2 tag names"),
        ({"test_labels": torch.ones(6, 2)}, r"test set .* labels for 2 tags, but there are 3"),
        ({"test_labels": torch.zeros(6, 3)}, r"No clip .* to test on is known to have a tag"),
        ({"train_labels": torch.zeros(30, 3)}, r"No training clip .* is known to have a tag"),
        ({"train_labels": torch.full((30, 3), -100)}, r"No training clip .* known to have a tag"),
        ({"train_labels": torch.ones(29, 3)}, r"30 waveforms, 30 lengths and 29 labels"),
        ({"train_labels": torch.ones(30)}, r"shapes \(30, 8\) and \(30,\); expected \(clips, sam"),
        ({"train_labels": torch.full((30, 3), 2)}, r"has the label 2 at clip 0, tag 0; a tag is 1"),
        ({"train_labels": torch.full((30, 3), 257)}, r"labels other than 1 \(heard\)"),
        ({"train_labels": torch.full((30, 3), 0.5)}, r"labels other than 1 \(heard\)"),
        ({"train_labels": torch.full((30, 3), float("nan"))}, r"labels other than 1 \(heard\)"),
        ({"train_length": torch.full((30,), 9)}, r"length 9 at clip 0; expected 1 to 8"),
        ({"train_length": torch.arange(30) % 3 + 0}, r"length 0 at clip 0; expected 1 to 8"),
        ({"train_length": torch.full((29,), 3)}, r"30 waveforms, 29 lengths and 30 labels"),
        ({"train_length": torch.full((30,), 3.0)}, r"lengths of type torch.float32"),
        ({"train_waveform": torch.zeros(30, 8, dtype=torch.uint8)}, r"type torch.uint8; expected"),
        ({"train_waveform": torch.zeros(30, 2, 8)}, r"shapes \(30, 2, 8\)"),
        ({"train_waveform": torch.zeros(30, 0)}, r"shapes \(30, 0\)"),
        ({"train_waveform": torch.full((30, 8), -1.5)}, r"samples up to 1.5, but floats must lie"),
        ({"train_waveform": torch.full((30, 8), float("nan"))}, r"samples up to nan, but floats"),
        ({"test_waveform": torch.zeros(0, 9), "test_labels": torch.ones(0, 3)}, r"is empty"),
        ({"sample_rate": 0}, r"sample_rate=0 is not a number of samples per second"),
        (
            {"train_labels": torch.ones(30, 0), "test_labels": torch.ones(6, 0)},
            r"labels for 0 tags",
        ),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        arrays(**options)
    assert "\n" not in str(caught.value)


def test_numpy() -> None:
    options = {
        name: value.numpy() if torch.is_tensor(value) else value for name, value in given().items()
    }
    options["test_waveform"] = np.ones((6, 4))
    splits = tensors(**options)
    assert splits.test.waveform.dtype == torch.float32
    assert torch.equal(splits.train.labels, arrays().train.labels)


def test_data_set_protocol() -> None:
    train = arrays().train
    batch = train.__getitems__([5, 2, 29])
    assert batch["index"].tolist() == [5, 2, 29]
    assert batch["labels"].argmax(1).tolist() == [2, 2, 2]
    assert batch["waveform"][:, 0].tolist() == [5, 2, 29]
    assert batch["length"].tolist() == [6, 7, 6]
    one = train[-1]
    assert (int(one["index"]), int(one["length"])) == (29, 6)
    assert one.keys() == batch.keys()
    with pytest.raises(IndexError):
        train[30]
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy.waveform, train.waveform)


def test_the_engine_indexes_it_in_memory() -> None:
    train = arrays(holdout=4).train
    found = held(train)
    assert found is not None
    (batch,) = found.batches([torch.tensor([3, 1])])
    own = train.__getitems__([3, 1])
    assert batch.keys() == own.keys()
    assert all(torch.equal(batch[name], own[name]) for name in own)


def test_clips_of_which_nothing_is_known_keep_no_place_of_a_labelled_one() -> None:
    labels = torch.full((20, 2), -100)
    labels[:5] = torch.tensor([1, 0])
    splits = tensors(
        train_waveform=torch.zeros(20, 10),
        train_labels=labels,
        test_waveform=torch.zeros(4, 10),
        test_labels=torch.tensor([[1, 0]] * 4),
        sample_rate=16000,
        labelled=5,
    )
    assert (splits.train.labels == 1).any(1).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
