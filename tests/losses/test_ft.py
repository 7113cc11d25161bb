"""FT: what a factor is asked for, and the two nets that make factors."""

import math

import pytest
import torch
from tests.losses import golden
from tests.losses.oracles import norm
from torch import Tensor, nn

from congener.errors import ShapeError
from congener.losses import FTLoss, ft_loss
from congener.losses.ft_parts import Paraphraser, Translator

MASK = torch.tensor([True, False, True, True])


def maps(seed: int, *shapes: tuple[int, ...], batch: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *s, generator=generator, dtype=torch.float64) for s in shapes]


def oracle(student: Tensor, teacher: Tensor) -> float:
    values = []
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        length_s, length_t = norm(s) or 1.0, norm(t) or 1.0
        values.append(sum(abs(a / length_s - b / length_t) for a, b in zip(s, t, strict=True)))
    return sum(values) / len(values) / len(student[0].flatten())


@pytest.mark.parametrize("shape", [(6,), (3, 4, 2)])
def test_oracle(shape: tuple[int, ...]) -> None:
    student, teacher = maps(0, shape, shape)
    student[1], teacher[2] = 0, 0
    assert golden.close(ft_loss(student, teacher), oracle(student, teacher))


def test_length_changes_nothing_and_direction_does() -> None:
    student, teacher = maps(1, (3, 4, 2), (3, 4, 2))
    expected = ft_loss(student, teacher)
    lengths = torch.tensor([1e-3, 1.0, 7.0, 1e5], dtype=torch.float64).reshape(4, 1, 1, 1)
    torch.testing.assert_close(ft_loss(lengths * student, teacher), expected)
    torch.testing.assert_close(ft_loss(student, lengths * teacher), expected)
    torch.testing.assert_close(ft_loss(lengths * teacher, teacher), torch.zeros_like(expected))
    opposite = ft_loss(-teacher, teacher)
    torch.testing.assert_close(opposite, 2 * ft_loss(torch.zeros_like(teacher), teacher))


def test_bounds() -> None:
    for seed in range(5):
        student, teacher = maps(seed, (3, 4, 2), (3, 4, 2))
        values = ft_loss(student, teacher, reduction="none")
        assert (values >= 0).all()
        assert (values <= 2 / math.sqrt(24)).all()
    even = torch.ones(1, 24, dtype=torch.float64)
    assert golden.close(ft_loss(-even, even), 2 / math.sqrt(24))


def published(net: nn.Sequential, x: Tensor) -> Tensor:
    for layer in net[::2]:
        transposed = isinstance(layer, nn.ConvTranspose2d)
        conv = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
        x = conv(x, layer.weight, layer.bias, padding=1)  # type: ignore[arg-type]
        x = torch.where(x > 0, x, 0.1 * x)
    return x


def test_module_compares_the_factors() -> None:
    student, teacher = maps(2, (3, 4, 4), (6, 4, 4))
    module = FTLoss(3, 6).double()
    mine = published(module.translator.encoder, student)
    theirs = published(module.paraphraser.encoder, teacher)
    assert mine.shape == theirs.shape == (4, 3, 4, 4)
    torch.testing.assert_close(module(student, teacher), ft_loss(mine, theirs))
    pairs = ((module.translator, [3, 3, 3]), (module.paraphraser, [6, 3, 3]))
    for net, widths in pairs:
        assert [layer.out_channels for layer in net.encoder[::2]] == widths


@pytest.mark.parametrize(("rate", "channels"), [(0.5, 3), (0.75, 4), (1.0, 6), (0.1, 1), (2.0, 12)])
def test_rate(rate: float, channels: int) -> None:
    module = FTLoss(3, 6, rate)
    assert module.paraphraser.encoder[2].out_channels == channels
    assert module.translator.encoder[4].out_channels == channels


def test_only_the_translator_learns_with_the_student() -> None:
    student, teacher = maps(3, (3, 4, 4), (6, 4, 4))
    teacher.requires_grad_()
    module = FTLoss(3, 6).double().train()
    module(student, teacher).backward()
    assert all(p.grad is not None and p.grad.any() for p in module.translator.parameters())
    assert all(not p.requires_grad for p in module.paraphraser.parameters())
    assert all(p.grad is None for p in module.paraphraser.parameters())
    assert teacher.grad is None


def test_the_paraphraser_learns_first() -> None:
    (teacher,) = maps(4, (6, 4, 4))
    torch.manual_seed(0)
    paraphraser = Paraphraser(6, 3).double()
    rebuilt = published(paraphraser.decoder, published(paraphraser.encoder, teacher))
    loss = paraphraser.reconstruction_loss(teacher)
    torch.testing.assert_close(loss, (rebuilt - teacher).abs().mean())
    optimizer = torch.optim.SGD(paraphraser.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        paraphraser.reconstruction_loss(teacher).backward()
        assert all(p.grad is not None and p.grad.any() for p in paraphraser.parameters())
        optimizer.step()
    assert paraphraser.reconstruction_loss(teacher) < loss
    module = FTLoss(3, 6).double()
    module.paraphraser.load_state_dict(paraphraser.state_dict())
    (student,) = maps(5, (3, 4, 4))
    expected = ft_loss(module.translator(student), paraphraser(teacher))
    torch.testing.assert_close(module(student, teacher), expected)


def test_reconstruction_reductions_and_mask() -> None:
    (teacher,) = maps(6, (6, 4, 4))
    paraphraser = Paraphraser(6, 3).double()
    rows = paraphraser.reconstruction_loss(teacher, reduction="none")
    expected = paraphraser.reconstruction_loss(teacher[MASK])
    teacher[1] = torch.nan
    masked = paraphraser.reconstruction_loss(teacher, MASK, reduction="none")
    torch.testing.assert_close(masked, torch.where(MASK, rows, 0))
    found = paraphraser.reconstruction_loss(teacher, MASK)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x, list(paraphraser.parameters())) for x in (found, expected)]
    torch.testing.assert_close(*gradients)
    total = paraphraser.reconstruction_loss(teacher, MASK, reduction="sum")
    torch.testing.assert_close(total, 3 * expected)


def test_masked_rows_do_not_reach_the_nets() -> None:
    student, teacher = maps(7, (3, 4, 4), (6, 4, 4))
    module = FTLoss(3, 6).double()
    expected = module(student[MASK], teacher[MASK])
    wanted = torch.autograd.grad(expected, list(module.translator.parameters()))
    student[~MASK], teacher[~MASK] = torch.nan, torch.inf
    loss = module(student, teacher, MASK)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(module.translator.parameters()))
    torch.testing.assert_close(found, wanted)


def test_half_precision() -> None:
    student, teacher = (x.half() for x in maps(8, (3, 4, 4), (6, 4, 4)))
    module = FTLoss(3, 6)
    assert module(student, teacher).dtype == torch.float32
    assert module.paraphraser.reconstruction_loss(teacher).dtype == torch.float32


def test_errors() -> None:
    student, teacher = maps(9, (3, 4, 4), (6, 4, 4))
    with pytest.raises(ShapeError, match=r"must have one shape; FTLoss\(student_channels"):
        ft_loss(student, teacher)
    with pytest.raises(ShapeError, match=r"student_feature \(4, 6, 4, 4\) must be \(batch, 3"):
        FTLoss(3, 6).double()(teacher, teacher)
    with pytest.raises(ShapeError, match=r"teacher_feature \(4, 3, 4, 4\) must be \(batch, 6"):
        FTLoss(3, 6).double()(student, student)
    with pytest.raises(ShapeError, match=r"\(4, 3, 2, 4\) must have one shape"):
        FTLoss(3, 6).double()(student, teacher[:, :, ::2])
    with pytest.raises(ShapeError, match=r"teacher_feature \(4, 3, 4, 4\) must be \(batch, 6"):
        Paraphraser(6, 3).double().reconstruction_loss(student)
    for rate in (0.01, 0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"rate {rate} of 6 channels leaves none"):
            FTLoss(3, 6, rate)
    assert Translator(3, 2).double()(student).shape == (4, 2, 4, 4)
