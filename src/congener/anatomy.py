"""What a network is made of, stage by stage, as one batch shows it.

A stage is all that a network does at one resolution; its end is the last module there. Nothing is
known of the architecture beforehand: maps, tokens and vectors are told apart by counting.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from congener.errors import RecipeError
from congener.taps import bare, still

__all__ = ["Anatomy", "Place", "dissect", "undisturbed"]

Kind = Literal["map", "channels last", "sequence", "tokens", "vector"]

EXTRA_TOKENS = 8
"""Class, distillation and register tokens that there may be beside the patches; ours."""
ISOTROPIC = 0.6
"""Share of the work at the last resolution from which its blocks are listed; ours."""
Size = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A tap: its path, and what it reads.

    Attributes:
        path: as :class:`congener.Taps` takes it.
        kind: how the axes lie; tokens are (tokens, width).
        shape: of one sample.
        size: height and width of a map or of the patches, the length of a sequence; () for a
            vector.
        depth: the share of the network's multiply-accumulates done when it is there, 0 to 1.
    """

    path: str
    kind: Kind
    shape: Size
    size: Size
    depth: float

    @property
    def as_map(self) -> str:
        """The tap that reads the same as (batch, channels, height, width)."""
        turned = self.kind in ("tokens", "channels last") and len(self.size) == 2
        return f"{self.path}:{self.size[0]}x{self.size[1]}" if turned else self.path

    @property
    def extra(self) -> int:
        """Tokens that are no patch."""
        return self.shape[0] - math.prod(self.size) if self.kind == "tokens" else 0

    def row(self) -> tuple[str, str, str, str]:
        """Cells for a table: path, kind, shape, depth."""
        kind = f"tokens, {self.extra} extra" if self.extra else self.kind
        shape = " × ".join(map(str, self.shape))
        return self.path, kind, shape, f"{100 * self.depth:.0f} %"


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A network's stages from shallow to deep, and its last feature.

    Attributes:
        name: of the network's class.
        stages: the ends of its stages, or the blocks of a network of one resolution.
        isotropic: whether they are blocks of one resolution.
        head: what its classifier reads, a vector; ``None`` where that cannot be told.
        classes: how many logits it gives.
        parameters: how many numbers it learns.
        macs: multiply-accumulates for one sample.
    """

    name: str
    stages: tuple[Place, ...]
    isotropic: bool
    head: Place | None
    classes: int
    parameters: int
    macs: int

    def __str__(self) -> str:
        places = [*self.stages, *([self.head] if self.head else [])]
        rows = [("tap", "kind", "shape", "depth"), *(place.row() for place in places)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        lines += [] if places else ["(nothing can be tapped)"]
        return "\n".join(line.rstrip() for line in [f"{self.name}:", *lines])


@dataclass(slots=True)
class _Seen:
    """What one module did in the forward."""

    path: str
    module: nn.Module
    given: Tensor | None = None
    given_version: int = 0
    output: Tensor | None = None
    version: int = 0
    fired: int = 0
    flops: int = 0  # done in the network when it ended
    layers: int = 0  # linear layers that had run before it ended


@contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Run a network in evaluation mode and without gradient; it is as before afterwards."""
    with still(network), torch.no_grad():  # FlopCounterMode would look for parameters' gradients
        yield


def dissect(network: nn.Module, run: Callable[[], Tensor]) -> Anatomy:
    """Run a network once and list its stages.

    Args:
        network: any module.
        run: calls it on a batch and returns its logits, (batch, classes).

    Raises:
        RecipeError: a batch of fewer than 2 samples, or a network that reads no tensor.
    """
    inner = bare(network)
    seen = {module: _Seen(path, module) for path, module in inner.named_modules() if path}
    order: list[_Seen] = []
    root = _Seen("", inner)
    with undisturbed(network), FlopCounterMode(display=False) as counter:
        handles: list[Any] = [
            inner.register_forward_pre_hook(partial(_enter, root), with_kwargs=True)
        ]
        for module, record in seen.items():
            enter, leave = partial(_enter, record), partial(_leave, record, order, counter)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        try:
            logits = run()
        finally:
            for handle in handles:
                handle.remove()
    image = root.given
    if image is None or len(image) < 2 or len(logits) != len(image):
        raise RecipeError(
            f"A plan needs a batch of at least 2 samples that {type(inner).__name__} reads as one "
            "tensor, and logits for each; give such a batch."
        )
    reader = _Reader(order, logits, image, max(counter.get_total_flops(), 1))
    stages, isotropic = reader.stages()
    return Anatomy(
        type(inner).__name__, stages, isotropic, reader.head(), logits.shape[-1],
        sum(parameter.numel() for parameter in inner.parameters()),
        counter.get_total_flops() // 2 // len(image),
    )  # fmt: skip


def _enter(record: _Seen, _: nn.Module, args: Any, named: dict[str, Any]) -> None:
    given = next((x for x in (*args, *named.values()) if isinstance(x, Tensor)), None)
    if given is not None:
        record.given, record.given_version = given, given._version


def _leave(
    record: _Seen, order: list[_Seen], counter: FlopCounterMode, module: nn.Module, _: Any, out: Any
) -> None:
    record.fired += 1
    record.flops = counter.get_total_flops()
    layers = order[-1].layers if order else 0
    record.layers = layers + isinstance(module, nn.Linear)
    out = out[0] if isinstance(out, tuple | list) and out else out
    if isinstance(out, Tensor):
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.inplace and module.p > 0:
            out.mul_(1)  # as in training, where it changes what other taps have read
        record.output, record.version = out, out._version
    order.append(record)


class _Reader:
    """Tells stages from what was seen."""

    def __init__(self, order: list[_Seen], logits: Tensor, image: Tensor, total: int) -> None:
        self.order, self.logits, self.image, self.total = order, logits, image, total
        self.batch = len(image)
        outputs = [(r.module, r.output) for r in order if r.output is not None]
        self.convolved = {
            tuple(out.shape[2:]) for module, out in outputs if isinstance(module, nn.Conv2d)
        }
        self.by_width = not any(isinstance(module, nn.Conv1d) for module, _ in outputs)
        self.counts = {out.shape[1] for _, out in outputs if out.dim() == 3}
        self.sizes = {r.path: (self._size(r.given), self._size(r.output)) for r in order}
        self.by_path = {record.path: record for record in order}

    def stages(self) -> tuple[tuple[Place, ...], bool]:
        """The ends of the stages, or the blocks of a network of one resolution."""
        found = [record for record in self._before_answer() if self._usable(record)]
        spatial = [r for r in found if math.prod(self._output(r)[1]) > 1 and self._on_trunk(r)]
        if not spatial:  # a perceptron: one stage for each layer, the first ends after it
            layers = [list(g) for _, g in groupby(found, lambda r: r.layers)]
            ends = [g[-1] for g in layers if g[-1].layers and not self._output(g[-1])[1]]
            return tuple(map(self._place, ends)), True
        groups: dict[Size, list[_Seen]] = {}
        for record in spatial:
            groups.setdefault(self._output(record)[1], []).append(record)
        ends = sorted((g[-1] for g in groups.values()), key=self.order.index)
        last = groups[self._output(ends[-1])[1]]
        begun = max((end.flops for end in ends[:-1]), default=0)
        blocks = self._blocks(last)
        if len(blocks) > 1 and (last[-1].flops - begun) / self.total > ISOTROPIC:
            return tuple(map(self._place, blocks)), True
        return tuple(map(self._place, ends)), False

    def head(self) -> Place | None:
        """What the layer that gives the logits reads, if it is a vector."""
        linear = [
            r for r in self.order
            if isinstance(r.module, nn.Linear) and r.fired == 1 and r.given is not None
            and r.module.out_features == self.logits.shape[-1] and r.given.dim() == 2
            and len(r.given) == self.batch and r.given._version == r.given_version
        ]  # fmt: skip
        linear = [r for r in linear if self._is_answer(r.output)] or linear
        if not linear:
            return None
        given = linear[-1].given
        assert given is not None
        done = (linear[-1].flops - 2 * given.numel() * self.logits.shape[-1]) / self.total
        return Place(f"{linear[-1].path}:input", "vector", tuple(given.shape[1:]), (), done)

    def _place(self, record: _Seen) -> Place:
        kind, size = self._output(record)
        assert record.output is not None
        shape = tuple(record.output.shape[1:])
        return Place(record.path, kind, shape, size, record.flops / self.total)

    def _output(self, record: _Seen) -> tuple[Kind, Size]:
        size = self.sizes[record.path][1]
        assert size is not None
        return size

    def _is_answer(self, output: Tensor | None) -> bool:
        return output is not None and output.data_ptr() == self.logits.data_ptr()

    def _usable(self, record: _Seen) -> bool:
        """What a tap can read, and is a feature of each sample."""
        output = record.output
        if record.fired != 1 or output is None or self.sizes[record.path][1] is None:
            return False
        pooled = isinstance(record.module, nn.modules.pooling._AdaptiveAvgPoolNd)
        stretched = pooled and math.prod(self._output(record)[1]) > 1  # VGG: a map of 7 × 7 again
        return output._version == record.version and not self._is_answer(output) and not stretched

    def _before_answer(self) -> list[_Seen]:
        """What ran before the convolution that gives the logits, where there is one."""
        layers = [r for r in self.order if isinstance(r.module, nn.Linear | nn.Conv2d)]
        last = layers[-1] if layers else None
        if last is None or not isinstance(last.module, nn.Conv2d):
            return self.order
        is_head = last.module.out_channels == self.logits.shape[-1]
        return self.order[: self.order.index(last)] if is_head else self.order

    def _on_trunk(self, record: _Seen) -> bool:
        """Whether no block around it makes it an inner part."""
        size = self._output(record)[1]
        names = record.path.split(".")
        outers = [".".join(names[:count]) for count in range(1, len(names))]
        return all(self._passes(record, size, self.by_path.get(outer)) for outer in outers)

    def _passes(self, record: _Seen, size: Size, outer: _Seen | None) -> bool:
        """Whether a module is a stage of its own within one that contains it.

        Within one that keeps the resolution, another resolution is inner work. Within one that
        halves it, the first half belongs to the stage before only where it is several alike.
        """
        before, after = self.sizes[outer.path] if outer else (None, None)
        if outer is None or not (before and after and before[1] and after[1]):
            return True
        if before[1] == after[1]:
            return size == after[1]
        pairs = list(zip(before[1], after[1], strict=False))
        if size != before[1] or any(old > 2 * new + 2 for old, new in pairs):
            return True  # a backbone, which holds many stages
        earlier = self.order[: self.order.index(record)]
        inside = [r for r in earlier if r.path.startswith(f"{outer.path}.")]
        branched = any(self.sizes[r.path][1] == after for r in inside)
        return not branched and any(self._alike(r, record) for r in inside)

    def _alike(self, first: _Seen, second: _Seen) -> bool:
        """Whether they are numbered modules of one kind, of outputs of one size."""
        same = self.sizes[first.path][1] == self.sizes[second.path][1]
        return same and _family(first) == _family(second) is not None

    def _blocks(self, group: list[_Seen]) -> list[_Seen]:
        """The numbered modules of one kind that are the least nested."""
        families: dict[tuple[int, str, type], list[_Seen]] = {}
        for record in group:
            if (family := _family(record)) is not None:
                families.setdefault((record.path.count("."), *family), []).append(record)
        several = [key for key, members in families.items() if len(members) > 1]
        key = min(several, key=lambda k: (k[0], -len(families[k])), default=None)
        return [] if key is None else families[key]

    def _size(self, tensor: Tensor | None) -> tuple[Kind, Size] | None:
        """How the axes of a tensor lie, and the size of what is no channel."""
        if tensor is None or not tensor.is_floating_point() or len(tensor) != self.batch:
            return None
        axes = tuple(tensor.shape[1:])
        if len(axes) == 1:
            return "vector", ()
        if len(axes) == 2 and self.image.dim() == 3 and not self.by_width:
            return "sequence", axes[1:]
        if len(axes) == 2:
            return "tokens", self._patches(axes[0])
        if len(axes) == 3 and (self.image.dim() == 4 or axes[1:] in self.convolved):
            return self._lie(axes)
        return None

    def _lie(self, axes: Size) -> tuple[Kind, Size] | None:
        """Whether channels come first: the other two axes have the image's proportions."""
        if axes[1:] in self.convolved:
            return "map", axes[1:]
        if axes[1] == axes[2] and axes[1] in self.counts:
            return None  # attention of every token to every token
        first, last = (abs(math.log(h / w) - self._proportion()) for h, w in (axes[1:], axes[:2]))
        return ("map", axes[1:]) if first <= last else ("channels last", axes[:2])

    def _patches(self, tokens: int) -> Size:
        """Height and width of the patches among tokens: of a map seen, or like the image."""
        if self.image.dim() != 4:
            return (tokens,)
        fitting = [size for size in self.convolved if 0 <= tokens - math.prod(size) <= EXTRA_TOKENS]
        fitting = [size for size in fitting if math.prod(size) > 1]
        if fitting:
            height, width = max(fitting, key=math.prod)
            return height, width
        for patches in range(tokens, max(tokens - EXTRA_TOKENS, 0) - 1, -1):
            height = round(math.sqrt(patches * math.exp(self._proportion())))
            if height and patches % height == 0:
                width = patches // height
                if abs(math.log(height / width) - self._proportion()) < 1e-9:
                    return height, width
        return (tokens,)

    def _proportion(self) -> float:
        height, width = self.image.shape[2:]
        return math.log(height / width)


def _family(record: _Seen) -> tuple[str, type] | None:
    """What numbered modules of one kind have in common."""
    stem = re.sub(r"\d+$", "", record.path)
    return None if stem == record.path else (stem, type(record.module))
