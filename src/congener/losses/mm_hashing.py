r"""Multimodal similarity-preserving hashing, MM-NN (Masci et al., IEEE TPAMI 2014).

Images and their tags, say, get codes in one space: like ones coincide, unlike ones stay apart.

.. math::
    L = L_{xy} + \alpha_x L_{xx} + \alpha_y L_{yy}, \qquad
    L_{xy} = \frac{1}{2 |P|} \sum_{P} \| x_i - y_j \|_2^2
        + \frac{\beta}{2 |N|} \sum_{N} \max(0, m - \| x_i - y_j \|_2)^2

=========================  ======================================  ======================
symbol                     argument                                default
=========================  ======================================  ======================
:math:`x, y`               ``first_code``, ``second_code``         in (−1, 1), as by tanh
:math:`m`                  ``margin``; ``first_``, ``second_...``  2, ours
:math:`\alpha_x, \alpha_y` ``first_weight``, ``second_weight``     0.3, ours
:math:`\beta`              ``negative_weight``                     1, the paper's formula
=========================  ======================================  ======================

Conventions
    P are all ordered pairs with a label in common, a sample with itself included, and N the others;
    sample numbers as labels make each its only like. A margin keeps margin²/4 bits apart and must
    stay below 2 √bits. :func:`congener.losses.binary_codes` reads the bits, after training only.

Differences from the authors' code
    None was found. Means for the paper's sums over lists of pairs, margins and α are ours. A public
    version (craffel/midi-dataset) has L_xy alone, no halves, and positives' mean over bits.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from congener.losses.base import Loss
from congener.losses.mm_hashing_parts import check_codes, check_margins, known_rows, pair_terms
from congener.ops.collectives import Scope
from congener.ops.precision import upcast
from congener.ops.reduction import Reduction, check_reduction, reduce_samples
from congener.types import Paper

__all__ = ["MMHashingLoss", "mm_hashing_loss"]


def mm_hashing_loss(
    first_code: Float[Tensor, "batch bits"],
    second_code: Float[Tensor, "batch bits"],
    labels: Int[Tensor, "batch *classes"] | Bool[Tensor, "batch classes"],
    *,
    margin: float = 2.0,
    first_margin: float = 2.0,
    second_margin: float = 2.0,
    first_weight: float = 0.3,
    second_weight: float = 0.3,
    negative_weight: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
    reduction: Reduction = "mean",
    scope: Scope = "global",
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Contrastive loss of the codes of two modalities, between and within them.

    Args:
        first_code: (batch, bits), of the samples in one modality.
        second_code: (batch, bits), of the same samples in the other; gradient flows into both.
        labels: (batch,), or (batch, classes) of 0 and 1; negative: not known, as if absent.
        margin: m between the modalities.
        first_margin: m within the first.
        second_margin: m within the second.
        first_weight: α of the term within the first.
        second_weight: α of the term within the second.
        negative_weight: β, weight of the unlike pairs.
        mask: (batch,), which samples count; the others are as if absent.
        reduction: ``"mean"``, ``"none"``: what each sample adds to it, or ``"sum"`` of those.
        scope: ``"global"``: pairs of all processes; ``"local"``: of this one.

    Returns:
        A scalar, or (batch,) for ``"none"``; at least float32.

    Raises:
        ShapeError: the codes differ in shape, or the labels or the mask do not fit.
        ValueError: a wrong type, a negative margin, an unknown word.

    >>> first, second = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0], [0.0]])
    >>> mm_hashing_loss(first, second, torch.tensor([0, 1]), first_weight=0, second_weight=0)
    tensor(0.5000)
    """
    check_codes(first_code, second_code, labels, mask)
    check_margins(margin=margin, first_margin=first_margin, second_margin=second_margin)
    check_reduction(reduction, scope)
    margins, weights = (margin, first_margin, second_margin), (1.0, first_weight, second_weight)
    mask = known_rows(labels, mask)
    with torch.autocast(first_code.device.type, enabled=False):
        codes = upcast(first_code, second_code)
        per_sample = pair_terms(codes, labels, margins, weights, negative_weight, mask, scope)
        return reduce_samples(per_sample, mask, reduction=reduction, scope=scope)


@final
class MMHashingLoss(Loss):
    """Codes of two modalities, between and within them; see :func:`mm_hashing_loss`."""

    name = "mm_hashing"
    paper = Paper(
        title="Multimodal similarity-preserving hashing",
        authors="Jonathan Masci, Michael M. Bronstein, Alexander M. Bronstein, Jürgen Schmidhuber",
        venue="IEEE TPAMI",
        year=2014,
        url="https://arxiv.org/abs/1207.1522",
    )
    equation = "L = Lxy + αx·Lxx + αy·Lyy,  Lxy = ½ mean_P d² + β·½ mean_N max(0, m − d)²"
    family = "contrast"
    zero_at_match = False
    needs_labels = True
    batch_coupled = True
    sources: ClassVar = {
        **dict.fromkeys(("margin", "first_margin", "second_margin"), "ours: one bit apart"),
        **dict.fromkeys(("first_weight", "second_weight"), "ours: less than the common term"),
        "negative_weight": "the paper's formula, as a public version quotes it: 1",
        "reduction": "ours: means over pairs for the paper's sums",
        "scope": "ours: the batch is the global batch",
    }

    def __init__(
        self,
        margin: float = 2.0,
        first_margin: float = 2.0,
        second_margin: float = 2.0,
        first_weight: float = 0.3,
        second_weight: float = 0.3,
        negative_weight: float = 1.0,
        *,
        reduction: Reduction = "mean",
        scope: Scope = "global",
    ) -> None:
        super().__init__()
        check_margins(margin=margin, first_margin=first_margin, second_margin=second_margin)
        check_reduction(reduction, scope)
        self.margin, self.first_margin, self.second_margin = margin, first_margin, second_margin
        self.first_weight, self.second_weight = first_weight, second_weight
        self.negative_weight, self.reduction, self.scope = negative_weight, reduction, scope

    def forward(
        self,
        first_code: Float[Tensor, "batch bits"],
        second_code: Float[Tensor, "batch bits"],
        labels: Int[Tensor, "batch *classes"] | Bool[Tensor, "batch classes"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
        """Call :func:`mm_hashing_loss` with the stored hyper-parameters."""
        return mm_hashing_loss(first_code, second_code, labels, mask=mask, **self.options)
