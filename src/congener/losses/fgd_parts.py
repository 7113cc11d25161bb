"""What FGD is made of: its weights, its focal terms, and its global one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from congener.errors import ShapeError
from congener.ops.checks import check_choice, check_temperature
from congener.ops.reduction import blank_rows, check_reduction

__all__ = ["Weights", "check_options", "focal_terms", "relation_term"]

Weights = Literal["one_stage", "two_stage", "anchor_free"] | Sequence[float]
"""α, β, γ and λ, or the kind of detector whose published ones are meant."""

PUBLISHED = {
    "one_stage": (1e-3, 5e-4, 5e-4, 5e-6),
    "two_stage": (5e-5, 2.5e-5, 5e-5, 5e-7),
    "anchor_free": (1.6e-3, 8e-4, 8e-4, 8e-6),
}


def four_weights(weights: Weights) -> tuple[float, float, float, float]:
    """α, β, γ and λ.

    Raises:
        ValueError: an unknown kind of detector, or not four numbers.
    """
    if isinstance(weights, str):
        check_choice("weights", weights, tuple(PUBLISHED))
        return PUBLISHED[weights]
    if len(weights) != 4:
        raise ValueError(f"weights must be four numbers, α, β, γ and λ, not {weights}.")
    alpha, beta, gamma, relation = weights
    return alpha, beta, gamma, relation


def check_options(weights: Weights, temperature: float, reduction: str, scope: str) -> None:
    """The options must be sensible.

    Raises:
        ValueError: one is not.
    """
    four_weights(weights)
    check_temperature(temperature)
    check_reduction(reduction, scope)


def focal_terms(
    student: Tensor, teacher: Tensor, marks: Tensor, weights: Weights, temperature: float
) -> Tensor:
    """Foreground, background and attention terms of each image, with their weights.

    Args:
        student: (batch, channels, height, width).
        teacher: of the same shape.
        marks: (batch, height, width), 0 in the background.
        weights: α, β, γ and λ, which is not used.
        temperature: of the attentions.
    """
    alpha, beta, gamma, _ = four_weights(weights)
    behind = (marks <= 0).to(marks.dtype)
    behind = behind / behind.sum(dim=(1, 2), keepdim=True).clamp(min=1)
    places, channels = _attentions(teacher, temperature)
    own_places, own_channels = _attentions(student, temperature)
    focus = (alpha * marks + beta * behind) * places
    focal = torch.einsum("nchw,nhw,nc->n", (teacher - student).square(), focus, channels)
    attention = (places - own_places).abs().sum(dim=(1, 2))
    return focal + gamma * (attention + (channels - own_channels).abs().sum(dim=1))


def _attentions(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Shares of the places (batch, height, width) and of the channels, each of mean 1."""
    size = feature.abs()
    places = size.mean(dim=1)
    shares = torch.softmax(places.flatten(1) / temperature, dim=1).reshape(places.shape)
    channels = torch.softmax(size.mean(dim=(2, 3)) / temperature, dim=1)
    return shares * feature.shape[2:].numel(), channels * feature.shape[1]


def relation_term(
    student: Tensor,
    teacher: Tensor,
    student_context: Tensor | None,
    teacher_context: Tensor | None,
    weights: Weights,
    mask: Tensor | None,
) -> Tensor:
    """Global term of each image, with its weight: the maps with their contexts at each place.

    Raises:
        ShapeError: a context is not (batch, channels).
    """
    gap = _add_context(teacher, teacher_context, mask)
    gap = gap - _add_context(student, student_context, mask)
    return four_weights(weights)[3] * gap.square().sum(dim=(1, 2, 3))


def _add_context(feature: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    if context is None:
        return feature
    if context.shape != feature.shape[:2]:
        raise ShapeError(
            f"a context {tuple(context.shape)} must be (batch, channels) = "
            f"{tuple(feature.shape[:2])} for the map {tuple(feature.shape)}; pool the places."
        )
    return feature + blank_rows(context, mask).to(feature.dtype)[:, :, None, None]
