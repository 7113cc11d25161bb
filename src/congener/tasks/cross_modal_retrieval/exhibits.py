"""Pictures of what codes find: a query of each modality, and its ten nearest in the other."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from congener.types import Exhibit, Panel

from .data.splits import PairDataset, as_text, kind_of
from .index import hamming, pack_codes

if TYPE_CHECKING:
    from .task import CrossModalRetrieval

__all__ = ["codes_of", "item_labels", "item_name", "neighbours"]

NEAREST = 10
QUERIES = 100
AT_ONCE = 512


@torch.no_grad()
def codes_of(network: nn.Module, task: "CrossModalRetrieval", dataset: PairDataset) -> Tensor:
    """The codes of a data set, (items, 2, bits), on the CPU."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    codes = []
    for places in torch.split(torch.arange(len(dataset)), AT_ONCE):
        raw = dataset.__getitems__(places.tolist())
        batch = task.prepare(
            {name: value.to(device) for name, value in raw.items()}, train=False, seed=0, epoch=0
        )
        codes.append(task.logits(task.call(network, batch)).float().cpu())
    return torch.cat(codes)


def neighbours(
    task: "CrossModalRetrieval", networks: Mapping[str, nn.Module]
) -> tuple[Exhibit, ...]:
    """For a query of either modality, what each network finds in the other.

    It is a typical one of the first hundred: the median by how many of its nearest are hits, over
    all networks. Equally near items come in the order of the database.
    """
    test, aligned = task.divided.test, task.pairs == "aligned"
    asks = task.asking().nonzero().flatten()[:QUERIES]
    searched = task.searched().nonzero().flatten()
    alike = _alike(task, asks, searched)
    codes = {name: pack_codes(codes_of(net, task, test)) for name, net in networks.items()}
    shown = []
    for one, other in ((0, 1), (1, 0)):
        nearest = {
            name: hamming(code[asks, one], code[searched, other]).argsort(dim=1, stable=True)
            for name, code in codes.items()
        }
        nearest = {name: places[:, :NEAREST] for name, places in nearest.items()}
        hits = {name: alike.gather(1, places) for name, places in nearest.items()}
        total = torch.stack([hit.sum(1) for hit in hits.values()]).sum(0)
        typical = int(total.argsort(stable=True)[len(total) // 2])
        rows = {"query": [_panel(task, int(asks[typical]), one)]}
        for name, places in nearest.items():
            rows[name] = [
                _panel(task, int(searched[place]), other, hit=bool(hit))
                for place, hit in zip(places[typical], hits[name][typical], strict=True)
            ]
        shown.append(
            Exhibit(
                title=f"What {_called(task, one)} finds among {_called(task, other, many=True)}",
                text=f"A typical query, and for each network the {NEAREST} items of the database "
                "whose codes differ from its code in the fewest bits, the nearest first. A hit "
                + ("is the query itself." if aligned else "shares a label with the query.")
                + f" Typical: of the first {len(asks)} queries the median by hits, over all rows.",
                rows=rows,
            )
        )
    return tuple(shown)


def _called(task: "CrossModalRetrieval", side: int, *, many: bool = False) -> str:
    """A modality in words: by its kind, or where both are of one kind by its place."""
    kind = task.kinds[side]
    if task.kinds[0] != task.kinds[1]:
        return f"{kind}s" if many else f"{'an' if kind == 'image' else 'a'} {kind}"
    place = ("first", "second")[side]
    return f"{kind}s of the {place} modality" if many else f"one {kind} of the {place} modality"


def _alike(task: "CrossModalRetrieval", asks: Tensor, searched: Tensor) -> Tensor:
    """Which items of the database are relevant to which queries, (queries, items), bool."""
    labels = task.divided.test.pairs.labels
    if task.pairs == "aligned":
        return asks.unsqueeze(1) == searched
    if labels.ndim == 1:
        return labels[asks].unsqueeze(1) == labels[searched]
    return labels[asks].float() @ labels[searched].float().T > 0


def item_name(task: "CrossModalRetrieval", place: int) -> str:
    """The text of a test item, where one of its modalities is text; otherwise its place."""
    columns = task.divided.test.pairs[:2]
    words = [as_text(column[place]) for column in columns if kind_of(column) == "text"]
    return words[0] if words else f"item {place}"


def item_labels(task: "CrossModalRetrieval", place: int) -> list[str]:
    """The labels of a test item by their names, or by their numbers where these have none."""
    label, names = task.divided.test.pairs.labels[place], task.divided.label_names
    numbers = [int(label)] if label.ndim == 0 else (label > 0).nonzero().flatten().tolist()
    return [names[n] if n < len(names) else str(n) for n in numbers if n >= 0]


def _panel(task: "CrossModalRetrieval", place: int, side: int, hit: bool | None = None) -> Panel:
    """A test item in one modality, with its name and its labels below."""
    items = task.divided.test.pairs[side]
    labels = ", ".join(item_labels(task, place))
    caption = item_name(task, place) + (f" ({labels})" if labels else "")
    item, picture = items[place], None
    if kind_of(items) == "image" and item.shape[0] in (1, 3):
        pixels = item if item.dtype == torch.uint8 else _stretched(item)
        picture = pixels.expand(3, -1, -1).permute(1, 2, 0)
    return Panel(caption, picture, hit=hit)


def _stretched(image: Tensor) -> Tensor:
    """A picture of floats as one of bytes, from its least to its greatest value."""
    low, high = image.amin(), image.amax()
    return ((image - low) / (high - low).clamp(min=1e-12) * 255).to(torch.uint8)
