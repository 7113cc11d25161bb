"""Every public loss keeps the contract, and every check of the contract can fail."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from tests.contract.broken import BROKEN
from torch import Tensor, nn

from congener import losses
from congener.conformance.contract import CHECKS, MASK, measure
from congener.conformance.table import LOSSES, NOT_LOSSES, LossCase
from congener.types import Paper

CLASSES = [
    loss
    for loss in map(losses.__dict__.get, losses.__all__)
    if isinstance(loss, type) and issubclass(loss, losses.Loss) and loss is not losses.Loss
]
FUNCTIONS = [name for name in losses.__all__ if name.endswith("_loss") and name.islower()]
MODULES = {
    cls: case
    for cls in CLASSES
    for case in LOSSES.values()
    if cls.__name__ in case.covers and case.module is not None
}

each_check = pytest.mark.parametrize("name", CHECKS)
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def failures(name: str, case: LossCase) -> list[Any]:
    return [check for check in measure(name, case) if not check.passed]


def marks_of(name: str, case: LossCase) -> list[pytest.MarkDecorator]:
    """Compiling takes half a second: one case of each class in the default tier."""
    again = case.module is not None and case not in MODULES.values()
    return [pytest.mark.slow] if name == "compiled_is_eager" and again else []


@pytest.mark.parametrize(("name", "case"), [
    pytest.param(name, case, id=f"{name}-{label}", marks=marks_of(name, case))
    for name in CHECKS for label, case in LOSSES.items()
])  # fmt: skip
def test_contract(name: str, case: LossCase) -> None:
    assert not failures(name, case)


@each_check
def test_a_broken_loss_is_caught(name: str) -> None:
    sound, broken = BROKEN[name]
    assert not failures(name, sound)
    assert failures(name, broken)


def test_every_check_has_its_broken_loss() -> None:
    assert list(BROKEN) == list(CHECKS)


def test_an_exemption_is_for_a_check_that_fails() -> None:
    for label, case in LOSSES.items():
        for name, reason in case.exempt.items():
            assert name in CHECKS, (label, name)
            assert reason.strip()
            bare = LossCase(**{**vars(case), "exempt": {}})
            assert failures(name, bare), f"{label} needs no exemption from {name}"


def test_every_public_loss_is_listed() -> None:
    covered = {name for case in LOSSES.values() for name in case.covers}
    assert not covered & set(NOT_LOSSES)
    assert set(losses.__all__) == covered | set(NOT_LOSSES)
    assert set(MODULES) == set(CLASSES)


@each_class
def test_facts_about_the_module(cls: Any) -> None:
    assert cls.__final__
    assert cls.__bases__ == (losses.Loss,)
    assert isinstance(cls.paper, Paper)
    assert cls.paper.url.startswith("https://")
    assert cls.equation.isprintable()
    assert "=" in cls.equation
    assert cls.family in ("response", "feature", "relation", "contrast", "adversarial")
    words = inspect.signature(cls.forward).parameters
    assert cls.needs_labels is (
        "labels" in words and words["labels"].default is words["labels"].empty
    )
    case = MODULES[cls]
    assert cls.zero_at_match is case.zero_at_match
    assert cls.batch_coupled is case.batch_coupled


@each_class
def test_every_default_has_a_source(cls: Any) -> None:
    parameters = inspect.signature(cls).parameters
    assert set(cls.sources) == set(parameters)
    module = MODULES[cls].module()
    assert isinstance(module, nn.Module)
    for name, parameter in parameters.items():
        source = cls.sources[name]
        assert source.strip()
        if parameter.default is parameter.empty:
            assert source.startswith("yours: "), (name, source)
        else:
            assert not source.startswith("yours: "), (name, source)
        assert f"{name}={getattr(module, name)!r}" in repr(module)
    assert len([name for name in parameters if not cls.sources[name].startswith("yours: ")]) <= 8


@each_class
def test_wrong_options_are_told_at_construction(cls: Any) -> None:
    build = MODULES[cls].module
    for name, parameter in inspect.signature(cls).parameters.items():
        if isinstance(parameter.default, str):
            with pytest.raises(ValueError, match=f"{name} must be one of"):
                build(**{name: "batchmean"})
        if "temperature" in name:
            for value in (0.0, -1.0, torch.nan, torch.inf):
                with pytest.raises(ValueError, match="must be positive"):
                    build(**{name: value})


@pytest.mark.parametrize("name", FUNCTIONS)
def test_defaults_of_function_and_module_agree(name: str) -> None:
    function = inspect.signature(getattr(losses, name)).parameters
    cls = next((c for c in CLASSES if c.__name__.lower() == name.replace("_", "")), None)
    if cls is None:
        return
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.name in function and parameter.default is not parameter.empty:
            assert function[parameter.name].default == parameter.default, parameter.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_of_functions(name: str) -> None:
    parameters = inspect.signature(getattr(losses, name)).parameters
    for word, default in (("mask", None), ("reduction", "mean"), ("scope", "global")):
        assert parameters[word].default == default
        assert parameters[word].kind is inspect.Parameter.KEYWORD_ONLY
    for parameter in parameters.values():
        if parameter.default is parameter.empty:
            assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert parameter.name not in ("T", "lmbda", "lam", "kwargs", "f_s", "f_t")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    return jaxtyped(inspect.unwrap(function), typechecker=beartype)


@pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)
def test_shape_annotations_hold(case: LossCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The case is called with its functions' annotations checked."""
    if not isinstance(case.call, partial) and case.call in losses.__dict__.values():
        typed = checked(case.call)
    elif isinstance(case.call, partial) and case.call.func in losses.__dict__.values():
        typed = partial(checked(case.call.func), **case.call.keywords)
    else:
        return
    student, teacher = case.make(20)
    typed(student, teacher)
    typed(student, teacher, mask=MASK)
    typed(student.float(), teacher.float(), mask=MASK, reduction="none")
    with pytest.raises(TypeCheckError):
        typed(student, teacher, mask=MASK.float())
    with pytest.raises(TypeCheckError):
        typed(student, teacher[:5])


@each_class
def test_shape_annotations_of_forward_hold(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = MODULES[cls]
    monkeypatch.setattr(cls, "forward", checked(cls.forward))
    student, teacher = case.make(20)
    module = case.module().double()
    module(student, teacher)
    module(student, teacher, mask=MASK)
    with pytest.raises(Exception):  # noqa: B017, PT011  a type or a shape error, whichever is first
        module(student, teacher, mask=MASK[:3])


def test_the_table_makes_float64_rows() -> None:
    for case in LOSSES.values():
        student, teacher = case.make(0)
        assert student.dtype == teacher.dtype == torch.float64
        assert len(student) == len(teacher) == 7
        assert len(case.make(0, batch=1)[0]) == 1
        assert isinstance(case.call(student, teacher), Tensor)
