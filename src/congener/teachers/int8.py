"""A network in eight-bit integers, with the tensors at its taps: onnxruntime, on a CPU.

Post-training static quantisation. The network is exported as one graph that gives its answer and
what its taps read; weights of convolutions and linear layers become int8, channel by channel, and
what they multiply uint8, in the range that is seen on samples. The rest stays float32.
"""

import hashlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from congener.errors import CheckpointError, RecipeError
from congener.taps import Taps
from congener.teachers.frozen import fingerprint, structure

__all__ = ["Int8", "Request", "check_int8", "quantised"]

T = TypeVar("T")
Request = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a call of the network."""
PRODUCTS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]


def check_int8(device: torch.device) -> None:
    """Make sure that a teacher can run in int8 here.

    Raises:
        RecipeError: a GPU, or packages that are missing.
    """
    missing = [
        name for name in ("onnx", "onnxruntime", "onnxscript") if not importlib.util.find_spec(name)
    ]
    if missing:
        raise RecipeError(
            f"teacher_precision int8 needs {', '.join(missing)}: pip install 'congener[int8]'."
        )
    if device.type != "cpu":
        raise RecipeError(
            f"teacher_precision int8 runs on a CPU, and this fit on {device.type}; use bf16, or "
            "`device: cpu`."
        )


class Int8(nn.Module):
    """Takes the place of a network: is called as it is, and answers as it does.

    Called with a function that calls it, as :class:`~congener.taps.Taps`, :meth:`read` gives the
    function's result and what the taps read.

    Args:
        graph: the quantised graph, as onnx writes it.
        answer: how the network's answer is made of tensors.
        taps: whose tensors follow those of the answer.
    """

    def __init__(self, graph: bytes, answer: pytree.TreeSpec, taps: Sequence[str]) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._answer, self._taps = answer, tuple(taps)
        self._features: dict[str, Tensor] = {}

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The network's answer."""
        given = [x.detach().contiguous().numpy() for x in pytree.tree_leaves((arguments, named))]
        feed = dict(zip(self._inputs, given, strict=True))
        said = [torch.from_numpy(each) for each in self._session.run(None, feed)]
        leaves = self._answer.num_leaves
        self._features = dict(zip(self._taps, said[leaves:], strict=True))
        return pytree.tree_unflatten(said[:leaves], self._answer)

    def read(self, run: Callable[[], T]) -> tuple[T, dict[str, Tensor]]:
        """What ``run`` returns, which calls this, and the tensor at each tap."""
        result = run()
        features, self._features = self._features, {}
        return result, features


def quantised(
    network: nn.Module,
    paths: Sequence[str],
    requests: Sequence[Request],
    folder: Path | None = None,
    once: Callable[[Callable[[], bytes]], bytes] = lambda make: make(),
) -> Int8:
    """A network in int8.

    Args:
        network: in evaluation mode, on the CPU; it stays as it is.
        paths: taps.
        requests: what it is called with on samples of two rows or more, by which ranges are set.
        folder: where the graph is kept, or found if it was made of the same before.
        once: has one process make the graph for all of them.

    Raises:
        CheckpointError: a kept graph that cannot be read.
        RecipeError: a network that cannot be exported, with the reason.
    """
    flat = [pytree.tree_flatten(request) for request in requests]
    shape = flat[0][1]
    tapped = _Tapped(network, paths, shape)
    with torch.no_grad():
        tapped(*flat[0][0])  # tells how the answer is made
    assert tapped.answer is not None
    samples = [tensors for tensors, _ in flat]
    path = None
    if folder is not None:
        path = folder / f"teacher-int8-{_key(network, paths, samples)}.onnx"
    made = once(partial(_kept_graph, tapped, samples, path))
    try:
        return Int8(made, tapped.answer, paths)
    except Exception as error:  # onnxruntime's have no class in common
        if path is None:
            raise
        raise CheckpointError(f"{path} is damaged; remove it, and it will be made anew.") from error


def _kept_graph(tapped: "_Tapped", samples: Sequence[list[Tensor]], path: Path | None) -> bytes:
    """The graph as it was kept, or made now and kept."""
    if path is not None and path.exists():
        return path.read_bytes()
    with TemporaryDirectory() as scratch, _quietly():
        graph = _graph(tapped, samples, Path(scratch))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_bytes(graph)
        draft.replace(path)
    return graph


class _Tapped(nn.Module):
    """A network as a function from tensors to tensors: those of its answer, then its taps'."""

    def __init__(self, network: nn.Module, paths: Sequence[str], request: pytree.TreeSpec) -> None:
        super().__init__()
        self.network, self._request = network, request
        self._taps = Taps(network, paths)
        self.answer: pytree.TreeSpec | None = None
        self.eval()

    def forward(self, *tensors: Any) -> tuple[Tensor, ...]:
        arguments, named = pytree.tree_unflatten(tensors, self._request)
        result, features = self._taps(lambda: self.network(*arguments, **named))
        leaves, self.answer = pytree.tree_flatten(result)
        for value in (*tensors, *leaves):
            if not isinstance(value, Tensor):
                raise RecipeError(
                    "teacher_precision int8 needs a teacher that takes and returns tensors, not a "
                    f"{type(value).__name__}; use bf16."
                )
        return (*leaves, *features.values())


def _graph(tapped: _Tapped, samples: Sequence[list[Tensor]], scratch: Path) -> bytes:
    """The quantised graph of a network, ranges set by the samples."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    exact, small = scratch / "exact.onnx", scratch / "int8.onnx"
    rows = {0: torch.export.Dim.DYNAMIC}
    try:
        program = torch.onnx.export(
            tapped, tuple(samples[0]),
            dynamo=True, dynamic_shapes=(tuple(rows for _ in samples[0]),), verbose=False,
        )  # fmt: skip
        assert program is not None
        program.save(exact)
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise RecipeError(
            f"The teacher cannot be exported, which teacher_precision int8 needs ({reason}); use "
            "bf16."
        ) from error
    names = [str(each.name) for each in program.model.graph.inputs]

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[list[Tensor]] = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            tensors = next(self._left, None)
            if tensors is None:
                return None
            values = (x.contiguous().numpy() for x in tensors)
            return dict(zip(names, values, strict=True))

    quantize_static(
        exact, small, Samples(),
        quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=PRODUCTS,
    )  # fmt: skip
    return small.read_bytes()


def _key(network: nn.Module, paths: Sequence[str], samples: Sequence[list[Tensor]]) -> str:
    """A hash of all that the graph depends on."""
    digest = hashlib.sha256(repr((tuple(paths), PRODUCTS)).encode())
    for package in ("torch", "onnxruntime", "onnxscript"):
        digest.update(f"{package} {metadata.version(package)}".encode())
    digest.update(f"{fingerprint(network)}{structure(network)}".encode())
    for tensors in samples:
        for x in tensors:
            digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the libraries' advice to their developers from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
