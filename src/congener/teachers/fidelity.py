"""How far what a store keeps of logits is from what the teacher said.

KD's gradient at a row of logits is the student's probabilities less the teacher's, up to a factor,
so whatever the student says, the error of that gradient is the error of the probabilities.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from congener.runlog import write_text
from congener.teachers.formats import Field

__all__ = ["Fidelity", "fidelity"]

FILE = "fidelity.json"  # beside the manifest; a store is whole without it


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What keeping costs, at the field's temperature, on average over some rows.

    Args:
        rows: how many were looked at.
        tail: the probability beyond the ``top_k``; 0 where all logits are kept.
        lost: KL(what was said ‖ what is kept), in nats. A student who has the words beyond the
            ``top_k`` all alike sees so much less of the divergence: what is kept is a lower bound.
            Of what is drawn it is infinite, and tells nothing.
        gradient: the error of KD's gradient, as a share of the norm of the teacher's probabilities:
            a bias, but of what is drawn the noise of one row, whose mean is 0.
        renormalised: the same if the ``top_k`` were made to sum to 1, which nobody should do.
    """

    rows: int
    tail: float
    lost: float
    gradient: float
    renormalised: float

    def words(self, field: Field) -> str:
        """The same in a sentence."""
        rows, share = f"measured on {self.rows} rows", f"{100 * self.gradient:.2g} %"
        tail = f"{100 * self.tail:.2g} % of the probability lies beyond the top {field.top_k}"
        beyond = "" if field.top_k is None else f"{tail}; "
        if field.sampled is not None:
            return f"{beyond}KD's gradient has no bias, and a row's noise is {share} ({rows})"
        if field.top_k is None:
            return f"KD's gradient is off by {share} ({rows})"
        return (
            f"{tail}, shared evenly: KD's gradient is off by {share} (were the top {field.top_k} "
            f"made to sum to 1, by {100 * self.renormalised:.2g} %), and KL is a lower bound, "
            f"{self.lost:.2g} nats short for a student who has the others alike ({rows})"
        )

    def write(self, folder: Path) -> None:
        """Leave it in the folder of a store."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Fidelity | None":
        """What was left there, if it can be read."""
        try:
            return cls(**json.loads((folder / FILE).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None


def fidelity(field: Field, logits: Tensor, draws: Tensor | None = None) -> Fidelity:
    """Keep some logits and read them again.

    Args:
        field: how they are kept.
        logits: what a teacher said, (rows, classes).
        draws: of a field that draws, the number of each row: ``field.draws(…)``.

    >>> logits = torch.tensor([[3.0, 0.0, -1.0, -2.0]])
    >>> found = fidelity(Field("logits", (4,), "float32", top_k=2), logits)
    >>> round(found.tail, 4), 0 < found.gradient < found.renormalised
    (0.0233, True)
    """
    kept = field.decode(field.encode(logits, draws))
    true, mine = ((x.double() / field.temperature).log_softmax(-1) for x in (logits, kept))
    said = true.exp()
    top = said.topk(field.top_k or said.shape[-1]).indices
    alone = torch.zeros_like(said).scatter(-1, top, said.gather(-1, top))
    mass = alone.sum(-1, keepdim=True)
    share = alone / mass if field.top_k else said
    lost = torch.where(said > 0, said * (true - mine), 0).sum(-1)
    norm = said.norm()
    return Fidelity(
        rows=len(logits),
        tail=float((1 - mass).clamp(min=0).mean()) if field.top_k else 0.0,
        lost=float(lost.mean()),
        gradient=float((mine.exp() - said).norm() / norm),
        renormalised=float((share - said).norm() / norm),
    )
