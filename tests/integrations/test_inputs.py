"""Which columns a teacher reads, and which rows of logits count."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from congener.errors import DataError, RecipeError
from congener.integrations.inputs import Inputs, columns_of

LABELS = torch.tensor([[-100, 4, 5, -100], [-100, -100, 6, 7]])
LOGITS = torch.arange(2.0 * 4 * 3).view(2, 4, 3)


class Reader(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Any = None, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=LOGITS)


class Anything(nn.Module):
    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        raise NotImplementedError


class Decoder(nn.Module):
    config = SimpleNamespace(is_encoder_decoder=True)

    def forward(self, input_ids: Tensor, labels: Any = None) -> Any:
        raise NotImplementedError


class Whatever(nn.Module):
    def forward(self, **columns: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("network", "read"),
    [
        (Reader(), {"input_ids", "use_cache"}),
        (Anything(), {"input_ids", "cu_seq_lens_q"}),
        (Decoder(), {"input_ids", "labels"}),
        (Whatever(), {"input_ids", "token_type_ids", "cu_seq_lens_q"}),
    ],
)
def test_a_network_gets_the_columns_that_it_reads(network: nn.Module, read: set[str]) -> None:
    batch = dict.fromkeys(("input_ids", "token_type_ids", "labels", "cu_seq_lens_q"), 1)
    columns = columns_of(network, batch)
    assert columns.keys() == read
    assert columns.get("use_cache", False) is False


def test_columns_of_its_own_take_the_place_of_all() -> None:
    batch = {"input_ids": 1, "attention_mask": 2, "teacher_input_ids": 3}
    assert columns_of(Reader(), batch) == {"input_ids": 3, "use_cache": False}


@pytest.mark.parametrize(
    ("shifts", "extra", "places"),
    [
        (True, {}, [[0, 0], [0, 1], [1, 1], [1, 2]]),
        (False, {}, [[0, 1], [0, 2], [1, 2], [1, 3]]),
        (True, {"shift_labels": LABELS.flip(1)}, [[0, 1], [0, 2], [1, 0], [1, 1]]),
    ],
)
def test_the_rows_are_those_that_have_a_label(shifts: bool, extra: Any, places: Any) -> None:
    inputs, batch = Inputs(shifts=shifts), {"input_ids": LABELS, "labels": LABELS} | extra
    rows = inputs.call(Reader(), batch)
    assert rows.tolist() == [LOGITS[place[0], place[1]].tolist() for place in places]
    assert inputs.logits(rows) is rows
    mask, targets = inputs.token_mask(batch), inputs.targets(batch)
    assert mask is not None
    assert targets is not None
    assert mask.nonzero().tolist() == places
    assert sorted(targets.tolist()) == [4, 5, 6, 7]
    assert inputs.count(batch) == (4, 4)


@pytest.mark.parametrize(
    ("labels", "counts"),
    [
        (torch.tensor([1, -100, 0]), (3, 2)),
        (torch.tensor([[0.0, 1.0], [1.0, 1.0], [-100.0, -100.0]]), (3, 2)),
        (torch.tensor([0.5, 1.5, 2.5]), (3, 3)),
        (None, (3, 0)),
    ],
)
def test_samples_are_counted(labels: Tensor | None, counts: tuple[int, int]) -> None:
    batch: dict[str, Any] = {"input_ids": torch.zeros(3, 5, dtype=torch.long)}
    batch |= {} if labels is None else {"labels": labels}
    inputs, logits = Inputs(shifts=True), torch.rand(3, 2)
    assert inputs.count(batch) == counts
    assert inputs.token_mask(batch) is None
    assert inputs.targets(batch) is labels
    assert inputs.rows(logits, batch) is logits


def test_frames_that_are_padding_do_not_count() -> None:
    inputs, batch = Inputs(shifts=True), {"attention_mask": torch.tensor([[1, 1, 0]])}
    mask = inputs.mask(batch, torch.rand(1, 3, 4))
    assert mask is not None
    assert mask.tolist() == [[True, True, False]]
    assert inputs.mask(batch, torch.rand(1, 3)) is None
    assert inputs.mask(batch, torch.rand(1, 2, 4)) is None
    assert inputs.mask({}, torch.rand(1, 3, 4)) is None


def test_what_does_not_fit_is_told() -> None:
    inputs = Inputs(shifts=True)
    with pytest.raises(RecipeError, match="returned a SimpleNamespace without logits"):
        inputs.rows(SimpleNamespace(logits=None), {})
    with pytest.raises(DataError, match=r"logits \(2, 4, 3\) are of tokens.*it has: input_ids"):
        inputs.rows(LOGITS, {"input_ids": LABELS})
