"""Losses of torchdistill, called as its trainer calls them; only where it is installed.

Its SP normalises rows to length 1 in the L1 norm, and its CCKD neither normalises features nor
squares the norm: those compute other numbers.
"""

from functools import partial
from typing import Any

from torch import Tensor

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
