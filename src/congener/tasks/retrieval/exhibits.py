"""The picture that retrieval adds to a report: a query and what networks find for it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from congener.task import Task
from congener.types import Exhibit, Panel

from .data.splits import IdentityDataset
from .metrics import closeness

__all__ = ["nearest_images"]

SHOWN = 10
BLOCK = 256
"""Images that a network sees at once."""


def nearest_images(
    networks: Mapping[str, nn.Module], task: Task, test: IdentityDataset, names: tuple[str, ...]
) -> Exhibit:
    """A row for each network: the query, and its nearest images of other cameras.

    The query is the first of the test set whose nearest image is right for some of the networks
    and wrong for others; where they all agree, the first that has a right image.
    """
    nearest = {name: _nearest(network, task, test) for name, network in networks.items()}
    labels, cameras = test.labels, test.cameras
    known = labels >= 0
    same = (labels[:, None] == labels) & (cameras[:, None] != cameras) & known
    answerable = same.any(1) & known
    hits = torch.stack([labels[ranked[:, 0]] == labels for ranked in nearest.values()])
    split = answerable & hits.any(0) & ~hits.all(0)
    query = int((split if split.any() else answerable).int().argmax())

    def panel(image: int, hit: bool | None) -> Panel:
        label = int(labels[image])
        caption = names[label] if 0 <= label < len(names) else f"identity {label}"
        return Panel(caption, test.images[image].permute(1, 2, 0), hit=hit)

    rows = {
        name: [
            panel(query, None),
            *(
                panel(image, bool(same[query, image]))
                for image in ranked[query].tolist()
                if known[image] and cameras[image] != cameras[query]
            ),
        ]
        for name, ranked in nearest.items()
    }
    return Exhibit(
        "A query and what is found for it",
        "First the query, an image of an identity that training never saw; then the images of "
        f"other cameras, nearest first, up to {SHOWN}. The query is the first of the test set on "
        "whose nearest image the rows disagree.",
        rows,
    )


def _nearest(network: nn.Module, task: Task, test: IdentityDataset) -> Tensor:
    """For each image, the nearest of other cameras, (images, up to ten)."""
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    blocks = torch.split(torch.arange(len(test)), BLOCK)
    found = []
    with torch.no_grad():
        for rows in blocks:
            raw = {k: v.to(device) for k, v in test.__getitems__(rows.tolist()).items()}
            batch = task.prepare(raw, train=False, seed=0, epoch=0)
            found.append(task.logits(task.call(network, batch)).float().cpu())
    network.train(was_training)
    embedding = torch.cat(found)
    ranked = []
    for rows in blocks:
        outside = (test.cameras[rows, None] == test.cameras) | (test.labels < 0)
        similarity = closeness(embedding[rows], embedding).masked_fill(outside, -2.0)
        ranked.append(similarity.topk(min(SHOWN, len(test)), dim=1).indices)
    return torch.cat(ranked)
