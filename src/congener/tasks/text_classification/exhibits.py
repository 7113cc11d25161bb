"""What texts add to a report: some test texts, and what each network says of them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from congener.taps import still
from congener.types import Exhibit, Panel

from .data.splits import TokenDataset, known_labels

if TYPE_CHECKING:
    from .task import TextClassification

__all__ = ["telling_texts"]

SHOWN, LETTERS = 4, 240
"""How many texts are shown, and how much of each."""
ASKED, BLOCK = 512, 64
"""Among how many test texts they are looked for, and how many a network sees at once."""


def telling_texts(
    task: "TextClassification", networks: Mapping[str, nn.Module]
) -> Sequence[Exhibit]:
    """Test texts that the student alone gets wrong and others right, or on which they differ most.

    They are looked for among the first 512 labelled texts of the test set. A network tells the
    class, with its probability; of numbers, the number.

    Args:
        task: whose test set it is.
        networks: by name, as in the report.
    """
    test = task.part("test")
    rows = known_labels(test.labels).nonzero().flatten()[:ASKED]
    some = test.part(rows)
    said = {name: _said(task, network, some) for name, network in networks.items()}
    if not said or not len(rows):
        return ()
    chosen = _telling(task, some.labels, said).tolist()
    shown = {"text": [Panel(f"{_truth(task, some, i)}: {_text(some, i)}") for i in chosen]}
    for name, logits in said.items():
        shown[name] = [_panel(task, logits[place], some.labels[place]) for place in chosen]
    limit = f"Networks read the first {task.max_tokens} tokens."
    return [
        Exhibit(
            "Texts, and what is said of them",
            "First the truth and the text, then the answer of each network: texts of the test set "
            f"which the student alone gets wrong and most others right. {limit}",
            shown,
        )
    ]


def _said(task: "TextClassification", network: nn.Module, some: TokenDataset) -> Tensor:
    """The logits of a network, (texts, classes)."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    found = []
    with still(network), torch.no_grad():
        for raw in DataLoader(some, BLOCK, collate_fn=task.collate):
            here = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in raw.items()}
            batch = task.prepare(here, train=False, seed=0, epoch=0)
            found.append(task.logits(task.call(network, batch)).float().cpu())
    return torch.cat(found)


def _telling(task: "TextClassification", labels: Tensor, said: Mapping[str, Tensor]) -> Tensor:
    """The places of the texts to show."""
    if task.regression:
        wrong = {name: (x.squeeze(1) - labels).abs() for name, x in said.items()}
    else:
        wrong = {name: (x.argmax(1) != labels).float() for name, x in said.items()}
    told = wrong.get("alone", 0) - torch.stack(list(wrong.values())).mean(0)
    return told.argsort(descending=True, stable=True)[:SHOWN]


def _panel(task: "TextClassification", logits: Tensor, label: Tensor) -> Panel:
    if task.regression:
        return Panel(f"{logits.item():.3g}")
    best = int(logits.argmax())
    sure = float(logits.softmax(0)[best])
    return Panel(f"{task.class_names[best]}, {sure:.0%}", hit=best == int(label))


def _truth(task: "TextClassification", some: TokenDataset, place: int) -> str:
    label = some.labels[place]
    return f"{label.item():.3g}" if task.regression else task.class_names[int(label)]


def _text(some: TokenDataset, place: int) -> str:
    if some.documents is None:
        tokens = some.tokens[place, : int(some.length[place])].tolist()
        text = "tokens " + " ".join(map(str, tokens))
    else:
        text = " / ".join(
            column[place] for column in (some.documents.first, some.documents.second) if column
        )
    return text if len(text) <= LETTERS else f"{text[:LETTERS].rstrip()} …"
