"""CRD: the loss, whom it contrasts, and what it remembers."""

import copy
from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from tests.losses import golden
from torch import Tensor

from congener.conformance.table.case import pooled
from congener.errors import ShapeError
from congener.losses import CRDLoss, crd_contrast_index, crd_loss, crd_update

SAMPLES, WIDTH, NEGATIVES = 11, 6, 5
INDEX = torch.tensor([3, 0, 10, 7, 1, 5, 8])


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def embeddings(seed: int) -> tuple[Tensor, Tensor]:
    student, teacher = pooled(seed)
    return unit(student), unit(teacher)


def banks() -> tuple[Tensor, Tensor]:
    return unit(golden.wave((SAMPLES, WIDTH), 0.3)), unit(golden.wave((SAMPLES, WIDTH), 1.1))


def candidates(index: Tensor = INDEX) -> Tensor:
    return (index.unsqueeze(1) + 2 * torch.arange(1 + NEGATIVES)) % SAMPLES


def oracle(
    embedding: Tensor, bank: Tensor, index: Tensor, tau: float, z: float | None = None
) -> tuple[list[float], float]:
    """One direction: each sample's terms, and Z."""
    scores = [
        [
            exp(sum(a * b for a, b in zip(v, bank[n].tolist(), strict=True)) / tau)
            for n in row
        ]
        for v, row in zip(embedding.tolist(), index.tolist(), strict=True)
    ]  # fmt: skip
    count = sum(len(row) for row in scores)
    z = sum(sum(row) for row in scores) / count * len(bank) if z is None else z
    negatives = index.shape[1] - 1
    chance = negatives / len(bank)
    rows = []
    for row in scores:
        h = [score / z for score in row]
        terms = [h[0] / (h[0] + chance + 1e-7)]
        terms += [chance / (value + chance + 1e-7) for value in h[1:]]
        rows.append(-sum(log(p) for p in terms))
    return rows, z


@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("given", [None, (3.0, 7.0)])
def test_oracle(tau: float, given: tuple[float, float] | None) -> None:
    student, teacher = embeddings(0)
    student_bank, teacher_bank = banks()
    z = given or (None, None)
    first, _ = oracle(student, teacher_bank, candidates(), tau, z[0])
    second, _ = oracle(teacher, student_bank, candidates(), tau, z[1])
    rows = torch.tensor([a + b for a, b in zip(first, second, strict=True)], dtype=torch.float64)
    options: dict[str, Any] = {"temperature": tau}
    if given:
        options["log_normalizers"] = torch.tensor(given, dtype=torch.float64).log()
    found = crd_loss(student, teacher, candidates(), *banks(), reduction="none", **options)
    torch.testing.assert_close(found, rows, rtol=1e-11, atol=1e-11)
    assert golden.close(
        crd_loss(student, teacher, candidates(), *banks(), **options), rows.mean().item(), 1e-11
    )


def test_both_embeddings_are_trained_and_the_banks_are_not() -> None:
    student, teacher = (x.requires_grad_() for x in embeddings(1))
    memory = [x.requires_grad_() for x in banks()]
    crd_loss(student, teacher, candidates(), *memory).backward()
    assert student.grad is not None
    assert teacher.grad is not None
    assert student.grad.abs().max() > 1e-3 < teacher.grad.abs().max()
    assert memory[0].grad is None
    assert memory[1].grad is None


def test_normalizers_are_constants() -> None:
    student, teacher = embeddings(2)
    own = student.clone().requires_grad_()
    (found,) = torch.autograd.grad(crd_loss(own, teacher, candidates(), *banks()), own)
    z = [oracle(student, banks()[1], candidates(), 0.07)[1]]
    z += [oracle(teacher, banks()[0], candidates(), 0.07)[1]]
    constant = torch.tensor(z, dtype=torch.float64).log()
    loss = crd_loss(own, teacher, candidates(), *banks(), log_normalizers=constant)
    (expected,) = torch.autograd.grad(loss, own)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tau", [0.07, 0.005])
def test_no_temperature_overflows(dtype: torch.dtype, tau: float) -> None:
    student, teacher = (x.to(dtype) for x in embeddings(3))
    memory = [x.to(dtype) for x in banks()]
    own = student.requires_grad_()
    loss = crd_loss(own, teacher, candidates(), *memory, temperature=tau)
    loss.backward()
    expected = crd_loss(
        student.double(), teacher.double(), candidates(), *(x.double() for x in memory),
        temperature=tau,
    )  # fmt: skip
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    assert own.grad is not None
    assert own.grad.isfinite().all()


def test_knowing_the_pair_costs_less() -> None:
    """Where the embeddings are the banks' rows, pairs score 1 and the loss is low."""
    student_bank, teacher_bank = banks()
    index = candidates()
    z = torch.full((2,), 5.0, dtype=torch.float64)
    known, wrong = (
        crd_loss(teacher_bank[i], student_bank[i], index, student_bank, teacher_bank,
                 log_normalizers=z)
        for i in (INDEX, INDEX.roll(1))
    )  # fmt: skip
    assert known < wrong


def test_masked_rows_may_hold_any_index() -> None:
    student, teacher = embeddings(4)
    mask = torch.tensor([True, False, True, True, False, True, True])
    index = candidates()
    expected = crd_loss(student[mask], teacher[mask], index[mask], *banks())
    index[~mask] = -7
    student[~mask], teacher[~mask] = torch.nan, torch.inf
    torch.testing.assert_close(crd_loss(student, teacher, index, *banks(), mask=mask), expected)


def test_update_mixes_then_shortens_to_length_one() -> None:
    bank, _ = banks()
    embedding, _ = embeddings(5)
    expected = bank.tolist()
    for i, v in zip(INDEX.tolist(), embedding.tolist(), strict=True):
        row = [0.25 * old + 0.75 * new for old, new in zip(expected[i], v, strict=True)]
        length = sqrt(sum(a * a for a in row))
        expected[i] = [a / length for a in row]
    before = bank.clone()
    found = crd_update(bank, embedding.requires_grad_(), INDEX, momentum=0.25)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(bank, before)
    assert not found.requires_grad


def test_update_of_a_repeat_takes_the_last_and_of_masked_rows_nothing() -> None:
    bank, _ = banks()
    embedding, _ = embeddings(6)
    index = torch.tensor([2, 4, 2, 2, 4, 9, 1])
    mask = torch.tensor([True, True, True, False, True, False, True])
    found = crd_update(bank, embedding, index, mask=mask)
    expected = crd_update(bank, embedding[[2, 4, 6]], index[[2, 4, 6]])
    assert torch.equal(found, expected)
    assert torch.equal(found[9], bank[9])
    garbage, wild = embedding.clone(), index.clone()
    garbage[~mask], wild[~mask] = torch.nan, 1000
    assert torch.equal(crd_update(bank, garbage, wild, mask=mask), expected)
    assert torch.equal(crd_update(bank, embedding, index, mask=torch.zeros_like(mask)), bank)


def test_update_of_opposites_stays_finite() -> None:
    bank, _ = banks()
    assert crd_update(bank, -bank[INDEX], INDEX).isfinite().all()


LABELS = torch.tensor([0, 1, 0, 2, 1, 1, 0, -1, 2, -1])


def test_negatives_are_of_other_classes() -> None:
    index = torch.tensor([0, 3, 7, 1])
    found = crd_contrast_index(index, LABELS, step=4, negatives=4000)
    assert (found[:, 0] == index).all()
    others = {0: {1, 3, 4, 5, 7, 8, 9}, 1: {0, 1, 2, 4, 5, 6, 7, 9}, 2: set(range(10)) - {7},
              3: {0, 2, 3, 6, 7, 8, 9}}  # fmt: skip
    for row, allowed in others.items():
        counts = found[row, 1:].bincount(minlength=10)
        assert {i for i in range(10) if counts[i]} == allowed
        share = counts[sorted(allowed)] * len(allowed) / 4000
        assert (share - 1).abs().max() < 0.2


def test_negatives_are_a_function_of_seed_step_and_sample() -> None:
    index = torch.arange(10)
    whole = crd_contrast_index(index, LABELS, step=3, negatives=50, seed=9)
    parts = [crd_contrast_index(x, LABELS, step=3, negatives=50, seed=9) for x in index.split(3)]
    assert torch.equal(whole, torch.cat(parts))
    for step, seed in ((4, 9), (3, 8)):
        other = crd_contrast_index(index, LABELS, step=step, negatives=50, seed=seed)
        assert (whole[:, 1:] != other[:, 1:]).any(dim=1).all()
    assert (whole[0, 1:] != whole[2, 1:]).any()


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        crd_contrast_index(torch.tensor([0]), torch.zeros(4, dtype=torch.int64), step=0)


def module(**options: Any) -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss(4, 5, SAMPLES, WIDTH, **options).double()


def batch(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student, teacher = pooled(seed)
    index = (INDEX + seed) % SAMPLES
    return student[:, :4], teacher[:, :5], index, candidates(index)


def test_module_scores_then_remembers() -> None:
    loss = module(momentum=0.25, temperature=0.2)
    before = copy.deepcopy(loss)
    student, teacher, index, chosen = batch(0)
    value = loss(student, teacher, index, chosen)
    v_s = unit(student @ before.student_embedding.weight.T + before.student_embedding.bias)
    v_t = unit(teacher @ before.teacher_embedding.weight.T + before.teacher_embedding.bias)
    old = before.student_bank, before.teacher_bank
    expected = crd_loss(v_s, v_t, chosen, *old, temperature=0.2)
    torch.testing.assert_close(value, expected)
    for name, v in (("student_bank", v_s), ("teacher_bank", v_t)):
        new = crd_update(getattr(before, name), v, index, momentum=0.25)
        torch.testing.assert_close(getattr(loss, name), new)
    z = [oracle(v_s, old[1], chosen, 0.2)[1], oracle(v_t, old[0], chosen, 0.2)[1]]
    torch.testing.assert_close(loss.log_normalizers, torch.tensor(z, dtype=torch.float64).log())
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_normalizers_are_those_of_the_first_batch() -> None:
    loss = module()
    empty = torch.zeros(7, dtype=torch.bool)
    assert loss(*batch(0), mask=empty) == 0
    assert (loss.log_normalizers == -torch.inf).all()
    loss(*batch(1))
    first = loss.log_normalizers.clone()
    assert first.isfinite().all()
    loss(*batch(2))
    assert torch.equal(loss.log_normalizers, first)


def test_evaluation_changes_nothing() -> None:
    loss = module()
    loss(*batch(0))
    before = copy.deepcopy(loss.state_dict())
    value = loss.eval()(*batch(1))
    assert all(torch.equal(loss.state_dict()[name], x) for name, x in before.items())
    assert torch.equal(loss(*batch(1)), value)
    assert torch.equal(loss.train()(*batch(1)), value)
    assert not torch.equal(loss.student_bank, before["student_bank"])


def run(loss: CRDLoss, steps: range) -> list[Tensor]:
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for step in steps:
        value = loss(*batch(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
    return values


def test_resumed_is_straight() -> None:
    straight = module()
    values = run(straight, range(5))
    stopped = module()
    run(stopped, range(2))
    resumed = CRDLoss(4, 5, SAMPLES, WIDTH).double()
    resumed.load_state_dict(stopped.state_dict())
    assert run(resumed, range(2, 5)) == values[2:]
    for name, x in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], x), name


def test_banks_start_within_the_published_limits() -> None:
    loss = CRDLoss(4, 5, 500, 12)
    limit = 1 / sqrt(12 / 3)
    for bank in (loss.student_bank, loss.teacher_bank):
        assert 0.98 * limit < bank.abs().max() <= limit
        assert abs(bank.mean()) < 0.02
    assert not torch.equal(loss.student_bank, loss.teacher_bank)


def test_a_zero_feature_is_no_error() -> None:
    loss = module()
    torch.nn.init.zeros_(loss.student_embedding.bias)
    student, teacher, index, chosen = batch(0)
    student = torch.zeros_like(student, requires_grad=True)
    value = loss(student, teacher, index, chosen)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_maps_are_flattened_and_what_does_not_fit_is_told() -> None:
    student, teacher, index, chosen = batch(0)
    expected = module()(student, teacher, index, chosen)
    assert torch.equal(module()(student.reshape(7, 2, 2), teacher, index, chosen), expected)
    with pytest.raises(ShapeError, match=r"\(7, 3\) must have 4 channels .* \(6, 4\)"):
        module()(student[:, :3], teacher, index, chosen)
    with pytest.raises(ShapeError, match=r"contrast_index \(7, 1\)"):
        module()(student, teacher, index, chosen[:, :1])
    with pytest.raises(ShapeError, match=r"index \(6,\) must be \(batch,\) = \(7,\)"):
        module()(student, teacher, index[:6], chosen)
    with pytest.raises(ShapeError, match=r"student_bank \(11, 5\)"):
        crd_loss(*embeddings(0), chosen, *(x[:, :5] for x in banks()))
    with pytest.raises(ValueError, match="index must be integers"):
        module()(student, teacher, index.double(), chosen)
    with pytest.raises(ValueError, match="contrast_index must be int64"):
        crd_loss(*embeddings(0), chosen.int(), *banks())
    with pytest.raises(ValueError, match="index must lie in 0…10, not 11; give each training"):
        module()(student, teacher, index + (index == 10), chosen)
    with pytest.raises(ValueError, match="negatives must be at least 1, not 0"):
        crd_contrast_index(index, torch.arange(11), step=0, negatives=0)
    with pytest.raises(ValueError, match="momentum must lie between 0 and 1, not 3"):
        CRDLoss(4, 6, 11, momentum=3.0)
    with pytest.raises(ValueError, match="negatives must be at least 1, not 0"):
        CRDLoss(4, 6, 11, negatives=0)
    with pytest.raises(ValueError, match="momentum must lie between 0 and 1, not 2"):
        crd_update(banks()[0], embeddings(0)[0], INDEX, momentum=2)
