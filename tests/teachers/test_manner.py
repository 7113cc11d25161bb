"""A teacher runs as it is told, and the network that was given stays as it is."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from tests.systems.tiny import TinyPictureTask, batch_of, conv_teacher
from torch import Tensor, nn

from congener.teachers import FrozenTeacher, Manner, TeacherGroup, fingerprint
from congener.types import Batch

TAPS = ("layer1", "layer2.0", "classifier:input")


@pytest.fixture
def net() -> nn.Sequential:
    """A network whose layers all matter: running statistics, shifts and scales of their own."""
    network = conv_teacher()
    generator = torch.Generator().manual_seed(11)
    for layer in (network.layer1, network.layer2):
        norm = layer[1]
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            value.data = torch.rand(value.shape, generator=generator) + 0.5
    return network


@pytest.fixture
def batch() -> Batch:
    return batch_of(TinyPictureTask(), 12)


def plain(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What the network says, and what flows through the taps, by hand."""
    net.eval()
    with torch.no_grad():
        x = net.layer1(batch["image"])
        before = net.layer2[0](x)
        pooled = net.pooled(net.layer2[2](net.layer2[1](before)))
        return dict(
            zip(("logits", *TAPS), (net.classifier(pooled), x, before, pooled), strict=True)
        )


def said(teacher: FrozenTeacher, batch: Batch) -> dict[str, Tensor]:
    outputs = teacher(batch)
    return {"logits": outputs.logits, **outputs.features}


@pytest.fixture
def teacher(net: nn.Sequential) -> Iterator[FrozenTeacher]:
    weights, strides = fingerprint(net), [value.stride() for value in net.parameters()]
    frozen = FrozenTeacher(net, TinyPictureTask(), TAPS)
    yield frozen
    assert frozen.model is net
    assert fingerprint(net) == weights
    assert [value.stride() for value in net.parameters()] == strides
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_by_default_it_is_the_network_bit_for_bit(teacher: FrozenTeacher, batch: Batch) -> None:
    assert teacher.manner == "fp32"
    assert teacher.networks == (teacher,)
    wanted = plain(teacher.model, batch)
    for way in (Manner(), Manner("fp32")):
        teacher.run_as(way, "fp32")
        found = said(teacher, batch)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value)


def test_no_gradient_flows_to_what_it_is_asked_about(teacher: FrozenTeacher, batch: Batch) -> None:
    asked = batch | {"image": batch["image"].clone().requires_grad_()}
    assert not any(value.requires_grad for value in said(teacher, asked).values())


def test_fp32_stays_exact_whatever_surrounds_it(teacher: FrozenTeacher, batch: Batch) -> None:
    wanted = plain(teacher.model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert said(teacher, batch)["layer2.0"].dtype == torch.bfloat16  # as the student does
        teacher.run_as(Manner("fp32"), "fp32")
        found = said(teacher, batch)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_bf16_is_autocast_and_says_float32(teacher: FrozenTeacher, batch: Batch) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain(teacher.model, batch)
    exact = plain(teacher.model, batch)
    teacher.run_as(Manner("bf16"), "bf16")
    found = said(teacher, batch)
    assert wanted["logits"].dtype == torch.bfloat16
    for name, value in wanted.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], value.float())
        assert not torch.equal(found[name], exact[name])
    assert teacher.manner == "bf16"


def test_channels_last_is_a_copy_in_that_layout(teacher: FrozenTeacher, batch: Batch) -> None:
    wanted = plain(teacher.model, batch)
    teacher.run_as(Manner(channels_last=True), "fp32, channels_last")
    found = said(teacher, batch)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    assert found["layer1"].is_contiguous(memory_format=torch.channels_last)
    assert not wanted["layer1"].is_contiguous(memory_format=torch.channels_last)
    teacher.run_as(Manner(), "fp32")  # and back
    assert torch.equal(said(teacher, batch)["layer1"], wanted["layer1"])


def test_a_copy_runs_in_evaluation_mode_and_moves(teacher: FrozenTeacher, batch: Batch) -> None:
    teacher.run_as(Manner(channels_last=True), "")
    first = said(teacher, batch)
    teacher.model.train()
    teacher._runs.train()
    second = said(teacher.to(torch.device("cpu")), batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_runs_moves_with_the_network(net: nn.Sequential) -> None:
    teacher = FrozenTeacher(net, TinyPictureTask())
    teacher.run_as(Manner(channels_last=True), "")
    teacher.to(torch.device("meta"))
    assert {p.device.type for p in teacher._runs.parameters()} == {"meta"}
    assert {p.device.type for p in net.parameters()} == {"meta"}


def test_statistics_of_the_batch_in_a_copy(net: nn.Sequential, batch: Batch) -> None:
    before = fingerprint(net)
    teacher = FrozenTeacher(net, TinyPictureTask(), ["layer1.1"], batch_statistics=True)
    wanted = teacher(batch).features["layer1.1"]
    teacher.run_as(Manner(channels_last=True), "")
    found = teacher(batch).features["layer1.1"]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert fingerprint(net) == before


def test_all_of_a_group_can_be_told(net: nn.Sequential) -> None:
    task = TinyPictureTask()
    main, other = FrozenTeacher(net, task), FrozenTeacher(conv_teacher(), task)
    assert TeacherGroup(main, {"other": other}).networks == (main, other)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (Manner(), "bf16"),
        (Manner("fp32"), "fp32"),
        (Manner("bf16", compiled=True), "bf16, compiled"),
        (Manner(None, channels_last=True, compiled=True), "bf16, channels_last, compiled"),
    ],
)
def test_in_words(way: Manner, words: str) -> None:
    assert way.named("bf16") == words


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_is_eager_for_any_number_of_rows(
    teacher: FrozenTeacher, batch: Batch, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 1e-5 of the largest entry. The quick one traces, without a compiler behind it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    teacher.run_as(Manner(compiled=True), "fp32, compiled")
    assert teacher._runs is not teacher.model
    for rows in (12, 5, 7):
        part = {name: value[:rows] for name, value in batch.items()}
        wanted, found = plain(teacher.model, part), said(teacher, part)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            tolerance = 1e-5 * float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)
    other = FrozenTeacher(conv_teacher(), TinyPictureTask(), TAPS)
    other.run_as(Manner(compiled=True), "")
    mine, theirs = said(other, batch), plain(other.model, batch)
    torch.testing.assert_close(mine["logits"], theirs["logits"], rtol=0, atol=1e-5)
    assert said(teacher, batch)["logits"].sub(mine["logits"]).abs().max() > 0.1
