"""The lean form of the token divergences is the plain one, and is lean."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from congener.conformance.contract import CHECKS, measure
from congener.conformance.table import LOSSES
from congener.conformance.table.case import logits
from congener.errors import NonFiniteLossError, ShapeError
from congener.ops import vocabulary
from congener.ops.vocabulary import (
    Divergence,
    common_prefix,
    common_vocabulary,
    forward_kl,
    generalized_js,
    ranked_l1,
    reverse_kl,
    skew_forward_kl,
    skew_reverse_kl,
    token_divergence,
    total_variation,
)

DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "js 0.1": generalized_js(0.1),
    "js 0.7": generalized_js(0.7),
    "skew forward": skew_forward_kl(0.2),
    "skew reverse": skew_reverse_kl(0.2),
    "total variation": total_variation,
    "ranked": ranked_l1,
}
MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()
EAGER = [check for check in CHECKS if check != "compiled_is_eager"]  # what is compiled is plain

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)


@pytest.fixture
def lean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything is large, and three tokens of seven words make a chunk."""
    monkeypatch.setattr(vocabulary, "LEAN_FROM", 0)
    monkeypatch.setattr(vocabulary, "CHUNK", 21)
    calls = []
    apply = vocabulary._lean

    def counted(*args: object) -> Tensor:
        calls.append(args)
        return apply(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(vocabulary, "_lean", counted)
    yield
    assert calls


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    return logits(seed, 3, (4, 7))


def both(
    divergence: Divergence, student: Tensor, teacher: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum under unequal weights."""
    student = student.detach().requires_grad_()
    values = token_divergence(student, teacher, divergence, **options)  # type: ignore[arg-type]
    weights = torch.linspace(1, 2, values.numel(), dtype=values.dtype).reshape(values.shape)
    (gradient,) = torch.autograd.grad((values * weights).sum(), student)
    return values.detach(), gradient


def plain(divergence: Divergence, student: Tensor, teacher: Tensor, **options: object) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "LEAN_FROM", 10**9)
        return both(divergence, student, teacher, **options)


def assert_same(actual: object, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("check", EAGER)
@pytest.mark.parametrize("name", ["gkd_warm", "skew_kl", "total_variation", "uld_foreign"])
def test_the_lean_form_keeps_the_contract(
    name: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "LEAN_FROM", 0)
    monkeypatch.setattr(vocabulary, "CHUNK", 12)
    assert not [found for found in measure(check, LOSSES[name]) if not found.passed]


@each_divergence
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_equal_in_value_and_gradient(
    divergence: Divergence, mask: Tensor | None, temperature: float, lean: None
) -> None:
    student, teacher = tokens(0)
    options = {"mask": mask, "temperature": temperature}
    expected = plain(divergence, student, teacher, **options)
    assert_same(both(divergence, student, teacher, **options), expected)
    # the logits of all tokens but the last, which are no view of a matrix
    longer = [torch.cat([x, x[:, :1]], dim=1)[:, :-1] for x in (student, teacher)]
    assert not longer[0].is_contiguous()
    assert_same(both(divergence, *longer, **options), expected)
    if mask is None:
        rows = (student.flatten(0, 1), teacher.flatten(0, 1))
        assert_same(both(divergence, *rows, **options)[0], expected[0].flatten())  # type: ignore[index]


@each_divergence
def test_gradcheck(divergence: Divergence, lean: None) -> None:
    student, teacher = tokens(1)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: token_divergence(x, teacher, divergence, temperature=1.5, mask=MASK), student
    )


@each_divergence
@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_excluded_tokens(divergence: Divergence, sides: tuple[int, ...], lean: None) -> None:
    pair = [*tokens(2)]
    for side in sides:
        pair[side][..., [0, 3]] = -torch.inf
    actual = both(divergence, *pair)
    assert_same(actual, plain(divergence, *pair))
    assert all(x.isfinite().all() for x in actual)
    if sides == (0, 1):
        assert (actual[1][..., [0, 3]] == 0).all()


@each_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types(divergence: Divergence, dtype: torch.dtype, lean: None) -> None:
    student, teacher = (x.to(dtype) for x in tokens(3))
    values, gradient = both(divergence, student, teacher)
    wide, wide_gradient = both(divergence, student.double(), teacher.double())
    assert values.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(values.double(), wide, rtol=2e-6, atol=1e-6)
    limit = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype]
    error = (gradient.double() - wide_gradient).abs().max()
    assert error <= limit * wide_gradient.abs().max()


def test_float16_keeps_what_is_small_until_it_is_scaled(lean: None) -> None:
    """A gradient of 1e-9 times a loss scale of 2^16 is a number in float16; 1e-9 is not."""
    student = torch.tensor([[0.0, -20.0]], dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[0.0, -20.5]], dtype=torch.float16)
    (2.0**16 * token_divergence(student, teacher, forward_kl)).sum().backward()
    assert student.grad is not None
    assert student.grad[0, 1] > 0


@each_divergence
def test_what_is_masked_is_not_looked_at(divergence: Divergence, lean: None) -> None:
    student, teacher = tokens(4)
    expected = both(divergence, student, teacher, mask=MASK)
    student[~MASK], teacher[~MASK] = torch.nan, torch.inf
    assert_same(both(divergence, student, teacher, mask=MASK), expected)


@each_divergence
def test_what_is_not_a_number_is_told(divergence: Divergence, lean: None) -> None:
    for side in (0, 1):
        pair = [*tokens(5)]
        pair[side][1, 2, 3] = torch.nan
        with pytest.raises(NonFiniteLossError, match="is NaN for sample"):
            token_divergence(*pair, divergence)


@each_divergence
@pytest.mark.parametrize("size", [0, 10**9], ids=["lean", "plain"])
def test_the_teacher_is_a_constant(
    divergence: Divergence, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "LEAN_FROM", size)
    student, teacher = (x.requires_grad_() for x in tokens(6))
    token_divergence(student, teacher, divergence).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_backward_twice_gives_the_same_twice(lean: None) -> None:
    student, teacher = tokens(6)
    student.requires_grad_()
    loss = token_divergence(student, teacher, forward_kl).sum()
    (first,) = torch.autograd.grad(3 * loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, student)
    assert_same(first, second, 0)


def test_a_second_derivative_is_refused_not_wrong(lean: None) -> None:
    student, teacher = tokens(7)
    student.requires_grad_()
    loss = token_divergence(student, teacher, forward_kl).sum()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_the_plain_form_has_second_derivatives() -> None:
    student, teacher = logits(8, 2, (3,))
    student.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: token_divergence(x, teacher, generalized_js(0.3)), student
    )


def test_only_the_gradient_is_kept(lean: None) -> None:
    """Of all tensors of the logits' size, backward needs one."""
    sizes: dict[bool, list[int]] = {}
    for chunked in (True, False):
        kept: list[int] = []

        def pack(x: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(x.numel())
            return x

        student, teacher = (x.requires_grad_() for x in tokens(9))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vocabulary, "LEAN_FROM", 0 if chunked else 10**9)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                token_divergence(student, teacher, generalized_js(0.5))
        sizes[chunked] = [size for size in kept if size >= student.numel()]
    assert len(sizes[True]) == 1
    assert len(sizes[False]) > 5


def test_without_a_gradient_nothing_is_kept(lean: None) -> None:
    student, teacher = tokens(10)
    values = token_divergence(student, teacher, forward_kl)
    assert not values.requires_grad
    assert_same(values, plain(forward_kl, student, teacher)[0])  # type: ignore[index]


def test_large_logits_take_the_lean_form_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(vocabulary, "_lean", lambda *args: taken.append(args) or args[0].sum(-1))
    for rows in (1, vocabulary.LEAN_FROM // 2**10):
        x = torch.zeros(rows, 2**10)
        token_divergence(x, x, forward_kl)
        assert bool(taken) is (rows > 1)


def test_a_large_vocabulary_in_float32_is_as_in_float64() -> None:
    student, teacher = (x.float() for x in logits(11, 40, (2**14,)))
    for divergence in DIVERGENCES.values():
        values, gradient = both(divergence, student, teacher)
        wide, wide_gradient = both(divergence, student.double(), teacher.double())
        torch.testing.assert_close(values.double(), wide, rtol=2e-6, atol=0)
        error = (gradient.double() - wide_gradient).abs().max()
        assert error <= 5e-6 * wide_gradient.abs().max()


def test_compiled_is_plain_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "LEAN_FROM", 0)
    torch.compiler.reset()
    student, teacher = tokens(12)

    def loss(x: Tensor) -> Tensor:
        return token_divergence(x, teacher, generalized_js(0.3), mask=MASK)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    own = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(own).sum(), own)
    other = student.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(other).sum(), other)
    assert_same(gradient, expected)


def test_padding_is_cut_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_CUT", set())
    assert common_prefix(100, 100) == common_prefix(100, 100, 97) == 100
    with pytest.warns(UserWarning, match=r"student's .* 151936 .* 152064; .* the first 151936 is"):
        assert common_prefix(151936, 152064, 151665) == 151936
    assert common_prefix(151936, 152064) == 151936  # in silence: warnings are errors
    with pytest.warns(UserWarning, match=r"student's .* 152064 words and the teacher's 151936"):
        assert common_prefix(152064, 151936) == 151936
    with pytest.warns(UserWarning, match="the first 12 is"):
        student, teacher = common_vocabulary(torch.ones(2, 3, 12), torch.ones(2, 3, 20), 12)
    assert student.shape == teacher.shape == (2, 3, 12)


@pytest.mark.parametrize(
    ("student_size", "teacher_size", "tokenizer_size"),
    [
        (151936, 152064, 151937),  # a word that the student lacks
        (32000, 32001, None),  # an added word
        (50256, 50256 + 512, None),
        (32, 40, None),  # a quarter of all words and more
        (128256, 32000, None),
    ],
)
def test_two_tokenizers_are_refused(
    student_size: int, teacher_size: int, tokenizer_size: int | None
) -> None:
    for sizes in ((student_size, teacher_size), (teacher_size, student_size)):
        told = rf"student's .* {sizes[0]} words and the teacher's {sizes[1]}.* by uld_loss"
        with pytest.raises(ShapeError, match=told):
            common_prefix(*sizes, tokenizer_size)
