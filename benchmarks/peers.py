"""torchdistill: its losses and its training box, as it is; only where it is installed.

Its SP normalises rows to length 1 in the L1 norm, and its CCKD neither normalises features nor
squares the norm: those compute other numbers. Its box leaves the teacher in training mode.
"""

import itertools
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import loops
import torch
import torch.nn.functional as F
from races import Tick
from torch import Tensor
from torch.utils.data import Sampler, TensorDataset

PACKAGE = "torchdistill"


def _call(kind: str, options: dict[str, Any], student: Tensor, teacher: Tensor) -> Tensor:
    from torchdistill.losses import mid_level

    loss = getattr(mid_level, kind)(**options)
    value: Tensor = loss({"x": {"output": student}}, {"x": {"output": teacher}})
    return value


_PATHS = {"student_output_path": "x", "teacher_output_path": "x"}
_MODULES = {
    "student_module_path": "x", "student_module_io": "output",
    "teacher_module_path": "x", "teacher_module_io": "output",
}  # fmt: skip
_MEAN = {"dist_factor": 0.0, "angle_factor": 0.0, "reduction": "mean"}
_KERNEL = {"type": "gaussian", "gamma": 0.4, "max_p": 2}

sp = partial(_call, "SPKDLoss", _PATHS | {"reduction": "batchmean"})
pkt = partial(_call, "PKTLoss", _MODULES)
rkd = partial(_call, "RKDLoss", _PATHS | _MEAN | {"dist_factor": 25.0, "angle_factor": 50.0})
cckd = partial(
    _call, "CCKDLoss",
    {"student_linear_path": "x", "teacher_linear_path": "x", "kernel_config": _KERNEL,
     "reduction": "batchmean"},
)  # fmt: skip


class Order(Sampler[int]):
    """One endless epoch in the order of the other loops."""

    def __init__(self, dataset: TensorDataset) -> None:
        self._samples = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(rows.tolist() for rows in loops.order(self._samples))

    def __len__(self) -> int:
        return 10**9


def torchdistill(tick: Tick, *, corrected: bool = False, cache: Path | None = None) -> None:
    """Its box in the loop of its examples: the loss is read and checked at each step.

    Args:
        tick: ends a step.
        corrected: with what users must add to get the numbers of the papers: the teacher in
            evaluation mode, and SP's rows of length 1 in the L2 norm.
        cache: a folder for what the teacher said, a file a sample, as releases before 1.1.5 had.
    """
    from torchdistill.core.distillation import DistillationBox
    from torchdistill.losses import mid_level

    class SP(mid_level.SPKDLoss):  # type: ignore[misc]
        def matmul_and_normalize(self, z: Tensor) -> Tensor:
            z = z.flatten(1)
            return F.normalize(z @ z.T, dim=1)

    tick.imported()
    student, teacher = loops.student_network(), loops.teacher_network()
    if not corrected:
        teacher.train()
    here = {"student_module_path": ".", "student_module_io": "output",
            "teacher_module_path": ".", "teacher_module_io": "output"}  # fmt: skip
    share = 1 / (1 + loops.KD_WEIGHT)  # its KD is one loss of both parts
    maps = {"student_output_path": loops.MAP, "teacher_output_path": loops.MAP}
    kd_loss = mid_level.KDLoss(
        **here, temperature=loops.TEMPERATURE, alpha=share, beta=loops.KD_WEIGHT * share
    )
    sp_loss = (SP if corrected else mid_level.SPKDLoss)(**maps, reduction="batchmean")
    network = {"forward_proc": "forward_batch_only", "forward_hook": {"output": [loops.MAP]}}
    box = DistillationBox(
        teacher, student, {"train": TensorDataset(*loops.data())},
        {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train", "sampler": {"class_or_func": Order}, "requires_supp": True,
                "kwargs": {"batch_size": loops.BATCH, "num_workers": 0},
                "cache_output": None if cache is None else str(cache),
            },
            "teacher": network | {"requires_grad": False},
            "student": network,
            "optimizer": {"key": "SGD", "kwargs": dict(loops.OPTIMIZER)},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {"criterion": kd_loss, "weight": 1 + loops.KD_WEIGHT},
                        "sp": {"criterion": sp_loss, "weight": loops.SP_WEIGHT},
                    }
                },
            },
        },
        torch.device("cpu"), None, False, 1,
    )  # fmt: skip
    box.pre_epoch_process(epoch=0)
    for images, labels, more in box.train_data_loader:
        loss = box.forward_process(images, labels, more)
        box.post_forward_process(loss)
        if not math.isfinite(loss.item()):
            raise FloatingPointError("the loss is not finite")
        tick(student)


CACHING = Path(sys.prefix) / "torchdistill-1.1.4"
"""Where ``make bench`` installs the last release that could keep what the teacher says."""


def torchdistill_cached(tick: Tick) -> None:
    """That release, with what the first epoch kept."""
    sys.path.insert(0, str(CACHING))
    torchdistill(tick, corrected=True, cache=tick.folder / "files")
