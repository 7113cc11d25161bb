"""How far a student's next-token distributions are from a teacher's, on given texts."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from congener.ops.vocabulary import forward_kl, token_divergence
from congener.taps import still

if TYPE_CHECKING:
    from .task import LanguageModelling

__all__ = ["teacher_forced_kl"]


def teacher_forced_kl(
    student: nn.Module,
    teacher: nn.Module,
    task: "LanguageModelling",
    split: str = "test",
    *,
    batch_size: int = 16,
) -> float:
    """KL(teacher ‖ student) in nats, the mean over the response tokens of a split.

    Each token is predicted from the true ones before it ("teacher-forced"), so the figure says how
    alike two networks are on given texts, not how good the student's own are.

    Args:
        student: the network that is judged; both stay on their devices and in their modes.
        teacher: the network that it should be like.
        task: whose texts they are.
        split: which of them.
        batch_size: texts at once.
    """
    texts = task.texts(split)
    device = next(student.parameters()).device
    there = next(teacher.parameters()).device
    total, count = torch.zeros((), dtype=torch.float64), 0
    with still(student), still(teacher), torch.no_grad():
        for places in torch.split(torch.arange(len(texts)), batch_size):
            raw = task.collate(texts.__getitems__(places.tolist()))
            batch = task.prepare(raw, train=False, seed=0, epoch=0)
            mine = task.call(student, {k: v.to(device) for k, v in batch.items()})
            theirs = task.call(teacher, {k: v.to(there) for k, v in batch.items()})
            values = token_divergence(mine, theirs.to(device), forward_kl)
            total, count = total + values.double().sum().cpu(), count + len(values)
    return float(total) / max(1, count)
