"""FitNets: what a hint is, and the projector that lets shapes differ."""

import pytest
import torch
from tests.losses import golden
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.losses import FitNetsLoss, hint_loss

MASK = torch.tensor([True, False, True, True])

# student's and teacher's (channels, height, width), and the kernel and stride of the projector
RULES = [
    ((3, 8, 8), (5, 4, 4), (3, 3), (2, 2)),
    ((3, 6, 2), (5, 3, 1), (3, 3), (2, 2)),
    ((3, 3, 2), (5, 6, 4), (4, 4), (2, 2)),
    ((3, 6, 6), (5, 6, 6), (1, 1), (1, 1)),
    ((3, 7, 6), (5, 4, 5), (4, 2), (1, 1)),
    ((3, 8, 4), (5, 4, 4), (5, 1), (1, 1)),
]


def maps(seed: int, *shapes: tuple[int, ...], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def oracle(student: Tensor, teacher: Tensor, variant: str) -> float:
    per_sample = []
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        total = sum((a - b) ** 2 for a, b in zip(s, t, strict=True))
        per_sample.append(total / 2 if variant == "paper" else total / len(s))
    return sum(per_sample) / len(per_sample)


@pytest.mark.parametrize("shape", [(6,), (5, 3), (3, 4, 2)])
@pytest.mark.parametrize("variant", ["repdistiller", "paper"])
def test_oracle(shape: tuple[int, ...], variant) -> None:
    student, teacher = maps(0, shape, shape)
    expected = oracle(student, teacher, variant)
    assert golden.close(FitNetsLoss(variant=variant)(student, teacher), expected)


def test_the_variants_differ_by_half_the_elements() -> None:
    student, teacher = maps(1, (3, 4, 2), (3, 4, 2))
    paper = hint_loss(student, teacher, variant="paper")
    torch.testing.assert_close(paper, 12 * hint_loss(student, teacher))


def test_it_is_a_distance() -> None:
    student, teacher = maps(2, (3, 4, 2), (3, 4, 2))
    expected = hint_loss(student, teacher)
    torch.testing.assert_close(hint_loss(teacher, student), expected)
    torch.testing.assert_close(hint_loss(student + 2, teacher + 2), expected)
    torch.testing.assert_close(hint_loss(-3 * student, -3 * teacher), 9 * expected)
    assert hint_loss(student, student) == 0


@pytest.mark.parametrize(("mine", "theirs", "kernel", "stride"), RULES)
def test_projector(mine, theirs, kernel, stride) -> None:
    """The published layers, from torch's own modules, in training and in evaluation."""
    student, teacher = maps(3, mine, theirs)
    module = FitNetsLoss(list(mine), list(theirs)).double()
    assert module.projector is not None
    conv = module.projector.conv
    assert (conv.kernel_size, conv.stride) == (kernel, stride)
    assert isinstance(conv, nn.ConvTranspose2d) is (theirs[1] > mine[1])
    norm = nn.BatchNorm2d(theirs[0]).double()
    nn.init.normal_(module.projector.bn.weight)
    norm.load_state_dict(module.projector.bn.state_dict())
    for _ in range(2):
        expected = hint_loss(norm(conv(student)).relu(), teacher)
        torch.testing.assert_close(module(student, teacher), expected)
        for name, value in norm.state_dict().items():
            torch.testing.assert_close(module.projector.bn.state_dict()[name], value)
    module.eval()
    expected = hint_loss(norm.eval()(conv(student)).relu(), teacher)
    torch.testing.assert_close(module(student, teacher), expected)


def test_masked_rows_do_not_reach_the_projector() -> None:
    student, teacher = maps(4, (3, 4, 4), (2, 2, 2))
    module, other = (FitNetsLoss((3, 4, 4), (2, 2, 2)).double() for _ in range(2))
    other.load_state_dict(module.state_dict())
    expected = other(student[MASK], teacher[MASK])
    wanted = torch.autograd.grad(expected, list(other.parameters()))
    student[~MASK], teacher[~MASK] = torch.nan, torch.inf
    student.requires_grad_()
    loss = module(student, teacher, MASK)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, [student, *module.parameters()])
    assert (found[0][~MASK] == 0).all()
    assert found[0][MASK].abs().amax(dim=(1, 2, 3)).min() > 0
    torch.testing.assert_close(found[1:], wanted)
    torch.testing.assert_close(module.state_dict(), other.state_dict())


def test_nothing_left_leaves_the_statistics() -> None:
    student, teacher = maps(5, (3, 4, 4), (2, 2, 2))
    module = FitNetsLoss((3, 4, 4), (2, 2, 2)).double()
    assert module.projector is not None
    module(student, teacher).backward()
    before = module.projector.bn.running_mean.clone(), module.projector.bn.running_var.clone()
    loss = module(student, teacher, torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    after = module.projector.bn.running_mean, module.projector.bn.running_var
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_one_sample_and_one_place_do_not_break_the_projector() -> None:
    """Where nn.BatchNorm2d refuses, there is no spread, so the projector says its bias."""
    student, teacher = maps(6, (3, 1, 1), (2, 1, 1), batch=1)
    module = FitNetsLoss((3, 1, 1), (2, 1, 1)).double()
    assert module.projector is not None
    nn.init.constant_(module.projector.bn.bias, 0.5)
    loss = module(student, teacher)
    torch.testing.assert_close(loss, (teacher - 0.5).square().mean())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_training_compiles() -> None:
    """Captured as one graph; evaluation, through a backend too, is in the contract."""
    torch.compiler.reset()
    student, teacher = maps(7, (3, 4, 4), (2, 2, 2))
    module, other = (FitNetsLoss((3, 4, 4), (2, 2, 2)).double() for _ in range(2))
    other.load_state_dict(module.state_dict())
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student, teacher, MASK), other(student, teacher, MASK))
    torch.testing.assert_close(module.state_dict(), other.state_dict())


def test_half_precision_and_autocast() -> None:
    student, teacher = maps(8, (3, 4, 4), (2, 2, 2))
    module = FitNetsLoss((3, 4, 4), (2, 2, 2))
    expected = module(student.float(), teacher.float())
    half = module(student.half(), teacher.half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module(student.float(), teacher.float())
    for loss in (half, cast):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_errors() -> None:
    student, teacher = maps(9, (3, 4, 4), (2, 4, 4))
    words = r"\(4, 3, 4, 4\) .* \(4, 2, 4, 4\) must have one shape; a projector .*FitNetsLoss\(st"
    with pytest.raises(ShapeError, match=words):
        FitNetsLoss()(student, teacher)
    with pytest.raises(ShapeError, match=r"\(4, 2, 4, 4\) must be \(batch, 3, height, width\)"):
        FitNetsLoss((3, 4, 4), (2, 4, 4)).double()(teacher, teacher)
    with pytest.raises(ShapeError, match=r"mask \(3,\) must be"):
        FitNetsLoss((3, 4, 4), (2, 4, 4)).double()(student, teacher, MASK[:3])
    with pytest.raises(ShapeError, match=r"\(4, 3, 4, 4\) must be a map of at least \(5, 3\)"):
        FitNetsLoss((3, 8, 7), (2, 4, 5)).double()(student, teacher)
    with pytest.raises(ShapeError, match=r"\(4, 3, 16\) must be \(batch, 3, height, width\)"):
        FitNetsLoss((3, 4, 4), (2, 4, 4)).double()(student.flatten(2), teacher)
    for mine, theirs in (((3, 4, 4), (2, 5, 4)), ((3, 4, 8), (2, 8, 4)), ((3, 2, 2), (2, 5, 5))):
        with pytest.raises(ShapeError, match=r"No projector brings student_shape .*; resize one"):
            FitNetsLoss(mine, theirs)
    with pytest.raises(
        ShapeError, match=r"\(channels, height, width\) .* leave the batch size out"
    ):
        FitNetsLoss((4, 3, 4, 4), (4, 2, 4, 4))
    with pytest.raises(ValueError, match="needs both student_shape and teacher_shape"):
        FitNetsLoss((3, 4, 4))
    with pytest.raises(ValueError, match="variant must be one of 'repdistiller', 'paper'"):
        hint_loss(student, student, variant="authors")  # type: ignore[arg-type]


@pytest.mark.parametrize("axes", [(), (5,)])
def test_features_with_fewer_axes_than_a_map(axes):
    torch.manual_seed(0)
    loss = FitNetsLoss((4, *axes), (3, *axes))
    wide = FitNetsLoss((4, *axes, *[1] * (2 - len(axes))), (3, *axes, *[1] * (2 - len(axes))))
    wide.load_state_dict(loss.state_dict())
    student, teacher = torch.randn(6, 4, *axes), torch.randn(6, 3, *axes)
    as_maps = [x.reshape(*x.shape, *[1] * (4 - x.dim())) for x in (student, teacher)]
    assert torch.equal(loss(student, teacher), wide(*as_maps))
