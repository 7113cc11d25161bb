"""Read tensors from inside any network, by dotted path, without editing it."""

from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from congener.errors import TapError, did_you_mean

__all__ = ["Taps", "bare"]

T = TypeVar("T")


def bare(model: nn.Module) -> nn.Module:
    """The network itself, inside the wrappers of ``torch.compile`` and of data parallelism.

    >>> inner = nn.Linear(2, 2)
    >>> bare(nn.parallel.DataParallel(inner)) is inner
    True
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.parallel.DataParallel):
            model = model.module
        else:
            return model


class Taps:
    """Named places in a network where tensors are read while it runs.

    A path is what ``named_modules()`` calls a submodule; it reads the module's output, or with
    ``:input`` appended the module's first input. Of a tuple, the first tensor is read.

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
        modules = dict(bare(model).named_modules())
        self._places = {path: _locate(modules, path) for path in dict.fromkeys(paths)}
        self._compiled = any(_is_compiled(module) for module in model.modules())
        self._armed = False
        self._seen: dict[str, list[Tensor]] = {}
        self._versions: dict[str, int] = {}
        self._handles = self._hook() if self._compiled else []

    def __call__(self, run: Callable[[], T]) -> tuple[T, dict[str, Tensor]]:
        """Call ``run`` and return its result and the tensor read at each path."""
        self._seen = {path: [] for path in self._places}
        handles = [] if self._compiled else self._hook()
        self._armed = True
        try:
            result = run()
            return result, {path: self._only(path) for path in self._places}
        finally:
            self._armed = False
            for handle in handles:
                handle.remove()
            self._seen = {}

    def close(self) -> None:
        """Remove the hooks of a compiled network."""
        for handle in self._handles:
            handle.remove()

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
        if not self._compiled and values[0]._version != self._versions[path]:
            raise TapError(
                f"The tensor at the tap {path!r} was changed in place after it was read (a later "
                "module has inplace=True); tap that later module, or build it with inplace=False."
            )
        return values[0]


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
