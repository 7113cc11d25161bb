"""GKD: a divergence between the forward and the reverse one, token by token."""

from math import log

import pytest
import torch
from tests.losses import golden, oracles
from torch import Tensor

from congener.conformance import run_case
from congener.conformance.table.case import logits
from congener.errors import ShapeError
from congener.losses import GKDLoss, gkd_loss, kd_loss

P = [0.6, 0.25, 0.1, 0.05]
Q = [0.3, 0.3, 0.3, 0.1]
SHAPE = (4, 6)
MASK = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of five texts, (5, 4, 6)."""
    return logits(seed, 5, SHAPE)


def fixture() -> tuple[Tensor, Tensor]:
    rows = (torch.tensor([x], dtype=torch.float64).log() for x in (Q, P))
    student, teacher = rows
    return student, teacher


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def oracle(student: Tensor, teacher: Tensor, beta: float, tau: float, mask: Tensor) -> float:
    total, count = 0.0, 0
    for z_s, z_t, kept in zip(
        student.flatten(0, -2).tolist(),
        teacher.flatten(0, -2).tolist(),
        mask.flatten().tolist(),
        strict=True,
    ):
        if not kept:
            continue
        q, p = oracles.softmax(z_s, tau), oracles.softmax(z_t, tau)
        m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
        if beta in (0, 1):
            total += kl(q, p) if beta else kl(p, q)
        else:
            total += beta * kl(p, m) + (1 - beta) * kl(q, m)
        count += 1
    return total / count


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_oracle(beta: float, temperature: float) -> None:
    student, teacher = tokens(0)
    expected = oracle(student, teacher, beta, temperature, MASK)
    loss = GKDLoss(beta, temperature)
    assert golden.close(loss(student, teacher, MASK), expected)
    everything = oracle(student, teacher, beta, temperature, torch.ones_like(MASK))
    assert golden.close(loss(student, teacher), everything)
    assert golden.close(loss(student.flatten(0, 1), teacher.flatten(0, 1)), everything)


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        (0.0, 0.2257893312),
        (0.1, 0.0202755407),
        (0.5, 0.0570326727),
        (0.9, 0.0216319329),
        (1.0, 0.2456507175),
    ],
)
def test_golden_values(beta: float, expected: float) -> None:
    assert golden.close(gkd_loss(*fixture(), beta=beta), expected, 1e-9)


def test_defaults() -> None:
    assert golden.close(gkd_loss(*fixture()), 0.0570326727, 1e-9)


def test_forward_is_kd_without_its_factor() -> None:
    student, teacher = logits(1)
    torch.testing.assert_close(
        gkd_loss(student, teacher, beta=0.0, temperature=3.0),
        kd_loss(student, teacher, temperature=3.0) / 9,
    )


def test_temperature_divides_both_logits_and_nothing_else() -> None:
    student, teacher = tokens(2)
    for beta in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            gkd_loss(student, teacher, beta=beta, temperature=2.5),
            gkd_loss(student / 2.5, teacher / 2.5, beta=beta),
        )


@pytest.mark.parametrize("beta", [0.0, 0.2, 0.5, 1.0])
def test_exchanging_the_networks_turns_beta_round(beta: float) -> None:
    student, teacher = tokens(3)
    there, back = (
        gkd_loss(student, teacher, beta=beta),
        gkd_loss(teacher, student, beta=1 - beta),
    )
    torch.testing.assert_close(there, back)


def test_the_ends_are_limits_of_the_ratio_not_of_the_loss() -> None:
    student, teacher = tokens(4)
    for end, small in ((0.0, 1e-8), (1.0, 1 - 1e-8)):
        near = gkd_loss(student, teacher, beta=small)
        at = gkd_loss(student, teacher, beta=end)
        assert near < 1e-6 < 0.1 < at
        assert torch.isclose(near / 1e-8, at, rtol=1e-3)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_bounded_by_the_entropy_of_beta(beta: float) -> None:
    apart = (torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]]))
    bound = -beta * log(beta) - (1 - beta) * log(1 - beta)
    assert golden.close(gkd_loss(*apart, beta=beta), bound, 1e-6)
    for seed in range(5):
        assert gkd_loss(*tokens(seed), beta=beta) < bound


def test_shifts_change_nothing() -> None:
    student, teacher = tokens(5)
    shift = torch.arange(20.0, dtype=torch.float64).reshape(5, 4, 1)
    for beta in (0.0, 0.3, 1.0):
        torch.testing.assert_close(
            gkd_loss(student + shift, teacher - 2 * shift, beta=beta),
            gkd_loss(student, teacher, beta=beta),
        )


def test_every_token_weighs_the_same_whatever_its_text() -> None:
    student, teacher = tokens(6)
    per_token = gkd_loss(student, teacher, mask=MASK, reduction="none")
    assert per_token.shape == (5, 4)
    assert (per_token[~MASK] == 0).all()
    torch.testing.assert_close(gkd_loss(student, teacher, mask=MASK), per_token.sum() / MASK.sum())
    total = gkd_loss(student, teacher, mask=MASK, reduction="sum")
    torch.testing.assert_close(total, per_token.sum())


def test_masked_tokens_are_as_if_absent() -> None:
    student, teacher = tokens(7)
    expected = gkd_loss(student[MASK], teacher[MASK])
    student[~MASK] = torch.nan
    student.requires_grad_()
    loss = gkd_loss(student, teacher, mask=MASK)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad is not None
    assert (student.grad[~MASK] == 0).all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_tokens_that_both_exclude_count_nothing(beta: float) -> None:
    student, teacher = tokens(8)
    closed, kept = [1, 4], [0, 2, 3, 5]
    expected = gkd_loss(student[..., kept], teacher[..., kept], beta=beta)
    student[..., closed], teacher[..., closed] = -torch.inf, -torch.inf
    student.requires_grad_()
    loss = gkd_loss(student, teacher, beta=beta)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad[..., closed] == 0).all()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_token_that_one_excludes_is_no_nan(beta: float, side: int) -> None:
    pair = [*tokens(9)]
    pair[side][..., 2] = -torch.inf
    pair[0].requires_grad_()
    loss = gkd_loss(*pair, beta=beta)
    loss.backward()
    assert loss.isfinite()
    assert pair[0].grad is not None
    assert pair[0].grad.isfinite().all()
    # infinite where a distribution gives something to what the other excludes
    infinite = {(0, 0.0), (1, 1.0)}
    assert bool(loss > 1e290) is ((side, beta) in infinite)


def test_huge_logits_keep_their_value() -> None:
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert gkd_loss(student, teacher, beta=0.0) == 1e4
    assert gkd_loss(student, teacher, beta=1.0) == 1e4
    assert golden.close(gkd_loss(student, teacher), log(2), 1e-6)


def test_what_is_wrong_is_told() -> None:
    student, teacher = tokens(10)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\], not 1.5"):
        gkd_loss(student, teacher, beta=1.5)
    with pytest.raises(ValueError, match="beta must be in"):
        GKDLoss(beta=-0.1)
    with pytest.raises(ShapeError, match=r"\(5, 4, 6\).*\(5, 4, 5\).*uld_loss"):
        gkd_loss(student, teacher[..., :5])
    with pytest.raises(ShapeError, match=r"mask \(5,\) must be \(5, 4\)"):
        gkd_loss(student, teacher, mask=MASK[:, 0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_tokens_that_both_exclude_are_as_in_kd(beta: float) -> None:
    student, teacher = (x[0] for x in tokens(20))
    kept = gkd_loss(student[:, 1:], teacher[:, 1:], beta=beta)
    student[:, 0] = teacher[:, 0] = -torch.inf
    own = student.requires_grad_()
    loss = gkd_loss(own, teacher, beta=beta)
    torch.testing.assert_close(loss, kept)
    (gradient,) = torch.autograd.grad(loss, own)
    assert gradient.isfinite().all()
    assert (gradient[:, 0] == 0).all()
    if beta == 0:
        kd = kd_loss(own, teacher, temperature=1.0)
        torch.testing.assert_close(loss, kd)
        torch.testing.assert_close(gradient, torch.autograd.grad(kd, own)[0])


def test_a_token_that_the_teacher_alone_excludes_is_as_in_kd() -> None:
    student, teacher = (x[0] for x in tokens(21))
    teacher[:, 0] = -torch.inf
    own = student.requires_grad_()
    loss, kd = gkd_loss(own, teacher, beta=0.0), kd_loss(own, teacher, temperature=1.0)
    torch.testing.assert_close(loss, kd)
    gradients = (torch.autograd.grad(x, own)[0] for x in (loss, kd))
    torch.testing.assert_close(*gradients)


def test_a_token_that_the_student_alone_excludes_is_no_nan() -> None:
    student, teacher = (x[0] for x in tokens(22))
    student[:, 0] = -torch.inf
    own = student.requires_grad_()
    assert kd_loss(own, teacher) == torch.inf
    loss = gkd_loss(own, teacher, beta=0.0)
    assert loss > 1e290
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


@pytest.mark.parametrize("labelled", [True, False])
def test_trls_reductions(labelled: bool) -> None:
    """Its "mean" runs over the vocabulary too, its "batchmean" over texts without labels."""
    student, teacher = tokens(23)
    mask = MASK if labelled else torch.ones_like(MASK)
    total = gkd_loss(student, teacher, beta=0.7, mask=mask, reduction="sum")
    count = mask.sum()
    case = {"method": "GKD", "variant": "generalized_jsd_beta_0.7", "hyperparameters": {}}
    arrays = {"student_logits": student.numpy(), "teacher_logits": teacher.numpy()}
    if labelled:
        arrays["labels"] = torch.where(mask, 1, -100).numpy()
    for reduction, expected in (
        ("sum", total),
        ("mean", total / (6 * count)),
        ("batchmean", total / (count if labelled else 5)),
    ):
        case["hyperparameters"] = {"reduction": reduction}
        found = run_case(case, arrays)["loss"]
        torch.testing.assert_close(torch.as_tensor(found), expected)
