r"""The supervised loss of metric learning: supervised contrast (Khosla et al., NeurIPS 2020).

.. math::
    L = \frac{1}{|A|} \sum_{i \in A} \frac{-1}{|P(i)|} \sum_{p \in P(i)}
        \log \frac{\exp(\cos(f_i, f_p) / \tau)}{\sum_{a \ne i} \exp(\cos(f_i, f_a) / \tau)}

Here a runs over the images with a label, P(i) are those of i's identity, and A the images that have
one. With two images of each identity this is NT-Xent (Chen et al., ICML 2020).
"""

import torch
from torch import Tensor

from congener.ops.collectives import gather_rows, global_mean
from congener.ops.precision import upcast
from congener.ops.reduction import blank_rows
from congener.ops.relations import unit_rows

__all__ = ["contrast"]

FAR = -1e30
"""The logit of what is no candidate: its probability is 0, and the logit is finite."""


def contrast(embedding: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Equation (2) of the paper, over the images with a label of the global batch.

    Args:
        embedding: (batch, dims), of any length.
        labels: identities, (batch,); negative: not known, then the image takes no part.
        temperature: τ.

    Returns:
        A scalar; 0, still attached to ``embedding``, where no two images are of one identity.
    """
    with torch.autocast(embedding.device.type, enabled=False):
        known = labels >= 0
        (embedding,) = upcast(embedding)
        unit = unit_rows(blank_rows(embedding, known))
        everyone, own = gather_rows(unit)
        identities, _ = gather_rows(labels)
        place = torch.arange(len(identities), device=labels.device)
        candidates = (identities >= 0) & (place != place[own, None])
        similarity = (unit @ everyone.T / temperature).masked_fill(~candidates, FAR)
        positive = candidates & (labels[:, None] == identities)
        count = positive.sum(1)
        likely = (similarity.log_softmax(1) * positive).sum(1)
        return global_mean(-likely / count.clamp(min=1), known & (count > 0))
