"""What language models have read: caches whose rows may forget different tokens.

A row that forgets a token leaves a hole, which attention skips; holes are squeezed out when there
are many. Rows so never wait for each other.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from congener.generation.texts import Texts, resting, vocabulary_of

__all__ = ["Reader", "Slots", "check_writes"]

_WASTE, _LEAST = 1.25, 8  # squeezed when there are so many times the slots needed, and more (ours)
_FAR, _FAR_IN_HALF = 1e-4, 0.02  # of the spread of a network's logits; rounding is less (ours)
_FORGETS: "WeakSet[nn.Module]" = WeakSet()
"""Networks that were seen to skip a hole."""


class Reader:
    """A causal language model of transformers and its cache, one slot for each token that it read.

    Args:
        model: the network.

    Raises:
        TypeError: it takes no cache, or no positions, or does not go by them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls = 0
        self.longest = 0
        self._cache: Any = None
        self._unread: tuple[Tensor, Tensor] | None = None
        parameters = inspect.signature(model.forward).parameters
        named = {"position_ids", "past_key_values", "attention_mask", "use_cache"}
        if not named <= set(parameters) and not _any_name(parameters.values()):
            raise TypeError(
                f"{type(model).__name__} takes no {', '.join(sorted(named - set(parameters)))}; "
                "only congener.generation.interleave_sequential can write with it."
            )
        self._keeps_last = "logits_to_keep" in parameters
        if model not in _FORGETS:
            _FORGETS.add(model)  # while it is looked at, too
            try:
                _check_forgets(model)
            except BaseException:
                _FORGETS.discard(model)
                raise

    def begin(self, tokens: Tensor, positions: Tensor) -> None:
        """Tokens to be read before those of the next call, in one pass with them.

        Args:
            tokens: (rows, before).
            positions: of each in its text, (rows, before).
        """
        self._unread = tokens, positions

    def read(self, tokens: Tensor, positions: Tensor, alive: Tensor | None) -> Tensor:
        """Read further tokens, (rows, n).

        Args:
            tokens: (rows, n).
            positions: of each in its text, (rows, n).
            alive: which slots count, the new ones included, (rows, slots + n); None: all.

        Returns:
            their logits, (rows, n, vocab).

        Raises:
            TypeError: a network whose cache cannot forget.
        """
        self.calls += 1
        wanted = tokens.shape[1]
        if self._unread is not None:
            before, self._unread = self._unread, None
            tokens, positions = (
                torch.cat([before[0], tokens], 1),
                torch.cat([before[1], positions], 1),
            )
        slots = 0 if self._cache is None else self._cache.get_seq_length()
        result = self.model(
            input_ids=tokens,
            attention_mask=None if alive is None else alive.long(),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **({"logits_to_keep": wanted} if self._keeps_last else {}),
        )
        self._cache = getattr(result, "past_key_values", None)
        for layer in getattr(self._cache, "layers", (None,)):
            _check_layer(self.model, layer, slots + tokens.shape[1], self.longest)
        logits: Tensor = result.logits[:, -wanted:]
        return logits

    def change(self, alter: Callable[[Tensor], Tensor]) -> None:
        """Alter all keys and values, (rows, heads, slots, dims)."""
        for layer in () if self._cache is None else self._cache.layers:
            if isinstance(layer.keys, Tensor):
                layer.keys, layer.values = alter(layer.keys), alter(layer.values)
            if hasattr(layer, "cumulative_length"):
                layer.cumulative_length = layer.keys.shape[-2]


def check_writes(model: nn.Module) -> None:
    """A network that is to write must have a cache that can forget, and go by its positions.

    Raises:
        TypeError: it has not.
    """
    vocabulary_of(model)
    Reader(model)


class Slots:
    """Which slots of the caches hold a token of the text; readers share them.

    Before and after each block the readers have read every token but the last; the prompts they
    read with the first block, whose padding is a hole.

    Args:
        readers: they are to read the prompts.
        texts: whose prompts.
        rows: which of them are to be written on.
    """

    def __init__(self, readers: Sequence[Reader], texts: Texts, rows: Tensor) -> None:
        self._readers = readers
        read = texts.length[rows, None] - 1
        count = int(read.max()) if len(rows) else 0
        positions = torch.arange(count, device=rows.device).expand(len(rows), -1)
        self._alive = positions < read
        self._whole = bool(self._alive.all())
        for reader in readers:
            reader.longest = int(texts.limit[rows].max()) if len(rows) else 0
            if self._alive.numel():
                reader.begin(texts.tokens[rows, :count], positions)

    def with_new(self, count: int) -> Tensor | None:
        """Which slots count after reading ``count`` tokens more, (rows, slots); None: all."""
        if self._whole:
            return None
        return torch.cat([self._alive, self._alive.new_ones(len(self._alive), count)], dim=1)

    def settle(self, taken: Tensor, count: int, stay: Tensor) -> None:
        """Forget what was read in vain, and the rows that are finished.

        Args:
            taken: how many of the slots read last hold tokens of the text, (rows,).
            count: how many slots were read.
            stay: the places of the rows that go on, (rows that stay,).
        """
        taken = taken[stay]
        if not len(stay):
            return
        least, most = (int(each) for each in taken.aminmax())
        width = self._alive.shape[1] + most
        if len(stay) < len(self._alive):
            self._change(lambda states: states[stay, :, :width])
        elif most < count:
            self._change(lambda states: states[:, :, :width])
        new = torch.arange(most, device=taken.device) < taken[:, None]
        self._alive = torch.cat([self._alive[stay], new], dim=1)
        self._whole = self._whole and most == least
        if not self._whole:
            self._squeeze()

    def _squeeze(self) -> None:
        counts = self._alive.sum(1)
        longest = int(counts.max())
        if self._alive.shape[1] <= _WASTE * longest + _LEAST:
            return
        order = (~self._alive).sort(dim=1, stable=True).indices[:, :longest]
        self._change(lambda states: states.take_along_dim(order[:, None, :, None], dim=2))
        self._alive = self._alive.gather(1, order)
        self._whole = bool(self._alive.all())

    def _change(self, alter: Callable[[Tensor], Tensor]) -> None:
        for reader in self._readers:
            reader.change(alter)


def _any_name(parameters: Any) -> bool:
    return any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _check_forgets(model: nn.Module) -> None:
    """What follows a hole must be what follows the tokens before it.

    Raises:
        TypeError: positions or masks that go by the slots of the cache, as in MPT and RoBERTa.
    """
    known = vocabulary_of(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    first, second, third, wrong = (torch.tensor([[n % known]], device=device) for n in range(2, 6))
    steps = torch.arange(3, device=device)[None]
    with resting(model), torch.autocast(device.type, enabled=False):
        whole = model(input_ids=torch.cat([first, second, third], 1)).logits[0, -1]
        reader = Reader(model)
        reader.longest = 4
        reader.read(torch.cat([first, second, wrong], 1), steps, None)
        alive = torch.tensor([[True, True, False, True]], device=device)
        holed = reader.read(third, steps[:, 2:], alive)[0, -1]
    far = _FAR_IN_HALF if whole.element_size() < 4 else _FAR
    told = whole.isfinite() & holed.isfinite()  # -inf excludes a word
    whole, holed = whole[told], holed[told]
    if len(whole) and (whole - holed).abs().max() > far * (whole.max() - whole.min()):
        raise TypeError(
            f"To write, single tokens must be forgotten, but {type(model).__name__} goes by places "
            "in its cache instead of by the positions that it is given; take "
            "interleave_sequential, or a network like Llama or GPT-2."
        )


def _check_layer(model: nn.Module, layer: Any, slots: int, longest: int) -> None:
    """Its cache must hold keys and values of each token read, and nothing else."""
    keys = getattr(layer, "keys", None)
    if keys is None and getattr(layer, "is_initialized", False):
        return  # a layer that looks into another one's cache, or has no attention
    window = getattr(layer, "sliding_window", None)
    config = getattr(model, "config", None)
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's
        window = getattr(config, "window_size", None)
    other = [name for name in ("conv_states", "indexer_keys") if hasattr(layer, name)]
    fits = isinstance(keys, Tensor) and keys.dim() == 4 and keys.shape[2] == slots
    if other or not fits or (window and longest >= window):
        reason = f"a sliding window of {window} tokens" if window else "layers without such a cache"
        raise TypeError(
            f"To write, single tokens must be forgotten, but {type(model).__name__} has {reason}; "
            "write shorter texts than the window, or take interleave_sequential."
        )
