"""What a network says about a data set, a row for each sample."""

import torch
from tests.systems.texts import TextTask, writer
from torch import nn

from congener.engine import predict
from congener.tasks.text_classification import TextClassification, data

LAYER = "model.layers.0"


def test_texts_of_unlike_lengths_have_a_row_each() -> None:
    task, network = TextTask(), writer()
    found = predict(network, task, task.splits["test"], tap=LAYER, batch_size=3)
    assert found.logits.shape == (20, 8)
    assert found.feature is not None
    longest = int(task.texts("test").length.max())
    assert found.feature.shape == (20, longest, 16)
    whole = predict(network, task, task.splits["test"], tap=LAYER)
    torch.testing.assert_close(found, whole)
    for row in range(20):
        text = task.texts("test")
        prompt, length = int(text.prompt[row]), int(text.length[row])
        tokens = text.tokens[row, :length].long()
        with torch.no_grad():
            said = network(input_ids=tokens[None], output_hidden_states=True)
        torch.testing.assert_close(found.logits[row], said.logits[0, prompt - 1])
        assert found.labels[row] == tokens[prompt]
        assert not found.feature[row, length:].any()
        assert found.feature[row, :length].any(1).all()


def test_a_prompt_without_an_answer_has_a_row_too() -> None:
    task, network = TextTask(labelled=4), writer()
    found = predict(network, task, task.splits["train"], batch_size=3)
    assert (found.labels[:4] >= 0).all()
    assert (found.labels[4:] == -100).all()
    assert found.logits[:4].any(1).all()
    assert not found.logits[4:].any()


def test_texts_with_a_class_too() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.words(input_ids) * attention_mask.unsqueeze(-1)
            logits: torch.Tensor = self.head(states.sum(1))
            return logits

    lengths = torch.tensor([2, 5, 1, 3, 4])
    tokens = torch.arange(25).reshape(5, 5) % 19 + 1
    given = {"tokens": tokens, "length": lengths, "labels": [0, 1, 0, 1, -100]}
    both = {f"{part}_{key}": value for part in ("train", "test") for key, value in given.items()}
    task = TextClassification(data.tensors(**both))
    network = Words()
    found = predict(network, task, task.splits["test"], tap="words", batch_size=2)
    assert found.labels.tolist() == [0, 1, 0, 1, -100]
    assert found.feature is not None
    assert found.feature.shape == (5, 5, 4)
    for row, length in enumerate(lengths.tolist()):
        alone = tokens[row : row + 1, :length]
        wanted = network(alone, torch.ones_like(alone))
        torch.testing.assert_close(found.logits[row : row + 1], wanted)
        assert not found.feature[row, length:].any()
