"""Short texts and two language models so small that a step takes some milliseconds."""

import math

import torch
from torch import nn

from congener.tasks.language_modelling import LanguageModelling, Splits, Vocabulary
from congener.tasks.language_modelling.data.splits import divide, encoded
from congener.tasks.language_modelling.metrics import AnswerMetrics

EOS, PAD, EQUALS = 6, 7, 5


class TextTask(LanguageModelling):
    """Up to five digits, and the same in order; the figure is the mean cross-entropy."""

    def __init__(self, count: int = 50, labelled: int | None = None, digits: int = 5) -> None:
        super().__init__(_texts(count, labelled, digits), generate=False)
        self.metric, self.higher_is_better = "cross_entropy", False

    def metrics(self, device: torch.device) -> "_Nats":
        return _Nats(self, device)


class _Nats(AnswerMetrics):
    def compute(self) -> dict[str, float]:
        return {"cross_entropy": math.log(super().compute()["perplexity"])}


def _texts(count: int, labelled: int | None, most: int) -> Splits:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for place in range(count + 20):
        digits = torch.randint(5, (1 + place % most,), generator=generator).tolist()
        pairs.append(([*digits, EQUALS], [*sorted(digits), EOS]))
    whole = encoded(pairs, PAD)
    vocabulary = Vocabulary(8, EOS, PAD, str, "the tiny vocabulary")
    return divide(
        "the tiny texts", whole.part(slice(count)), whole.part(slice(count, None)), vocabulary,
        one_answer=True, labelled=labelled,
    )  # fmt: skip


def writer(width: int = 16, *, seed: int = 0, norm: bool = True) -> nn.Module:
    """A causal language model with random weights, sure enough of what it says.

    ``norm`` is as of the other networks: there is no batch normalisation to leave out.
    """
    torch.manual_seed(seed)
    task = TextTask(6)
    network = task.build_model("llama", hidden_size=width, layers=1, heads=2, tied=False)
    with torch.no_grad():
        network.lm_head.weight.mul_(5)
    return network


def writing_teacher() -> nn.Module:
    """A wider one."""
    return writer(24, seed=8)
