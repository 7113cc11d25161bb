"""Gradients of a batch that does not fit in memory, exact for every loss.

A loss that couples the samples of a batch is not the mean of its values on pieces. So the pieces
are observed without gradient, the loss is scored once on all of them, and each piece is observed
again to carry the loss' gradient at its outputs back to the weights (cached gradients). The
student runs forward twice; random layers repeat their draws, and buffers (BatchNorm statistics)
are touched once. BatchNorm itself normalises by the piece: that is the network, not the loss.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from congener.system import Balance, System, loss_balance
from congener.types import Batch, Outputs, Progress

__all__ = ["accumulated_step"]


def accumulated_step(
    system: System,
    batch: Batch,
    progress: Progress,
    pieces: int,
    accelerator: Accelerator,
    *,
    balance: bool = False,
) -> tuple[Tensor, dict[str, Tensor], Balance]:
    """Leave the gradient of the whole batch in the parameters; return what ``forward`` does.

    In the balance, the task's gradient does not reach the taps: the pieces' graphs are gone.
    """
    with accelerator.autocast():  # as in ``forward``
        batch = system.views(batch, progress)
    parts = _split(batch, pieces)
    random_states = []
    buffers = {name: value.clone() for name, value in system.named_buffers()}
    with torch.no_grad(), accelerator.autocast():
        taught = None if system.teacher is None else [system.teacher(part) for part in parts]
        observed = []
        for part in parts:
            random_states.append(_random_state())
            observed.append(system.observe(part))
        for name, value in system.named_buffers():
            value.copy_(buffers[name])
    whole = Outputs.concatenate(observed)
    leaf = Outputs(_leaf(whole.logits), {path: _leaf(v) for path, v in whole.features.items()})
    sizes = [len(part.logits) for part in observed]
    with accelerator.autocast():
        teacher = None if taught is None else Outputs.concatenate(taught)
        result = system.score(leaf, teacher, batch, progress)
        shares = loss_balance(leaf, result.terms, system.weights(progress)) if balance else {}
    accelerator.backward(result.total)

    gradients = zip(*(torch.split(_gradient(v), sizes) for v in _tensors(leaf)), strict=True)
    for part, state, upstream in zip(parts, random_states, gradients, strict=True):
        _set_random_state(state)
        with accelerator.autocast():
            outputs = _tensors(system.observe(part))
        pairs = [(o, g) for o, g in zip(outputs, upstream, strict=True) if o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    if accelerator.num_processes > 1:
        for parameter in system.parameters():
            if parameter.requires_grad:
                gradient = _gradient(parameter)
                parameter.grad = accelerator.reduce(gradient, "mean")
    return result.total, result.terms, shares


def _split(batch: Batch, pieces: int) -> list[Batch]:
    count = len(batch["index"])
    bounds = torch.arange(count).tensor_split(min(pieces, count))
    return [
        {key: _slice(value, part[0].item(), part[-1].item() + 1) for key, value in batch.items()}
        for part in bounds
    ]


def _slice(value: Any, start: Any, stop: Any) -> Any:
    return value[start:stop] if isinstance(value, Tensor | list | tuple) else value


def _tensors(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.features.values()]


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _gradient(value: Tensor) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad


def _random_state() -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
