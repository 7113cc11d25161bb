"""What is kept of a teacher's answers comes back, exactly or nearly."""

import math

import pytest
import torch
from torch import Tensor

from congener.errors import DataError, RecipeError
from congener.teachers import Field


def logits_of(rows: int = 64, classes: int = 1000, deviation: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return deviation * torch.randn(rows, classes, generator=generator)


def there_and_back(field: Field, value: Tensor) -> Tensor:
    parts = field.encode(value)
    assert {name: (v.dtype, v.shape[1:]) for name, v in parts.items()} == {
        part.name: (part.dtype, part.shape) for part in field.parts
    }
    return field.decode(parts)


@pytest.mark.parametrize(
    ("returns", "dtype"), [("float32", "fp32"), ("bfloat16", "bf16"), ("bfloat16", "fp32"),
                           ("float16", "fp16"), ("float16", "fp32")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["logits", "layer1"])
def test_what_is_called_exact_is(name, returns, dtype) -> None:
    value = logits_of().to(getattr(torch, returns))
    field = Field(name, (1000,), returns, dtype)
    assert field.exact
    found = there_and_back(field, value)
    assert found.dtype == value.dtype
    assert torch.equal(found, value)


def test_a_feature_is_rounded_as_it_is() -> None:
    value = logits_of(3, 8).view(3, 2, 4)
    field = Field("layer1", (2, 4), "float32", "fp16")
    assert not field.exact
    assert torch.equal(there_and_back(field, value), value.half().float())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_logits_are_rounded_finest_at_the_top(dtype) -> None:
    value = logits_of() + 40  # whose plain rounding would be coarse
    field = Field("logits", (1000,), "float32", dtype)
    off = (there_and_back(field, value) - value).abs()
    bits = 11 if dtype == "fp16" else 8
    # Half a unit of the last place of the distance from a centre near the largest.
    centre = value.amax(-1, keepdim=True).to(field.parts[0].dtype).float()
    assert (off <= (value - centre).abs() * 2.0**-bits + 1e-5).all()
    assert off.gather(-1, value.argmax(-1, keepdim=True)).max() < 0.2 * off.max()


def test_logits_of_several_positions() -> None:
    value = logits_of(6, 10).view(2, 3, 10)
    field = Field("logits", (3, 10), "float32", "fp16", 4, 2.0)
    torch.testing.assert_close(
        there_and_back(field, value).amax(-1), value.amax(-1), rtol=1e-3, atol=1e-3
    )
    assert there_and_back(field, value).shape == (2, 3, 10)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_rest_keeps_its_weight(temperature) -> None:
    value, k = logits_of(), 16
    found = there_and_back(Field("logits", (1000,), "float32", "fp32", k, temperature), value)
    true = (value.double() / temperature).softmax(-1)
    mine = (found.double() / temperature).softmax(-1)
    top = value.topk(k).indices
    torch.testing.assert_close(mine.gather(-1, top), true.gather(-1, top), rtol=1e-5, atol=0)
    rest = torch.ones_like(mine, dtype=torch.bool).scatter(-1, top, False)
    shares = mine[rest].view(len(value), -1)
    torch.testing.assert_close(shares.amax(-1), shares.amin(-1), rtol=1e-5, atol=0)  # evenly
    torch.testing.assert_close(found.gather(-1, top), value.gather(-1, top))


def gradient(student: Tensor, probabilities: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    loss = -(probabilities * (student / temperature).log_softmax(-1)).sum(-1).mean()
    return torch.autograd.grad(loss, student)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_stated_errors_of_the_gradient(temperature) -> None:
    teacher = logits_of(128)
    noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(2))
    student = (0.5 * teacher + noise).double()
    target = (teacher.double() / temperature).softmax(-1)
    exact = gradient(student, target, temperature)

    def error(probabilities: Tensor) -> float:
        return float((gradient(student, probabilities, temperature) - exact).norm() / exact.norm())

    def of(dtype: str, top_k: int | None = None) -> float:
        field = Field("logits", (1000,), "float32", dtype, top_k, temperature)
        return error((there_and_back(field, teacher).double() / temperature).softmax(-1))

    top = target.topk(64)
    share = top.values / top.values.sum(-1, keepdim=True)
    normalised = error(torch.zeros_like(target).scatter(-1, top.indices, share))
    stated = {1.0: (2e-4, 1e-3, 0.02, 0.1), 4.0: (7e-4, 6e-3, 0.9, 6)}[temperature]
    found = (of("fp16"), of("bf16"), of("fp32", 64), normalised)
    assert found == pytest.approx(stated, rel=0.35)
    assert of("fp16") <= 1e-3
    assert of("fp32", 64) <= 0.25 * normalised
    assert of("fp16", 64) == pytest.approx(of("fp32", 64), rel=0.01)


def test_few_classes_are_numbered_in_two_bytes_and_many_in_four() -> None:
    few, many = (
        Field("logits", (n,), "float32", "fp16", 2).parts for n in (1 << 15, (1 << 15) + 1)
    )
    assert few[1].dtype == torch.int16
    assert many[1].dtype == torch.int32
    value = torch.zeros(1, 1 << 15)
    value[0, -1] = 9.0
    field = Field("logits", (1 << 15,), "float32", "fp16", 1)
    assert int(there_and_back(field, value).argmax()) == (1 << 15) - 1


def test_a_value_that_a_format_cannot_hold_is_refused() -> None:
    value = torch.full((1, 2), 70_000.0)
    for name in ("layer1", "logits"):
        with pytest.raises(DataError, match=rf"teacher's {name} reach 7e\+04, which fp16 cannot "):
            Field(name, (2,), "float32", "fp16").encode(value)
        Field(name, (2,), "float32", "bf16").encode(value)
    spread = torch.tensor([[0.0, -1e5]])
    with pytest.raises(DataError, match="keep them as bf16 or fp32"):
        Field("logits", (2,), "float32", "fp16").encode(spread)


@pytest.mark.parametrize(("name", "shape", "top_k", "sentence"), [
    ("layer1", (8,), 2, "top_k is for logits, not for 'layer1'; leave it out"),
    ("logits", (8,), 8, "keeps 1 to 7 of 8 logits, not 8; lower it"),
    ("logits", (8,), 0, "keeps 1 to 7 of 8 logits, not 0"),
])  # fmt: skip
def test_a_choice_of_no_use_is_refused(name, shape, top_k, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Field(name, shape, "float32", "fp16", top_k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("chosen", [{"top_k": 2}, {"sampled": 3}, {"top_k": 2, "sampled": 3}])
def test_a_temperature_that_is_none_is_refused(chosen, temperature) -> None:
    with pytest.raises(RecipeError, match="temperature must be positive and finite, not "):
        Field("logits", (8,), "float32", "fp16", temperature=temperature, **chosen)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("known", [1, 2, 3, 6])
def test_words_that_the_teacher_excludes_are_never_drawn(known, temperature) -> None:
    value = logits_of(200, 8)
    excluded = value.topk(8 - known, dim=-1).indices
    value = value.scatter(-1, excluded, -math.inf)
    field = Field("logits", (8,), "float32", "fp32", 2, temperature, sampled=5)
    draws = field.draws(torch.arange(200), 0)
    found = field.decode(field.encode(value, draws))
    assert not found.isnan().any()
    assert (found.gather(-1, excluded) == -math.inf).all()
    top = value.topk(min(2, known), dim=-1).indices
    torch.testing.assert_close(found.gather(-1, top), value.gather(-1, top))
    law = (value / temperature).softmax(-1)
    torch.testing.assert_close((found / temperature).softmax(-1).sum(-1), law.sum(-1))
    if known <= 2:
        torch.testing.assert_close(found, value)


def test_a_field_says_what_it_is() -> None:
    assert str(Field("logits", (10,), "float32", "fp16", 4, 2.0)) == (
        "float32 [10] kept as fp16, top 4 at 2"
    )
    assert [part.nbytes for part in Field("logits", (10,), "float32", "fp16", 4).parts] == [12, 8]
    assert math.prod(Field("layer1", (2, 3), "float32").parts[0].shape) == 6
