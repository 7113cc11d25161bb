"""A number for each sample that tells what a network was shown.

Of each input of a sample it has the norm (its logarithm) and the direction (a fixed random
projection of it). Two inputs that differ by a share r of their norm have another one with a
probability of about 1 - 1e-4 / r; rounding on another device moves it by a millionth.

Of a text it has two numbers, a hash of the tokens, of where they stand and of which the teacher
answers for. How far the batch is padded does not count; another text has others, with a probability
of 1 - 2⁻⁴⁸.
"""

import math
import zlib
from functools import lru_cache

import torch
from torch import Tensor

from congener.errors import RecipeError
from congener.ops.keyed_random import keyed_uniform
from congener.types import Batch

__all__ = ["TEXT", "TOLERANCE", "witness"]

TOLERANCE = 1e-4
"""Two numbers that differ by no more are of the same inputs; ours."""
TEXT = (2,)
"""The shape of what is kept of a text."""
SEED = 2026
LEAST_NORM = 1e-300


def witness(batch: Batch, answered: Tensor | None = None) -> Tensor:
    """A float32 number for each sample of a prepared batch, (batch,); of a text, (batch, 2).

    Labels and sample ids are no inputs; what is no tensor is not seen. Of a text, ``tokens`` are
    the input, where ``mask`` says that there are some.

    Args:
        batch: a prepared batch.
        answered: of texts, which tokens the logits answer for: ``Task.token_mask``.

    Raises:
        RecipeError: texts without their ``tokens`` and ``mask``.

    >>> images = torch.tensor([[1.0, 2.0], [1.0, 2.1], [1.0, 2.0]])
    >>> a, b, c = witness({"index": torch.tensor([4, 5, 6]), "image": images})
    >>> bool(a == c), bool((a - b).abs() > TOLERANCE)
    (True, True)
    """
    if answered is not None:
        return _of_text(batch, answered)
    index: Tensor = batch["index"]
    rows = len(index)
    whole = torch.zeros(rows, dtype=torch.float64, device=index.device)
    for name, value in sorted(batch.items()):
        if name in ("index", "labels") or not isinstance(value, Tensor):
            continue
        if value.dim() and len(value) == rows and not value.is_complex():
            whole += _one(name, value.detach().unsqueeze(1).flatten(1).float())
    return whole.float()


def _of_text(batch: Batch, answered: Tensor) -> Tensor:
    tokens, mask = batch.get("tokens"), batch.get("mask")
    if tokens is None or mask is None or not tokens.shape == mask.shape == answered.shape:
        raise RecipeError(
            "Answers about tokens can be kept if batches have `tokens` and `mask`, each (batch, "
            "tokens) as token_mask, but this one does not; have the task's `prepare` add them."
        )
    places = torch.arange(tokens.shape[1], device=tokens.device)
    keys = (places << 33) + (tokens.long() << 1) + answered
    found = keyed_uniform(keys.flatten(), seed=SEED, epoch=1, count=TEXT[0]).double()
    summed = (found.view(*keys.shape, -1) * mask.unsqueeze(-1)).sum(1)  # exact: multiples of 2⁻²⁴
    hashed: Tensor = (summed.frac() * 2**24).float()
    return hashed


def _one(name: str, value: Tensor) -> Tensor:
    with torch.autocast(value.device.type, enabled=False):
        projected = value.mv(_direction(name, value.shape[1], value.device))
    norm = _norm(value).clamp(min=LEAST_NORM)
    found: Tensor = projected / norm + norm.log()
    return found


def _norm(value: Tensor) -> Tensor:
    """The norm of each row, in float64, where no square of a float32 is too large or too small."""
    norm: Tensor = torch.linalg.vector_norm(value, dim=1)  # ten times as fast
    lowest, highest = norm.aminmax() if len(norm) else (1, 1)
    if not 0 < lowest <= highest < math.inf:
        norm = torch.linalg.vector_norm(value, dim=1, dtype=torch.float64)
    return norm.double()


@lru_cache(maxsize=16)
def _direction(name: str, count: int, device: torch.device) -> Tensor:
    """Numbers of mean 0 and variance 1 that depend on nothing but their place."""
    key = torch.tensor([zlib.crc32(name.encode())])
    uniform = keyed_uniform(key, seed=SEED, epoch=0, count=count)[0]
    return ((2 * uniform - 1) * math.sqrt(3)).to(device)
