"""Puzzles, tokens of the user's own, and how they are divided."""

import math

import pytest
import torch
from tests.tasks.language_modelling.tiny import EOS, PAD, VOCABULARY, splits, texts

from congener.errors import DataError
from congener.tasks.language_modelling import Splits, data
from congener.tasks.language_modelling.data import addition, shuffle, sort, tensors


def prompts(found: Splits) -> dict[str, set[tuple[int, ...]]]:
    """The different prompts of each part; those of a puzzle are as long."""
    parts = {"train": found.train, "test": found.test, "teacher": found.teacher}
    return {
        name: {*map(tuple, part.tokens[:, : int(part.prompt[0])].tolist())}
        for name, part in parts.items()
        if part is not None
    }


def test_a_shuffled_response_has_the_digits_of_its_prompt() -> None:
    found = shuffle(samples=300, test=50, digits=5)
    assert found.check is not None
    assert not found.one_answer
    for part in (found.train, found.test):
        for row in part.tokens.tolist():
            assert row[5] == 11
            assert row[-1] == found.vocabulary.eos == 12
            assert sorted(row[:5]) == sorted(row[6:11])
            assert found.check(row[:6], row[6:11])
            assert not found.check(row[:6], row[6:10])
            assert not found.check(row[:6], [*row[6:10], (row[10] + 1) % 10])
    assert found.vocabulary.decode(found.train.tokens[0].tolist()).endswith("<end>")
    assert found.vocabulary.size == 14


def test_every_order_is_as_likely() -> None:
    found = shuffle(samples=4000, test=1, digits=4)
    digits, answers = found.train.tokens[:, :4], found.train.tokens[:, 5:9]
    whole = digits.sort(1).values
    distinct = (whole[:, 1:] != whole[:, :-1]).all(1)
    places = digits[distinct].argsort(1).argsort(1)
    order = answers[distinct].argsort(1).gather(1, places)
    orders, counts = torch.unique(order, dim=0, return_counts=True)
    assert len(orders) == 24
    expected = len(order) / 24
    spread = math.sqrt(expected)
    assert (counts - expected).abs().max() < 4 * spread


def test_a_prompt_occurs_once_in_all_parts() -> None:
    found = shuffle(samples=200, test=40, digits=3, teacher=90, pool=70, holdout=20)
    seen = prompts(found)
    assert {name: len(each) for name, each in seen.items()} == {
        "train": 70, "test": 20, "teacher": 90,
    }  # fmt: skip
    assert len(set.union(*seen.values())) == 180
    whole = shuffle(samples=200, test=40, digits=3)
    assert len(set.union(*prompts(whole).values())) == 240


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = shuffle(samples=50), shuffle(samples=50), shuffle(samples=50, seed=1)
    assert torch.equal(one.train.tokens, again.train.tokens)
    assert not torch.equal(one.train.tokens, other.train.tokens)
    assert torch.equal(state, torch.get_rng_state())


def test_sorted_digits() -> None:
    found = sort(samples=50, test=5, digits=6)
    assert found.one_answer
    for row in found.train.tokens.tolist():
        assert sorted(row[:6]) == row[7:13]


def test_sums() -> None:
    found = addition(samples=60, test=5)
    assert found.one_answer
    for row in found.train.tokens.tolist():
        text = found.vocabulary.decode(row)
        question, answer = text.removesuffix("<end>").split("=")
        one, other = question.split("+")
        assert len(one) == len(other) == 3
        assert int(answer[::-1]) == int(one) + int(other)


@pytest.mark.parametrize("name", ["shuffle", "sort", "addition"])
def test_too_few_prompts_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"digits make \d+ prompts, too few for samples=2000000"):
        getattr(data, name)(digits=3, samples=2_000_000)
    with pytest.raises(DataError, match="digits=0"):
        getattr(data, name)(digits=0)


def test_the_student_sees_prompts_and_some_responses() -> None:
    found = shuffle(samples=50, test=5, labelled=7)
    assert found.train.answered.tolist() == [True] * 7 + [False] * 43
    assert (found.train.length[7:] == 9).all()
    assert (found.train.tokens[7:, 9:] == found.vocabulary.pad).all()
    assert (found.train.labels[7:] == -100).all()
    assert (found.train.length[:7] == 18).all()
    taught = shuffle(samples=50, test=5, teacher=20, pool=20, labelled=0)
    assert taught.teacher is not None
    assert taught.teacher.answered.all()
    assert not taught.train.answered.any()


def test_labels_are_the_tokens_of_responses() -> None:
    found = splits(unanswered=[3]).train
    columns = (found.tokens, found.labels, found.prompt, found.length)
    for tokens, labels, prompt, length in zip(*columns, strict=True):
        inside = torch.arange(len(tokens))
        response = (inside >= prompt) & (inside < length)
        assert torch.equal(labels[response], tokens[response])
        assert (labels[~response] == -100).all()
    assert not found.answered[3]


def _given(**changes: object) -> Splits:
    train, test = texts(6, 0), texts(4, 1)
    given = {
        "train_tokens": train[0], "train_prompt": train[1], "train_length": train[2],
        "test_tokens": test[0], "test_prompt": test[1], "test_length": test[2],
        "vocabulary": VOCABULARY, "eos": EOS, "pad": PAD,
    }  # fmt: skip
    return tensors(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_prompt": torch.zeros(6, dtype=torch.int64)}, "at row 0 a prompt of 0 tokens"),
        ({"train_length": torch.full((6,), 10)}, "in a text of 10, in 9 columns"),
        ({"train_length": torch.tensor([1, 1, 1, 1, 1, 0])}, "expected 1 ≤ prompt ≤ length"),
        ({"train_tokens": torch.full((6, 9), 11)}, "the token 11 at row 0, but the given vocab"),
        ({"train_tokens": torch.zeros(6, 9)}, r"training tokens are torch.float32; expected whole"),
        ({"test_tokens": torch.zeros(4, dtype=torch.int64)}, r"test tokens have the shape \(4,\)"),
        ({"test_prompt": torch.ones(3, dtype=torch.int64)}, r"test prompt have the shape \(3,\)"),
        ({"train_tokens": torch.zeros(0, 9, dtype=torch.int64),
          "train_prompt": torch.zeros(0, dtype=torch.int64),
          "train_length": torch.zeros(0, dtype=torch.int64)}, "is empty; at least one text"),
        ({"test_length": texts(4, 1)[1]}, "nothing can be measured"),
        ({"eos": 11}, "The end token of the given vocabulary is 11; expected one of its 11"),
        ({"pad": -1}, "The padding token of the given vocabulary is -1"),
        ({"labelled": 7}, "labelled=7 is more than the 6"),
        ({"teacher": 3, "train_length": texts(6, 0)[1]}, "it has nothing to learn"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        _given(**changes)


def test_what_is_beyond_a_text_is_never_looked_at() -> None:
    tokens, _, length = texts(6, 0)
    beyond = torch.arange(9) >= length[:, None]
    found = _given(train_tokens=tokens.masked_fill(beyond, 99))
    assert torch.equal(found.train.tokens, tokens)


def test_numbers_are_the_text_of_tokens_without_a_tokenizer() -> None:
    assert _given().vocabulary.decode([3, 4]) == "3 4"
    assert _given(decode=lambda tokens: f"{len(tokens)} words").vocabulary.decode([1]) == "1 words"
