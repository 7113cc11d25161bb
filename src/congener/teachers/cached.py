"""A teacher that was asked before: it answers from a store."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from congener.errors import RecipeError, StaleCache
from congener.task import Task
from congener.teachers.formats import Field
from congener.teachers.frozen import FrozenTeacher
from congener.teachers.rows import LEAST, taken
from congener.teachers.store import WITNESS, TeacherStore
from congener.teachers.witness import TOLERANCE, witness
from congener.types import Batch, Outputs

__all__ = ["CachedTeacher", "tap_field"]

APART = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 2e-2}  # of the norm; ours
APART_PARTIAL = 0.1  # where two logits are nearly equal, either may be the k-th, or be drawn


class CachedTeacher:
    """Answers as the teacher did that a store was built with, about the same views alone.

    A batch that was augmented, ordered or chosen otherwise is refused by its samples' witnesses
    (:mod:`.witness`), so an answer is never about another crop than the student sees.

    On a GPU answers are read into pinned memory and copied without waiting, but the sample ids must
    come to the CPU and the verdict on the witnesses too; that path was never run on a GPU.

    Args:
        store: what was said.
        taps: paths whose tensors the distillation terms read.
        task: whose batches these are; needed where the store keeps answers about tokens.
        live: the teacher itself, if it is at hand. It is asked about some rows of the first batch,
            to see that it still says the same, and never again.

    Attributes:
        batches: how many it was asked about.

    Raises:
        RecipeError: a store of answers about tokens, and no task.
        StaleCache: a tap that the store does not hold; on a call, a batch that its teacher did not
            see, or a live teacher that answers otherwise.
    """

    networks: tuple[FrozenTeacher, ...] = ()  # nothing runs that could be told how

    def __init__(
        self,
        store: TeacherStore,
        taps: Sequence[str],
        *,
        task: Task | None = None,
        live: FrozenTeacher | None = None,
    ) -> None:
        self.store = store
        self._taps = tuple(dict.fromkeys(taps))
        self._live = live
        self._task = task or (None if live is None else live.task)
        self.batches = 0
        for name in ("logits", *map(tap_field, self._taps)):
            store.field(name)
        self._texts = store.field("logits").places is not None
        if self._texts and self._task is None:
            raise RecipeError(
                f"The store {store.folder} keeps answers about tokens, and the task says which a "
                "batch has; give CachedTeacher its `task`."
            )

    def __call__(self, batch: Batch) -> Outputs:
        """The logits and tapped tensors for a prepared batch."""
        self.batches += 1
        device = batch["index"].device
        names = ["logits", *map(tap_field, self._taps), WITNESS]
        answered, counts = self._answered(batch)
        found = self.store.read(names, batch["index"], batch.get("view", 0), counts)
        found = {name: _to(value, device) for name, value in found.items()}
        self._check_inputs(batch, witness(batch, answered), found[WITNESS])
        features = {path: found[tap_field(path)] for path in self._taps}
        outputs = Outputs(found["logits"], features)
        if self._live is not None and self._compare(self._live, batch, outputs):
            self._live = None
        return outputs

    def to(self, device: torch.device) -> "CachedTeacher":
        """Nothing moves: answers come on the device of the batch."""
        return self

    def _answered(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """Of texts, which tokens the answers are about, and how many those are of each sample."""
        answered = self._task.token_mask(batch) if self._texts and self._task else None
        return answered, None if answered is None else answered.sum(1).cpu()

    def _check_inputs(self, batch: Batch, now: Tensor, kept: Tensor) -> None:
        """Refuse samples that the teacher saw otherwise."""
        agree = (now - kept).abs() <= TOLERANCE
        if bool(agree.all()):
            return
        agree = agree.view(len(kept), -1).all(dim=1)
        others = agree.logical_not().nonzero().flatten()
        first = int(batch["index"][others[0]])
        if self._texts:
            raise StaleCache(
                f"The teacher of the store {self.store.folder} read another text as sample {first} "
                f"than this batch has, and so {len(others)} of its {len(kept)} samples: the "
                "tokenizer, its settings, the data or their order is another; build the store anew "
                "in another folder, or set `cache: off`."
            )
        raise StaleCache(
            f"The teacher of the store {self.store.folder} saw sample {first} otherwise than it is "
            f"in this batch, in view {batch.get('view', 0)}, and so {len(others)} of its "
            f"{len(kept)} samples: the data, their order, the transform, the seed or the number of "
            "views is another, or the data set draws random numbers of its own; build the store "
            "anew in another folder, or set `cache: off`."
        )

    def _compare(self, live: FrozenTeacher, batch: Batch, outputs: Outputs) -> bool:
        """Refuse a teacher that answers otherwise than the store, of some samples.

        Returns:
            Whether there was anything to compare.
        """
        some = min(LEAST, len(batch["index"]))
        first = taken(batch, torch.arange(some))
        _, counts = self._answered(first)
        rows = some if counts is None else int(counts.sum())
        if not rows:
            return False
        live.to(outputs.logits.device)
        said = live(first)
        live.to(torch.device("cpu"))
        view = batch.get("view", 0) % self.store.views
        draws = self.store.field("logits").draws(first["index"].cpu(), view, counts)
        self._check_answer("logits", said.logits, outputs.logits[:rows], draws)
        for path in self._taps:
            now, kept = said.features[path], outputs.features[path]
            self._check_answer(tap_field(path), now, kept[:some])
        return True

    def _check_answer(
        self, name: str, now: Tensor, kept: Tensor, draws: Tensor | None = None
    ) -> None:
        field, apart = self.store.field(name), math.inf
        coarse = field.returns == "bfloat16" or now.device.type != "cpu"  # GPUs may use TF32
        tolerance = APART_PARTIAL if field.partial else APART["bf16" if coarse else field.dtype]
        if now.shape == kept.shape:
            # As the store would keep it today, so that only what changed counts.
            apart = _apart(field, field.decode(field.encode(now.cpu(), draws)), kept.cpu())
        if not apart <= tolerance:
            raise StaleCache(
                f"The teacher does not say what it said when {self.store.folder} was built: "
                f"{name!r} differ by {apart:.2g} of their norm; build the store anew in another "
                "folder, or set `cache: off`."
            )


def _apart(field: Field, today: Tensor, kept: Tensor) -> float:
    """The norm of the difference, as a share."""
    today, kept = today.double(), kept.double()
    if field.sampled is not None:  # of a word that was not drawn, the logit is -inf
        today, kept = (x.div(field.temperature).softmax(-1) for x in (today, kept))
    norm = today.nan_to_num(neginf=0).norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((today - kept).masked_fill(today == kept, 0).norm() / norm)


def tap_field(path: str) -> str:
    """What the tensor of a tap is called in a store, where ``logits`` are the network's."""
    return f"{path}:output" if path == "logits" else path


def _to(value: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
