"""Read tensors from inside any network, by dotted path, unedited; or run it from there."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from congener.errors import TapError, did_you_mean

__all__ = ["Tail", "Taps", "bare", "compiled", "statistics_kept", "still", "uncompiled"]

T = TypeVar("T")
SIZE = r":([1-9]\d*)x([1-9]\d*)(?=$|:pooled$|:gram$)"
"""What follows a path that reads a map of a size."""
SUMMARY = r":(pooled|gram)$"
"""How a path ends that reads a summary of a map."""
_COMPILED: "dict[nn.Module, list[Taps]]" = {}
"""The networks within :func:`compiled`, and the taps whose hooks their code holds."""
FILLS = (torch.nan, 0.0, torch.inf, -torch.inf)
"""What tells whether a tensor is needed: the first in sums, the others in comparisons."""


def bare(model: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, data parallelism and :class:`~.teachers.Bridge`.

    >>> inner = nn.Linear(2, 2)
    >>> bare(nn.parallel.DataParallel(inner)) is inner
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", getattr(model, "_bridged", None))
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.parallel.DataParallel):
            model = model.module
        else:
            return model


def uncompiled(model: nn.Module) -> nn.Module:
    """The network as it was before ``torch.compile``; where that was in place, a copy of it."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return deepcopy(model) if any(_is_compiled(module) for module in model.modules()) else model


@contextmanager
def still(network: nn.Module) -> Iterator[None]:
    """For a while in evaluation mode and without gradients of parameters; then as it was."""
    modes = {module: module.training for module in network.modules()}
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        network.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, training in modes.items():
            module.training = training


@contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """For a while batch normalisation goes by the batch and leaves its running statistics alone."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def compiled(networks: Iterable[nn.Module], **options: Any) -> Iterator[None]:
    """For a while compiled in place, with their taps working, made before or meanwhile.

    Names, weights and copies stay those of the networks as they are, which they are again after.

    Args:
        networks: modules that are called themselves, not through another one.
        **options: what ``torch.compile`` takes.
    """
    before = {network: network._compiled_call_impl for network in map(bare, networks)}
    _COMPILED.update({network: [] for network in before})
    try:
        for network in before:
            network.compile(**options)
        yield
    finally:
        for network, call in before.items():
            network._compiled_call_impl = call
            for taps in _COMPILED.pop(network):
                taps.close()


class Taps:
    """Named places in a network where tensors are read while it runs.

    A path is what ``named_modules()`` calls a submodule; it reads the module's output, or with
    ``:input`` appended the module's first input. Of a tuple, the first tensor is read. With
    ``:14x14`` the output is read as a map (batch, channels, 14, 14): of tokens (batch, tokens,
    channels) the last 14 · 14, since class and register tokens come first, or a map whose channels
    come last. With ``:pooled`` at the end the mean of a map (batch, channels, *size) over its
    places is read, (batch, channels), and with ``:gram`` the mean over its places of the products
    of two channels, (batch, channels, channels).

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> taps = Taps(net, ["1", "2:input"])
    >>> result, seen = taps(lambda: net(torch.ones(5, 3)))
    >>> seen["1"].shape, seen["1"] is seen["2:input"]
    (torch.Size([5, 4]), True)

    Hooks exist only while the network runs. A network that is compiled is the exception: its
    compiled code holds the hooks, so they are set here, before it first runs, read nothing between
    calls, and go with :meth:`close` (or the ``with`` block).

    Args:
        model: any module, also compiled or wrapped for data parallelism.
        paths: the taps; duplicates are read once.

    Raises:
        TapError: a path that does not exist (the nearest ones are listed); on a call, a tap that
            did not fire, fired twice, gave no tensor, or whose tensor was then changed in place.
    """

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self._model = bare(model)
        modules = dict(self._model.named_modules())
        plain = {path: re.sub(SIZE, "", re.sub(SUMMARY, "", path)) for path in paths}
        self._places = {path: _locate(modules, plain[path]) for path in plain}
        for_good = self._model not in _COMPILED
        self._compiled = for_good and any(_is_compiled(module) for module in model.modules())
        self._armed = False
        self._seen: dict[str, list[Tensor]] = {}
        self._versions: dict[str, int] = {}
        self._handles = self._hook() if self._compiled else []

    def __call__(self, run: Callable[[], T]) -> tuple[T, dict[str, Tensor]]:
        """Call ``run`` and return its result and the tensor read at each path."""
        self._seen = {path: [] for path in self._places}
        self._versions = {}
        if self._model in _COMPILED and not self._handles:
            self._handles = self._hook()
            _COMPILED[self._model].append(self)
        handles = [] if self._compiled or self._handles else self._hook()
        self._armed = True
        try:
            result = run()
            return result, {path: _as_asked(path, self._only(path)) for path in self._places}
        finally:
            self._armed = False
            for handle in handles:
                handle.remove()
            self._seen = {}

    def close(self) -> None:
        """Remove the hooks of a compiled network."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "Taps":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hook(self) -> list[Any]:
        handles: list[Any] = []
        for path, (module, reads_input) in self._places.items():
            if reads_input:
                handles.append(module.register_forward_pre_hook(partial(self._on_input, path)))
            else:
                handles.append(module.register_forward_hook(partial(self._on_output, path)))
        return handles

    def _on_input(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._read(path, args)

    def _on_output(self, path: str, module: nn.Module, args: Any, output: Any) -> None:
        self._read(path, output)

    def _read(self, path: str, value: Any) -> None:
        if not self._armed:
            return
        if isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            raise TapError(
                f"The tap {path!r} gives a {type(value).__name__}, not a tensor; "
                "tap a module inside it that returns one."
            )
        self._seen[path].append(value)
        if not torch.compiler.is_compiling():
            self._versions[path] = value._version

    def _only(self, path: str) -> Tensor:
        values = self._seen[path]
        if not values:
            raise TapError(
                f"The tap {path!r} never fired: the network's forward does not call this module"
                + (
                    ", or it was compiled and run before its taps were set (make the taps first)."
                    if self._compiled
                    else "; tap one that it calls."
                )
            )
        if len(values) > 1:
            raise TapError(
                f"The tap {path!r} fired {len(values)} times in one forward, because the network "
                "uses this module more than once; tap a module that runs once."
            )
        read = self._versions.get(path)  # not known of a tensor that is traced
        if not self._compiled and read is not None and values[0]._version != read:
            raise TapError(
                f"The tensor at the tap {path!r} was changed in place after it was read (a later "
                "module has inplace=True); tap that later module, or build it with inplace=False."
            )
        return values[0]


def _as_asked(path: str, value: Tensor) -> Tensor:
    """What was read, as the end of its path asks for it."""
    value = _as_map(path, value)
    asked = re.search(SUMMARY, path)
    if asked is None:
        return value
    if value.dim() < 3:
        raise TapError(
            f"The tap {path!r} gives {tuple(value.shape)}, which has no places to take the mean "
            "over: expected (batch, channels, ...); tap a map, or leave the end of the path out."
        )
    places = value.flatten(2)
    if asked[1] == "pooled":
        return places.mean(2)
    return places @ places.mT / places.shape[2]


def _as_map(path: str, value: Tensor) -> Tensor:
    """What was read, as a map if its path asks for one."""
    asked = re.search(SIZE, path)
    if asked is None:
        return value
    height, width = int(asked[1]), int(asked[2])
    if value.dim() == 4 and value.shape[1:3] == (height, width):
        return value.movedim(-1, 1)
    if value.dim() == 3 and value.shape[1] >= height * width:
        return value[:, -height * width :].mT.reshape(len(value), -1, height, width)
    raise TapError(
        f"The tap {path!r} gives {tuple(value.shape)}, which is no map of {height}x{width}: "
        f"expected (batch, tokens, channels) with {height * width} tokens or more, or (batch, "
        f"{height}, {width}, channels); give the size that it has for your images."
    )


class Tail:
    """What a network does behind a tap, for another tensor than the tap reads.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> tail, x, value = Tail(net, "1"), torch.ones(5, 3), torch.ones(5, 4)
    >>> torch.equal(tail(value, lambda: net(x)), net[2](value))
    True

    What ran wholly before the tap does not run again where its outputs reach the result through the
    tap alone. The first call finds that out, and each with a tensor of another shape: such modules
    give NaN, then 0, then ±∞, none of which may change a bit of the result. Elsewhere all of the
    network runs again.

    Args:
        model: any module that is not compiled.
        path: the tap, as for :class:`Taps`; of a tuple the first tensor is replaced.

    Raises:
        TapError: a path that does not exist or that asks for a map of a size, a network that is
            compiled; on a call, a tap that did not fire once.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        if any(_is_compiled(module) for module in model.modules()):
            raise TapError(
                f"A compiled network cannot run from a tap such as {path!r}; give it as it was "
                "before torch.compile."
            )
        if re.search(SUMMARY, path):
            raise TapError(
                f"A network cannot run from a summary of a map, as at {path!r}; leave the end of "
                "the path out."
            )
        if re.search(SIZE, path):
            raise TapError(
                f"A network cannot run from tokens that are read as a map, as at {path!r}; tap a "
                "module that gives a map."
            )
        self._modules = dict(bare(model).named_modules())
        self._path = path
        self._module, self._reads_input = _locate(self._modules, path)
        self._shape: torch.Size | None = None
        self._skipped: Mapping[nn.Module, _Blank] = {}

    def __call__(self, value: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Call ``run``, which calls the network, with ``value`` in place of the tap's tensor.

        Args:
            value: of the shape that the tap reads in this call; it is never changed in place.
            run: calls the network and returns a tensor.
        """
        if self._shape != value.shape[1:]:
            with torch.no_grad():
                self._skipped = self._skippable(value.detach(), run)
            self._shape = value.shape[1:]
        return self._run(value, run, self._skipped)

    def _run(
        self,
        value: Tensor,
        run: Callable[[], Tensor],
        skipped: "Mapping[nn.Module, _Blank]",
        fill: float = torch.nan,
    ) -> Tensor:
        fired: list[None] = []

        def replace(_module: nn.Module, *passed: Any) -> Any:
            fired.append(None)
            old = passed[-1]  # the output, or of a pre-hook the inputs
            return (value.clone(), *old[1:]) if isinstance(old, tuple) else value.clone()

        with ExitStack() as undo:
            for module, blank in skipped.items():
                undo.enter_context(_answering(module, blank.for_rows_of(value, fill)))
            hook = self._module.register_forward_pre_hook if self._reads_input else None
            handle = (hook or self._module.register_forward_hook)(replace)
            undo.callback(handle.remove)
            result = run()
        if len(fired) != 1:
            raise TapError(
                f"The tap {self._path!r} fired {len(fired)} times in one forward; to run from it, "
                "tap a module that runs once."
            )
        return result

    def _skippable(self, value: Tensor, run: Callable[[], Tensor]) -> "Mapping[nn.Module, _Blank]":
        """The modules that need not run, and the shapes of what they give."""
        calls: list[tuple[nn.Module, _Blank | None]] = []
        before: list[tuple[nn.Module, _Blank | None]] = []

        def ended(module: nn.Module, _args: Any, output: Any) -> None:
            calls.append((module, _Blank.like(output, value)))
            if module is self._module and not self._reads_input:
                before.extend(calls)

        def reached(_module: nn.Module, _args: Any) -> None:
            before.extend(calls)

        with ExitStack() as undo:
            for module in self._modules.values():
                undo.callback(module.register_forward_hook(ended).remove)
            if self._reads_input:
                undo.callback(self._module.register_forward_pre_hook(reached).remove)
            wanted = self._run(value, run, {})
        times = [module for module, _ in calls]
        skipped = {m: blank for m, blank in before if blank is not None and times.count(m) == 1}
        try:
            same = all(torch.equal(self._run(value, run, skipped, x), wanted) for x in FILLS)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            same = False  # it looks at what the skipped modules give
        return skipped if same else {}


class _Blank(NamedTuple):
    """What is known of an output that nobody needs."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    has_rows: bool

    @staticmethod
    def like(output: Any, value: Tensor) -> "_Blank | None":
        if not (isinstance(output, Tensor) and output.is_floating_point() and output.dim()):
            return None
        return _Blank(tuple(output.shape), output.dtype, len(output) == len(value))

    def for_rows_of(self, value: Tensor, fill: float) -> Callable[..., Tensor]:
        shape = (len(value) if self.has_rows else self.shape[0], *self.shape[1:])
        return lambda *_args, **_named: value.new_full(shape, fill, dtype=self.dtype)


@contextmanager
def _answering(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module answer without running."""
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


def _is_compiled(module: nn.Module) -> bool:
    """Whether it is a wrapper of ``torch.compile``, or was compiled in place."""
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _locate(modules: dict[str, nn.Module], path: str) -> tuple[nn.Module, bool]:
    """The module of a path, and whether its input is meant."""
    name, _, side = path.partition(":")
    if side not in ("", "input", "output"):
        raise TapError(f"The tap {path!r} should end in ':input' or ':output', not ':{side}'.")
    if name not in modules or not name:
        known = [known for known in modules if known]
        raise TapError(f"The network has no module {name!r} to tap; {did_you_mean(name, known)}")
    return modules[name], side == "input"
