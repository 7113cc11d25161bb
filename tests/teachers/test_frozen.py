"""Nothing that is done to a system reaches its teacher."""

from copy import deepcopy

import pytest
import torch
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn

from congener.losses import SPLoss
from congener.systems import Distillation
from congener.teachers import FrozenTeacher, fingerprint
from congener.types import Progress, Term


def normalised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.fixture
def task() -> TinyTask:
    return TinyTask()


@pytest.fixture
def system(task: TinyTask) -> Distillation:
    term = Term(SPLoss(), 3.0, "hidden", "hidden")
    return Distillation(student_net(), teacher_net(), [term], task=task)


def test_is_frozen_at_once(task: TinyTask) -> None:
    net = teacher_net().train()
    FrozenTeacher(net, task)
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.modules())


def test_gives_logits_and_taps_without_gradient(task: TinyTask) -> None:
    net, batch = teacher_net(), batch_of(task)
    outputs = FrozenTeacher(net, task, ["hidden"])(batch)
    assert not outputs.logits.requires_grad
    assert not outputs.features["hidden"].requires_grad
    with torch.no_grad():
        assert torch.equal(outputs.logits, net.eval()(batch["image"]))
        assert torch.equal(outputs.features["hidden"], net.hidden(batch["image"]))


def test_stays_bit_identical_whatever_is_called(system: Distillation, task: TinyTask) -> None:
    assert isinstance(system.teacher, FrozenTeacher)
    net = system.teacher.model
    before = fingerprint(net)
    optimizer = torch.optim.SGD(system.parameters(), lr=0.1)
    system.train()
    net.train()  # whoever holds the network may do so
    for step in range(3):
        total, _, _ = system(batch_of(task), Progress(step, 3, 0))
        total.backward()
        optimizer.step()
        system.train()
    assert fingerprint(net) == before
    assert all(p.grad is None for p in net.parameters())


def test_train_of_the_system_does_not_reach_it(system: Distillation) -> None:
    assert isinstance(system.teacher, FrozenTeacher)
    system.train()
    assert not any(m.training for m in system.teacher.model.modules())
    assert system.student.training


def test_is_no_part_of_the_system(system: Distillation) -> None:
    assert isinstance(system.teacher, FrozenTeacher)
    ours = {id(p) for p in system.parameters()} | {id(b) for b in system.buffers()}
    theirs = [*system.teacher.model.parameters(), *system.teacher.model.buffers()]
    assert not ours & {id(value) for value in theirs}
    assert all(name.startswith("student.") for name in system.state_dict())
    assert system.teacher.model not in list(system.modules())


def test_running_statistics_are_used_by_default(task: TinyTask) -> None:
    net, batch = teacher_net(), batch_of(task)
    seen = FrozenTeacher(net, task, ["hidden.1"])(batch).features["hidden.1"]
    norm = net.hidden[1]
    x = net.hidden[0](batch["image"])
    wanted = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(seen, wanted * norm.weight + norm.bias)
    assert not torch.allclose(seen, normalised(x) * norm.weight + norm.bias, atol=1e-2)


def test_batch_statistics_normalise_by_the_batch(task: TinyTask) -> None:
    net, batch = teacher_net(), batch_of(task)
    before = fingerprint(net)
    teacher = FrozenTeacher(net, task, ["hidden.1"], batch_statistics=True)
    norm = net.hidden[1]
    wanted = normalised(net.hidden[0](batch["image"])) * norm.weight + norm.bias
    for _ in range(2):
        seen = teacher(batch).features["hidden.1"]
        torch.testing.assert_close(seen, wanted)
    assert fingerprint(net) == before
    assert not net.dropout.training  # normalisation alone is by the batch
    assert torch.equal(teacher(batch).logits, teacher(batch).logits)


@pytest.mark.parametrize("name", ["hidden.0.weight", "hidden.1.running_mean"])
def test_fingerprint_sees_every_bit(name: str) -> None:
    net = teacher_net()
    other = deepcopy(net)
    assert fingerprint(other) == fingerprint(net)
    value = other.state_dict()[name].view(-1)
    value[0] = torch.nextafter(value[0], torch.tensor(torch.inf))
    assert fingerprint(other) != fingerprint(net)


def test_fingerprint_sees_names_and_shapes() -> None:
    first, second = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        second.weight.copy_(first.weight.reshape(2, 3))
    assert fingerprint(first) != fingerprint(second)
