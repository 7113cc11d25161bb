r"""Deep Mutual Learning, DML (Zhang, Xiang, Hospedales and Lu, CVPR 2018).

There is no teacher: two networks start untrained, and each learns from the labels and from what the
other one thinks of the same samples at that moment.

    total = CE(z¹, y) + kd_weight · KL(p² ‖ p¹)  +  CE(z², y) + kd_weight · KL(p¹ ‖ p²)

z¹ and p¹ are the student's logits and probabilities, z² and p² the peer's. Whoever is learnt from
is detached: no network is trained to be easy to follow.

What it owns beyond a loss
    The second network, ``peer``, as long as training lasts. By default it is a copy of the student
    whose modules draw their weights anew, each by its own ``reset_parameters`` and the inner ones
    first: PyTorch's initial weights, which need not be those of the network's own recipe. Give
    ``peer`` where that matters, or for another architecture.

Differences from the paper
    Both networks take their step at once, from one total. The paper alternates: the first network
    steps, predicts the samples again, and the second learns from that prediction. The peer follows
    the student's optimiser and settings. Two networks only; for more the paper averages the
    divergences. Which weight or temperature the divergence has, none, is the paper's.

What is saved, what is exported
    Saved: both networks. Exported, and evaluated: the student.
"""

from copy import deepcopy
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from congener.errors import RecipeError
from congener.losses import kd_loss
from congener.ops.checks import check_temperature
from congener.system import System
from congener.systems.probe import probe
from congener.task import Task
from congener.teachers import fingerprint
from congener.types import Batch, Outputs, Paper, Progress, StepResult

__all__ = ["DML"]

SEED_OFFSET = 10_007
"""Between the seed of the student and of the peer made from it; far from other runs' seeds."""


@final
class DML(System):
    """Two untrained networks that learn from the labels and from each other.

    Args:
        student: the network to train and to export.
        teacher: not used, as both networks learn; a recipe may have one for its other arms.
        task: how networks are called, and the supervised loss.
        peer: the second network, untrained and of the same classes; default: a copy of the student
            that draws its weights anew.
        kd_weight: factor of both divergences.
        temperature: softens both distributions; the divergences are then times its square.

    Raises:
        RecipeError: a peer that is, shares weights with or equals the student, or tells other
            classes apart; a student that cannot draw its weights anew.
        ValueError: a temperature that is not positive.
    """

    name = "dml"
    paper = Paper(
        title="Deep Mutual Learning",
        authors="Ying Zhang, Tao Xiang, Timothy M. Hospedales, Huchuan Lu",
        venue="CVPR",
        year=2018,
        url="https://arxiv.org/abs/1706.00384",
    )
    equation = "L = CE( z¹, y ) + KL( p² ‖ p¹ ) + CE( z², y ) + KL( p¹ ‖ p² )"
    sources: ClassVar = {
        "peer": "ours: a copy of the student with weights of its own; the paper's pairs are equal "
        "or different networks",
        "kd_weight": "paper: 1",
        "temperature": "paper: 1, plain probabilities",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        task: Task,
        peer: nn.Module | None = None,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        self.kd_weight, self.temperature = kd_weight, temperature
        self.task = task
        self.teacher = None
        self.student = student
        self.peer = _drawn_anew(student) if peer is None else peer
        _check_pair(student, self.peer, task)

    @property
    def distils(self) -> bool:
        """Samples without a label teach too: what the other network thinks of them."""
        return True

    def weights(self, progress: Progress) -> dict[str, float]:
        """The factor of each term in the total."""
        return {"task": 1.0, "kd": self.kd_weight, "peer_task": 1.0, "peer_kd": self.kd_weight}

    def observe(self, batch: Batch) -> Outputs:
        """Run both networks."""
        mine, theirs = (self._logits(network, batch) for network in (self.student, self.peer))
        return Outputs(mine, {"peer": theirs})

    def _logits(self, network: nn.Module, batch: Batch) -> Tensor:
        return self.task.logits(self.task.call(network, batch))

    def score(
        self, student: Outputs, teacher: Outputs | None, batch: Batch, progress: Progress
    ) -> StepResult:
        """Each network's supervised loss, and its divergence from the other, which is detached."""
        mine, theirs = student.logits, student.features["peer"]
        terms = {
            "task": self.task.loss(mine, batch),
            "kd": kd_loss(mine, theirs, temperature=self.temperature),
            "peer_task": self.task.loss(theirs, batch),
            "peer_kd": kd_loss(theirs, mine, temperature=self.temperature),
        }
        return self.weighted(terms, progress)

    def extra_repr(self) -> str:
        """Name the hyper-parameters that are no network."""
        return f"kd_weight={self.kd_weight}, temperature={self.temperature}"


def _drawn_anew(student: nn.Module) -> nn.Module:
    """A copy whose layers have drawn their weights with another seed."""
    peer = deepcopy(student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + SEED_OFFSET)
        for name, module in reversed(list(peer.named_modules())):  # what holds others has its say
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
            elif list(module.parameters(recurse=False)):
                raise RecipeError(
                    f"The student's {name or 'network'} ({type(module).__name__}) has weights but "
                    "no `reset_parameters` to draw them anew; give the second network as `peer`."
                )
    return peer


def _check_pair(student: nn.Module, peer: nn.Module, task: Task) -> None:
    if {id(p) for p in student.parameters()} & {id(p) for p in peer.parameters()}:
        raise RecipeError(
            "The peer shares weights with the student, so neither has anything to teach; give a "
            "network of its own."
        )
    if fingerprint(peer) == fingerprint(student):
        raise RecipeError(
            "The peer has the student's weights, so neither has anything to teach; give one with "
            "other initial weights."
        )
    mine, theirs = (probe(network, task).logits.shape[-1] for network in (student, peer))
    if mine != theirs:
        raise RecipeError(
            f"The student tells {mine} classes apart and the peer {theirs}; give both networks the "
            "same classes."
        )
