"""Losses of token distributions and of sentence embeddings."""

from functools import partial

import torch
from torch import Tensor

from congener import losses
from congener.conformance.table.case import LossCase, logits, pooled

__all__ = ["LOSSES"]


def texts(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Logits of texts in one tokenizer, (batch, 3, 5)."""
    return logits(seed, batch, (3, 5))


def foreign_texts(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Logits of texts in two tokenizers, (batch, 4, 5) and (batch, 3, 6)."""
    student, teacher = texts(seed, batch)
    extra = logits(seed + 100, batch, (3, 1))[1]
    return torch.cat([student, student[:, :1].flip(2)], dim=1), torch.cat([teacher, extra], dim=2)


def scores_and_margins(seed: int, batch: int = 7) -> tuple[Tensor, Tensor]:
    """Scores of a positive and four negatives, (batch, 5), and margins, (batch, 4)."""
    student, teacher = logits(seed, batch)
    return student, teacher[:, :1] - teacher[:, 1:]


LOSSES: dict[str, LossCase] = {
    "gkd": LossCase(
        ("GKDLoss", "gkd_loss"), losses.gkd_loss, module=losses.GKDLoss, batch_coupled=False
    ),
    **{
        f"gkd_{name}": LossCase(
            (),
            partial(losses.gkd_loss, beta=beta, temperature=temperature),
            module=partial(losses.GKDLoss, beta, temperature),
            batch_coupled=False,
            rate=rate,
        )
        for name, beta, temperature, rate in (
            ("forward", 0.0, 1.0, 0.1),
            ("reverse", 1.0, 1.0, 0.1),
            ("warm", 0.1, 2.0, 0.1),
        )
    },
    "skew_kl": LossCase(
        ("SkewKLLoss", "skew_kl_loss"),
        losses.skew_kl_loss,
        module=losses.SkewKLLoss,
        batch_coupled=False,
    ),
    "skew_kl_reverse": LossCase(
        (),
        partial(losses.skew_kl_loss, direction="reverse", alpha=0.3, temperature=2.0),
        module=partial(losses.SkewKLLoss, 0.3, "reverse", 2.0),
        batch_coupled=False,
    ),
    "total_variation": LossCase(
        ("TotalVariationLoss", "total_variation_loss"),
        losses.total_variation_loss,
        module=losses.TotalVariationLoss,
        batch_coupled=False,
    ),
    "uld": LossCase(
        ("ULDLoss", "uld_loss"),
        losses.uld_loss,
        make=texts,
        module=losses.ULDLoss,
        batch_coupled=False,
        exempt={"wrong_arguments_are_told": "texts may have other numbers of tokens and words"},
    ),
    "uld_foreign": LossCase(
        (),
        partial(losses.uld_loss, temperature=2.0),
        make=foreign_texts,
        module=partial(losses.ULDLoss, 2.0),
        batch_coupled=False,
    ),
    "embedding_mse": LossCase(
        ("EmbeddingMSELoss", "embedding_mse_loss"),
        losses.embedding_mse_loss,
        make=pooled,
        module=losses.EmbeddingMSELoss,
        batch_coupled=False,
    ),
    "margin_mse": LossCase(
        ("MarginMSELoss", "margin_mse_loss"),
        losses.margin_mse_loss,
        make=scores_and_margins,
        module=losses.MarginMSELoss,
        batch_coupled=False,
    ),
    "margin_mse_scores": LossCase(
        (),
        losses.margin_mse_loss,
        batch_coupled=False,
        exempt={"wrong_arguments_are_told": "with a column less the teacher's are margins"},
    ),
    "score_kl": LossCase(
        ("ScoreKLLoss", "score_kl_loss"),
        losses.score_kl_loss,
        module=losses.ScoreKLLoss,
        batch_coupled=False,
    ),
}
