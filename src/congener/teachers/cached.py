"""A teacher that was asked before: it answers from a store."""

from collections.abc import Sequence

import torch
from torch import Tensor

from congener.errors import StaleCache
from congener.teachers.frozen import FrozenTeacher
from congener.teachers.rows import LEAST, taken
from congener.teachers.store import WITNESS, TeacherStore
from congener.teachers.witness import TOLERANCE, witness
from congener.types import Batch, Outputs

__all__ = ["CachedTeacher", "tap_field"]

APART = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}  # of the norm; ours
APART_TOP_K = 0.1  # where two logits are nearly equal, either may be the k-th


class CachedTeacher:
    """Answers as the teacher did that a store was built with, about the same views alone.

    A batch that was augmented, ordered or chosen otherwise is refused by its samples' witnesses
    (:mod:`.witness`), so an answer is never about another crop than the student sees.

    On a GPU answers are read into pinned memory and copied without waiting, but the sample ids must
    come to the CPU and the verdict on the witnesses too; that path was never run on a GPU.

    Args:
        store: what was said.
        taps: paths whose tensors the distillation terms read.
        live: the teacher itself, if it is at hand. It is asked about some rows of the first batch,
            to see that it still says the same, and never again.

    Attributes:
        batches: how many it was asked about.

    Raises:
        StaleCache: a tap that the store does not hold; on a call, a batch that its teacher did not
            see, or a live teacher that answers otherwise.
    """

    networks: tuple[FrozenTeacher, ...] = ()  # nothing runs that could be told how

    def __init__(
        self, store: TeacherStore, taps: Sequence[str], *, live: FrozenTeacher | None = None
    ) -> None:
        self.store = store
        self._taps = tuple(dict.fromkeys(taps))
        self._live = live
        self.batches = 0
        for name in ("logits", *map(tap_field, self._taps)):
            store.field(name)

    def __call__(self, batch: Batch) -> Outputs:
        """The logits and tapped tensors for a prepared batch."""
        self.batches += 1
        device = batch["index"].device
        names = ["logits", *map(tap_field, self._taps), WITNESS]
        found = self.store.read(names, batch["index"], batch.get("view", 0))
        found = {name: _to(value, device) for name, value in found.items()}
        self._check_inputs(batch, found[WITNESS])
        features = {path: found[tap_field(path)] for path in self._taps}
        outputs = Outputs(found["logits"], features)
        if self._live is not None and len(outputs.logits):
            self._compare(self._live, batch, outputs)
            self._live = None
        return outputs

    def to(self, device: torch.device) -> "CachedTeacher":
        """Nothing moves: answers come on the device of the batch."""
        return self

    def _check_inputs(self, batch: Batch, kept: Tensor) -> None:
        """Refuse samples that the teacher saw otherwise."""
        agree = (witness(batch) - kept).abs() <= TOLERANCE
        if bool(agree.all()):
            return
        others = agree.logical_not().nonzero().flatten()
        first = int(batch["index"][others[0]])
        raise StaleCache(
            f"The teacher of the store {self.store.folder} saw sample {first} otherwise than it is "
            f"in this batch, in view {batch.get('view', 0)}, and so {len(others)} of its "
            f"{len(kept)} samples: the data, their order, the transform, the seed or the number of "
            "views is another, or the data set draws random numbers of its own; build the store "
            "anew in another folder, or set `cache: off`."
        )

    def _compare(self, live: FrozenTeacher, batch: Batch, outputs: Outputs) -> None:
        """Refuse a teacher that answers otherwise than the store, of some rows."""
        rows = min(LEAST, len(outputs.logits))
        live.to(outputs.logits.device)
        said = live(taken(batch, torch.arange(rows)))
        live.to(torch.device("cpu"))
        self._check_answer("logits", said.logits[:rows], outputs.logits[:rows])
        for path in self._taps:
            now, kept = said.features[path], outputs.features[path]
            self._check_answer(tap_field(path), now[:rows], kept[:rows])

    def _check_answer(self, name: str, now: Tensor, kept: Tensor) -> None:
        field, same_shape = self.store.field(name), now.shape == kept.shape
        coarse = field.returns == "bfloat16" or now.device.type != "cpu"  # GPUs may use TF32
        tolerance = APART["bf16" if coarse else field.dtype] if field.top_k is None else APART_TOP_K
        # As the store would keep it today, so that only what changed counts.
        today = field.decode(field.encode(now.cpu())).double() if same_shape else now
        norm = today.norm().clamp(min=torch.finfo(torch.float32).tiny)
        apart = float((today - kept.cpu()).norm() / norm) if same_shape else float("inf")
        if not apart <= tolerance:
            raise StaleCache(
                f"The teacher does not say what it said when {self.store.folder} was built: "
                f"{name!r} differ by {apart:.2g} of their norm; build the store anew in another "
                "folder, or set `cache: off`."
            )


def tap_field(path: str) -> str:
    """What the tensor of a tap is called in a store, where ``logits`` are the network's."""
    return f"{path}:output" if path == "logits" else path


def _to(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
