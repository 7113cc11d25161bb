"""A loss from hidden states is the loss of the logits, and never holds the logits."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from congener.errors import NonFiniteLossError, ShapeError
from congener.losses import GKDLoss, gkd_loss, skew_kl_loss, total_variation_loss
from congener.ops.head import LazyLogits, loss_from_hidden

LOSSES: dict[str, Callable[..., Tensor]] = {
    "forward": partial(gkd_loss, beta=0.0, reduction="none"),
    "reverse": partial(gkd_loss, beta=1.0, reduction="none"),
    "js": partial(gkd_loss, beta=0.3, temperature=2.0, reduction="none"),
    "skew forward": partial(skew_kl_loss, reduction="none"),
    "skew reverse": partial(skew_kl_loss, direction="reverse", reduction="none"),
    "total variation": partial(total_variation_loss, reduction="none"),
    "module": GKDLoss(reduction="none"),
}
cross_entropy = partial(F.cross_entropy, reduction="none")
js = LOSSES["js"]
BATCH, TOKENS, VOCAB = 3, 5, 11
MASK = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1]]).bool()

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def head(seed: int, channels: int, *, bias: bool = True) -> LazyLogits:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, TOKENS, channels), (VOCAB, channels), (VOCAB,)]
    given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return LazyLogits(*given[: 3 if bias else 2])


def pair(seed: int) -> tuple[LazyLogits, LazyLogits]:
    """Of a student with a bias and a teacher without."""
    return head(seed, 4), head(seed + 50, 6, bias=False)


def logits(given: LazyLogits) -> Tensor:
    return F.linear(*given)


def cast(given: LazyLogits, dtype: torch.dtype) -> LazyLogits:
    return LazyLogits(*(None if x is None else x.to(dtype) for x in given))  # type: ignore[arg-type]


def leaves(given: LazyLogits) -> LazyLogits:
    return LazyLogits(*(None if x is None else x.detach().requires_grad_() for x in given))  # type: ignore[arg-type]


def with_gradients(value: Callable[[LazyLogits], Tensor], student: LazyLogits) -> list[Tensor]:
    """The value, and the gradients of its square, which no constant factor gives."""
    student = leaves(student)
    found = value(student)
    wanted = [x for x in student if x is not None]
    return [found.detach(), *torch.autograd.grad(found**2, wanted)]


def from_logits(
    loss: Callable[..., Tensor], teacher: Tensor, mask: Tensor | None = None
) -> Callable[[LazyLogits], Tensor]:
    """The mean over tokens that count, written plainly; logits are selected as rows."""
    kept = torch.ones(BATCH, TOKENS, dtype=torch.bool) if mask is None else mask

    def value(student: LazyLogits) -> Tensor:
        return loss(logits(student)[kept], teacher[kept]).sum() / kept.sum().clamp(min=1)

    return value


def assert_same(actual: object, expected: object, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_loss
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_value_and_gradients_of_the_logits(
    loss: Callable[..., Tensor], mask: Tensor | None, chunk: int
) -> None:
    student, teacher = pair(0)
    expected = with_gradients(from_logits(loss, logits(teacher), mask), student)
    for given in (teacher, logits(teacher)):
        actual = with_gradients(
            lambda x, given=given: loss_from_hidden(loss, x, given, mask=mask, chunk=chunk),
            student,
        )
        assert_same(actual, expected)
    without_bias = student._replace(bias=None)
    assert_same(
        with_gradients(
            lambda x: loss_from_hidden(loss, x, teacher, mask=mask, chunk=chunk), without_bias
        ),
        with_gradients(from_logits(loss, logits(teacher), mask), without_bias),
    )


def test_a_teacher_with_a_bias() -> None:
    student, teacher = head(20, 4), head(70, 6)
    expected = js(logits(student), logits(teacher)).mean()
    assert_same(loss_from_hidden(js, student, teacher, chunk=4), expected)


@each_loss
def test_gradcheck(loss: Callable[..., Tensor]) -> None:
    student, teacher = pair(1)

    def value(*given: Tensor) -> Tensor:
        return loss_from_hidden(loss, LazyLogits(*given), teacher, mask=MASK, chunk=2)

    assert torch.autograd.gradcheck(value, tuple(leaves(student)))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("chunk", [2, 256])
def test_labels_for_a_teacher(chunk: int, masked: bool) -> None:
    student, _ = pair(2)
    labels = torch.arange(BATCH * TOKENS).reshape(BATCH, TOKENS) % VOCAB
    labels[1], labels[0, 2] = -100, -100
    mask = labels >= 0 if masked else None  # -100 counts for nothing without a mask, too
    actual = with_gradients(
        lambda x: loss_from_hidden(cross_entropy, x, labels, mask=mask, chunk=chunk), student
    )
    expected = with_gradients(
        lambda x: F.cross_entropy(logits(x).flatten(0, 1), labels.flatten()), student
    )
    assert_same(actual, expected)


def test_what_comes_after_the_head_belongs_to_the_loss() -> None:
    def capped(x: Tensor) -> Tensor:
        return 3 * torch.tanh(x / 3)

    student, teacher = pair(3)
    actual = with_gradients(
        lambda x: loss_from_hidden(lambda s, t: js(capped(s), capped(t)), x, teacher, chunk=4),
        student,
    )
    assert_same(
        actual,
        with_gradients(lambda x: js(capped(logits(x)), capped(logits(teacher))).mean(), student),
    )


def test_the_sum_and_rows_without_a_batch() -> None:
    student, teacher = pair(4)
    flat = [x._replace(hidden=x.hidden.flatten(0, 1)) for x in (student, teacher)]
    mean = loss_from_hidden(js, student, teacher)
    assert_same(loss_from_hidden(js, *flat, reduction="sum"), mean * BATCH * TOKENS)
    mean = loss_from_hidden(js, student, teacher, mask=MASK)
    assert_same(loss_from_hidden(js, student, teacher, mask=MASK, reduction="sum"), mean * 7)


def test_a_vocabulary_is_cut_by_the_heads_first_rows() -> None:
    student, teacher = pair(5)
    assert student.bias is not None
    cut = student._replace(weight=student.weight[:9], bias=student.bias[:9])
    assert_same(
        loss_from_hidden(js, cut, teacher._replace(weight=teacher.weight[:9])),
        js(logits(student)[..., :9], logits(teacher)[..., :9]).mean(),
    )


@pytest.mark.parametrize("nothing", ["masked", "empty"])
def test_no_tokens_give_zero_that_goes_backward(nothing: str) -> None:
    student, teacher = pair(6)
    mask = torch.zeros_like(MASK)
    if nothing == "empty":
        student, teacher = (x._replace(hidden=x.hidden[:0]) for x in (student, teacher))
        mask = mask[:0]
    found = with_gradients(lambda x: loss_from_hidden(js, x, teacher, mask=mask), student)
    assert found[0] == 0
    assert all((x == 0).all() for x in found[1:])


def test_what_is_masked_may_be_anything() -> None:
    student, teacher = pair(7)
    expected = with_gradients(lambda x: loss_from_hidden(js, x, teacher, mask=MASK), student)
    student.hidden[~MASK], teacher.hidden[~MASK] = torch.nan, torch.inf
    found = with_gradients(lambda x: loss_from_hidden(js, x, teacher, mask=MASK), student)
    assert_same(found, expected)


def test_what_the_teacher_excludes() -> None:
    student, teacher = pair(8)
    excluding = logits(teacher)
    excluding[..., [0, 4]] = -torch.inf
    actual = with_gradients(lambda x: loss_from_hidden(js, x, excluding, chunk=4), student)
    assert all(x.isfinite().all() for x in actual)
    assert_same(actual, with_gradients(from_logits(js, excluding), student))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (leaves(x) for x in pair(9))
    for given in (teacher, logits(teacher)):
        loss_from_hidden(js, student, given).backward()
    assert student.weight.grad is not None
    assert teacher.hidden.grad is teacher.weight.grad is None
    # nor by a loss that is not careful itself
    frozen = pair(9)[0]
    for given in (teacher, logits(teacher)):
        value = loss_from_hidden(lambda s, t: (s - t).square().sum(dim=1), frozen, given)
        assert not value.requires_grad


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2)])
def test_only_what_is_trained_gets_a_gradient(trained: tuple[int, ...]) -> None:
    student, teacher = pair(10)
    given = [
        x if k in trained else x.detach() for k, x in enumerate(leaves(student)) if x is not None
    ]
    loss_from_hidden(js, LazyLogits(*given), teacher).backward()
    assert [k for k, x in enumerate(given) if x.grad is not None] == list(trained)


def test_without_autograd_nothing_is_kept() -> None:
    student, teacher = leaves(pair(11)[0]), pair(11)[1]
    seen = []

    def loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        seen.append(student_logits.requires_grad)
        return js(student_logits, teacher_logits)

    with torch.no_grad():
        value = loss_from_hidden(loss, student, teacher, chunk=4)
    assert not value.requires_grad
    assert not any(seen)
    assert_same(value, js(logits(student), logits(teacher)).mean().detach())


def test_what_is_kept_has_the_sizes_of_hidden_states_and_weights() -> None:
    student, teacher = pair(12)
    sizes = []

    def pack(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss_from_hidden(js, leaves(student), teacher, chunk=4)
    kept = [size for size in sizes if len(size) > 1]
    assert kept.count((BATCH * TOKENS, VOCAB)) == 0
    assert (BATCH * TOKENS, 4) in kept
    assert (VOCAB, 4) in kept


def test_backward_twice_gives_the_same_twice() -> None:
    student, teacher = leaves(pair(13)[0]), pair(13)[1]
    value = loss_from_hidden(js, student, teacher)
    first = torch.autograd.grad(3 * value, student, retain_graph=True)
    assert_same(torch.autograd.grad(3 * value, student), first, 0)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    student, teacher = leaves(pair(14)[0]), pair(14)[1]
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(loss_from_hidden(js, student, teacher), student, create_graph=True)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_types(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """As near to float64 as the types are, and not farther than the plain form."""
    student, teacher = (cast(x, dtype) for x in pair(15))
    wide = with_gradients(
        from_logits(loss, logits(cast(teacher, torch.float64))), cast(student, torch.float64)
    )
    found = with_gradients(lambda x: loss_from_hidden(loss, x, teacher, chunk=4), student)
    assert found[0].dtype == torch.float32
    assert all(x.dtype == dtype for x in found[1:])
    limit = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 3e-2}[dtype]
    for a, b in zip(found, wide, strict=True):
        assert (a.double() - b).abs().max() <= limit * b.abs().max()


def test_gradients_of_a_bfloat16_head_are_summed_in_float32() -> None:
    """A thousand tokens of equal gradients, of which 256 in bfloat16 would stop growing."""
    tokens = 1000
    student = LazyLogits(
        torch.ones(tokens, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    )
    value = partial(loss_from_hidden, cross_entropy, chunk=1, reduction="sum")
    given = leaves(student)
    labels = torch.zeros(tokens, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(value(given, labels), given.weight)
    assert_same(gradient.double(), torch.tensor([[-500.0], [500.0]]).double())


def test_float16_keeps_what_is_small_until_it_is_scaled() -> None:
    """A gradient of 2e-9 times a loss scale of 2^16 is a number in float16; 2e-9 is not."""
    student = leaves(
        LazyLogits(
            torch.ones(1, 1, dtype=torch.float16),
            torch.tensor([[0.0], [-20.0]], dtype=torch.float16),
        )
    )
    value = loss_from_hidden(cross_entropy, student, torch.zeros(1, dtype=torch.int64))
    (2.0**16 * value).backward()
    assert student.weight.grad is not None
    assert student.weight.grad[1] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """The head multiplies in bfloat16; parameters and gradients stay in float32."""
    student, teacher = (cast(x, torch.float32) for x in pair(16))
    seen = []

    def loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        seen.append((student_logits, teacher_logits, torch.is_autocast_enabled("cpu")))
        return js(student_logits, teacher_logits)

    with torch.autocast("cpu", dtype):
        found = with_gradients(lambda x: loss_from_hidden(loss, x, teacher), student)
        rounded = logits(student), logits(teacher)
    assert all(x.dtype == torch.float32 for x in found)
    student_logits, teacher_logits, cast_within = seen[0]
    assert not cast_within
    if dtype == torch.bfloat16:
        assert_same(student_logits.detach(), rounded[0].float().flatten(0, 1), 0)
        assert_same(teacher_logits, rounded[1].float().flatten(0, 1), 0)
    exact = with_gradients(from_logits(js, logits(teacher)), student)
    for a, b in zip(found, exact, strict=True):
        assert (a - b).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 2e-6) * b.abs().max()
    wide = cast(student, torch.float64)
    with torch.autocast("cpu", dtype):
        value = loss_from_hidden(js, wide, cast(teacher, torch.float64))
    assert_same(value, from_logits(js, logits(cast(teacher, torch.float64)))(wide))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch looks at what crosses a break
def test_compiled_code_may_call_it() -> None:
    torch.compiler.reset()
    student, teacher = pair(17)

    def value(given: LazyLogits) -> Tensor:
        return 2 * loss_from_hidden(js, given, teacher, mask=MASK)

    compiled = torch.compile(value, backend="aot_eager")
    assert_same(with_gradients(compiled, student), with_gradients(value, student))


class Student(nn.Module):
    """A network whose loss needs its head, so that the loss is a part of its forward."""

    def __init__(self, given: LazyLogits) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4).double()
        nn.init.eye_(self.body.weight)
        nn.init.constant_(self.body.bias, 0.1)
        self.head = nn.Parameter(given.weight)

    def forward(self, x: Tensor, teacher: LazyLogits, mask: Tensor) -> Tensor:
        return loss_from_hidden(
            js, LazyLogits(self.body(x), self.head), teacher, mask=mask, chunk=2
        )


def of_rows(rows: slice, *, wrapped: bool) -> list[Tensor]:
    student, teacher = pair(18)
    network = Student(student)
    outer = DistributedDataParallel(network) if wrapped else network
    value = outer(student.hidden[rows], teacher._replace(hidden=teacher.hidden[rows]), MASK[rows])
    value.backward()
    return [value.detach(), *(p.grad for p in network.parameters() if p.grad is not None)]


def on_a_rank(rank: int) -> dict[str, Any]:
    torch.distributed.init_process_group("gloo")
    ragged = slice(0, 1) if rank == 0 else slice(1, 3)
    lone = slice(0, 0) if rank == 0 else slice(0, 3)
    # a rank without a gradient takes part in the collectives of those with one
    student, teacher = pair(18)
    frozen = student if rank == 0 else leaves(student)
    value = loss_from_hidden(js, frozen, teacher)
    value.backward()
    return {
        "ragged": of_rows(ragged, wrapped=True),
        "lone": of_rows(lone, wrapped=True),
        "frozen": value.detach(),
        "local": loss_from_hidden(
            js, *(x._replace(hidden=x.hidden[ragged]) for x in pair(18)), scope="local"
        ),
    }


def test_two_processes_are_one(tmp_path: Path) -> None:
    """Under DDP, whose mean over the ranks keeps the gradient of a global mean."""
    expected = of_rows(slice(None), wrapped=False)
    found = in_two_processes(tmp_path / "ranks", on_a_rank)
    student, teacher = pair(18)
    everything = js(logits(student), logits(teacher))
    for rank, result in enumerate(found):
        assert_same(result["ragged"], expected)
        assert_same(result["lone"], expected)
        assert_same(result["frozen"], everything.mean())
        assert_same(result["local"], everything[:1].mean() if rank == 0 else everything[1:].mean())


def test_what_is_wrong_is_told() -> None:
    student, teacher = pair(19)
    with pytest.raises(ShapeError, match=r"must give \(15,\), one value .* not \(\); let it have"):
        loss_from_hidden(gkd_loss, student, teacher)
    with pytest.raises(ShapeError, match=r"student.hidden \(3, 5, 4\), weight \(11, 3\) and bias"):
        loss_from_hidden(js, student._replace(weight=student.weight[:, :3]), teacher)
    with pytest.raises(ShapeError, match=r"weight \(10, 4\) and bias \(11,\) must be"):
        loss_from_hidden(js, student._replace(weight=student.weight[:10]), teacher)
    with pytest.raises(ShapeError, match=r"teacher.hidden \(3, 5, 6\), weight \(11, 5\)"):
        loss_from_hidden(js, student, teacher._replace(weight=teacher.weight[:, :5]))
    with pytest.raises(
        ShapeError, match=r"\(2, 5, 6\), must begin with the student's tokens, \(3, 5\)"
    ):
        loss_from_hidden(js, student, teacher._replace(hidden=teacher.hidden[:2]))
    with pytest.raises(ShapeError, match=r"\(15, 11\) .* must have one shape"):
        loss_from_hidden(js, student, teacher._replace(weight=teacher.weight[:9]))
    with pytest.raises(ShapeError, match=r"mask \(3,\) must be \(3, 5\)"):
        loss_from_hidden(js, student, teacher, mask=MASK[:, 0])
    with pytest.raises(ValueError, match="mask must be boolean"):
        loss_from_hidden(js, student, teacher, mask=MASK.float())
    with pytest.raises(ValueError, match="chunk must be at least 1 token, not 0"):
        loss_from_hidden(js, student, teacher, chunk=0)
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', not 'none'"):
        loss_from_hidden(js, student, teacher, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"student\.hidden must be floating point"):
        loss_from_hidden(js, student._replace(hidden=student.hidden.long()), teacher)
    student.hidden[1, 2, 3] = torch.nan
    with pytest.raises(NonFiniteLossError):
        loss_from_hidden(js, student, teacher)
