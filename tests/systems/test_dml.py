"""DML: one step against plain torch, who is detached, and the peer."""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn

from congener.engine import FitConfig
from congener.engine.accumulate import accumulated_step
from congener.engine.machine import build_accelerator
from congener.errors import RecipeError
from congener.systems import DML
from congener.teachers import fingerprint
from congener.types import Outputs, Progress

NOW = Progress(0, 1, 0)


def build(**options: Any) -> DML:
    return DML(options.pop("student", None) or student_net(), task=TinyTask(), **options)


def kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p ‖ q) of softened logits, from the definition, averaged over rows."""
    p, q = (F.softmax(z / temperature, dim=1) for z in (p, q))
    return (p * (p.log() - q.log())).sum(1).mean()


def gradients(loss: Tensor, module: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


@pytest.mark.parametrize("options", [{}, {"kd_weight": 0.3, "temperature": 4.0}])
def test_step_is_the_paper_s(options: dict[str, float]) -> None:
    system = build(**options)
    weight, t = options.get("kd_weight", 1.0), options.get("temperature", 1.0)
    batch = batch_of(system.task)
    total, terms, _ = system(batch, NOW)
    total.backward()
    one, two = system.student(batch["image"]), system.peer(batch["image"])
    of_one = F.cross_entropy(one, batch["labels"]) + weight * t**2 * kl(two.detach(), one, t)
    of_two = F.cross_entropy(two, batch["labels"]) + weight * t**2 * kl(one.detach(), two, t)
    torch.testing.assert_close(total, of_one + of_two)
    torch.testing.assert_close(
        terms,
        {
            "task": F.cross_entropy(one, batch["labels"]),
            "kd": t**2 * kl(two, one, t),
            "peer_task": F.cross_entropy(two, batch["labels"]),
            "peer_kd": t**2 * kl(one, two, t),
        },
    )
    # Each network's gradient is that of its own loss alone, with the other's word as a constant.
    for network, own in ((system.student, of_one), (system.peer, of_two)):
        for parameter, wanted in zip(network.parameters(), gradients(own, network), strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
    assert system.weights(NOW) == {"task": 1, "kd": weight, "peer_task": 1, "peer_kd": weight}


def test_neither_network_is_first() -> None:
    system = build()
    batch = batch_of(system.task)
    swapped = DML(deepcopy(system.peer), task=system.task, peer=deepcopy(system.student))
    torch.testing.assert_close(swapped(batch, NOW)[0], system(batch, NOW)[0])


def test_networks_of_one_mind_teach_each_other_nothing() -> None:
    system = build()
    batch = batch_of(system.task)
    logits = torch.randn(12, 3).requires_grad_()
    shifted = (logits + torch.randn(12, 1)).detach().requires_grad_()
    _, terms = system.score(Outputs(logits, {"peer": shifted}), None, batch, NOW)
    (terms["kd"] + terms["peer_kd"]).backward()
    assert terms["kd"].item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.zeros(12, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(shifted.grad, torch.zeros(12, 3), rtol=0, atol=1e-6)


def test_unlabelled_samples_teach_by_the_divergence_alone() -> None:
    system = build()
    assert system.distils
    batch = batch_of(system.task)
    batch["labels"] = torch.where(torch.arange(12) < 4, batch["labels"], -100)
    one, two = (torch.randn(12, 3).requires_grad_() for _ in range(2))
    _, terms = system.score(Outputs(one, {"peer": two}), None, batch, NOW)
    torch.testing.assert_close(terms["task"], F.cross_entropy(one[:4], batch["labels"][:4]))
    torch.testing.assert_close(terms["peer_task"], F.cross_entropy(two[:4], batch["labels"][:4]))
    torch.testing.assert_close(terms["kd"], kl(two, one))
    torch.testing.assert_close(terms["peer_kd"], kl(one, two))


def test_accumulated_gradients_are_the_whole_batch_s() -> None:
    whole, pieces = (build(student=student_net(norm=False)) for _ in range(2))
    batch = batch_of(whole.task)
    whole(batch, NOW)[0].backward()
    accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
    accumulated_step(pieces, batch, NOW, 3, accelerator)
    for a, b in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_peer_is_the_student_s_architecture_with_weights_of_its_own() -> None:
    student = student_net()
    student[0][1].running_mean.fill_(7.0)  # a student that has seen data
    state, random = fingerprint(student), torch.get_rng_state()
    system = build(student=student)
    assert fingerprint(student) == state
    assert torch.equal(torch.get_rng_state(), random)
    mine, theirs = (dict(x.state_dict()) for x in (system.student, system.peer))
    assert mine.keys() == theirs.keys()
    assert not any(
        torch.equal(mine[key], theirs[key]) for key in mine if key.endswith("weight")
        and mine[key].dim() > 1
    )  # fmt: skip
    assert theirs["hidden.1.running_mean"].eq(0).all()
    assert "peer.hidden.0.weight" in system.state_dict()
    # Linear layers draw from ±1/√fan-in; the peer is initial whatever the student has become.
    with torch.no_grad():
        student[0][0].weight.mul_(100)
    torch.manual_seed(3)
    again = build(student=student)
    assert again.peer[0][0].weight.abs().max() <= 6**-0.5


class Wide(nn.Linear):
    """Its last layer starts at zero, whatever that layer itself would draw."""

    def __init__(self) -> None:
        self.last = None
        super().__init__(6, 8)
        self.last = nn.Linear(8, 3)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.last is not None:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


def test_a_module_has_the_last_word_on_what_it_holds() -> None:
    system = build(student=Wide())
    assert not system.peer.last.weight.any()
    assert not torch.equal(system.peer.weight, system.student.weight)


def test_peer_follows_the_seed() -> None:
    peers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        peers.append(fingerprint(build(student=nn.Sequential(nn.Linear(6, 3))).peer))
        # Building right after the seed is set draws the student's weights: not the peer's.
    assert peers[0] == peers[1] != peers[2]


def test_peer_of_another_architecture_and_the_teacher_that_is_not_asked() -> None:
    peer, teacher = student_net(16), teacher_net()
    before = fingerprint(teacher)
    system = DML(student_net(), teacher, task=TinyTask(), peer=peer)
    assert system.peer is peer
    assert system.teacher is None
    assert fingerprint(teacher) == before
    assert all(p.requires_grad for p in teacher.parameters())
    system(batch_of(system.task), NOW)[0].backward()
    assert all(p.grad is not None for p in peer.parameters())
    assert repr(system).startswith("DML(\n  kd_weight=1.0, temperature=1.0\n")


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def sharing() -> dict[str, Any]:
    student = student_net()
    return {"student": student, "peer": nn.Sequential(*student)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"student": nn.Sequential(nn.Linear(6, 3), Scale())},
            "The student's 1 (Scale) has weights but no `reset_parameters` to draw them anew; give "
            "the second network as `peer`.",
        ),
        (
            sharing(),
            "The peer shares weights with the student, so neither has anything to teach; give a "
            "network of its own.",
        ),
        (
            {"peer": student_net()},
            "The peer has the student's weights, so neither has anything to teach; give one with "
            "other initial weights.",
        ),
        (
            {"peer": nn.Linear(6, 5)},
            "The student tells 3 classes apart and the peer 5; give both networks the same "
            "classes.",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        build(**options)
    assert str(error.value) == sentence


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match="temperature"):
        build(temperature=0)
