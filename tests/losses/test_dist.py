"""DIST: its two relations, and what leaves them unchanged."""

import pytest
import torch
import torch.nn.functional as F
from tests.losses import golden, oracles

from congener.conformance.table.case import dense_logits, logits
from congener.errors import ShapeError
from congener.losses import DISTLoss, dist_inter_loss, dist_intra_loss, dist_loss
from congener.ops.collectives import lone_sample_expected


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(3, 6), (8, 3), (5, 2), (2, 4)])
def test_oracle(temperature: float, shape: tuple[int, int]) -> None:
    student, teacher = logits(0, shape[0], shape[1:])
    lists = (student.tolist(), teacher.tolist())
    inter, intra = (
        relation(*lists, temperature) for relation in (oracles.dist_inter, oracles.dist_intra)
    )
    assert golden.close(dist_inter_loss(student, teacher, temperature=temperature), inter)
    assert golden.close(dist_intra_loss(student, teacher, temperature=temperature), intra)
    loss = DISTLoss(2.0, 0.5, temperature)(student, teacher)
    assert golden.close(loss, temperature**2 * (2 * inter + 0.5 * intra), 1e-11)


def test_golden_values() -> None:
    student, teacher = golden.logits()
    assert golden.close(dist_inter_loss(student, teacher), 0.7665918199292229)
    assert golden.close(dist_intra_loss(student, teacher), 0.828317761780273)
    assert golden.close(dist_loss(student, teacher), 0.7665918199292229 + 0.828317761780273)
    inter, intra = 0.8127177974848822, 0.7261714109617741
    assert golden.close(dist_inter_loss(student, teacher, temperature=4.0), inter)
    assert golden.close(dist_intra_loss(student, teacher, temperature=4.0), intra)
    assert golden.close(dist_loss(student, teacher, temperature=4.0), 24.622227335146498)
    paper = dist_loss(student, teacher, temperature=4.0, variant="paper")
    assert golden.close(paper, inter + intra)


def test_affine_maps_of_probabilities() -> None:
    """Of each row the inter-class, of each column the intra-class relation sees only the shape."""
    generator = torch.Generator().manual_seed(1)
    teacher = torch.rand(6, 4, generator=generator, dtype=torch.float64) + 0.5
    teacher = teacher / teacher.sum(dim=1, keepdim=True)
    uniform = torch.full_like(teacher, 0.25)
    shrunk = torch.rand(6, 1, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    rows = shrunk * teacher + (1 - shrunk) * uniform
    assert dist_inter_loss(rows.log(), teacher.log()) < 1e-4
    assert dist_intra_loss(rows.log(), teacher.log()) > 1e-2
    # a·y + b of every column, one a for all so that rows still sum to 1; b differs by class
    shift = torch.tensor([0.3, -0.1, -0.15, -0.05], dtype=torch.float64) * 0.2
    columns = 0.5 * teacher + 0.125 + shift
    assert (columns > 0).all()
    assert dist_intra_loss(columns.log(), teacher.log()) < 1e-4
    assert dist_inter_loss(columns.log(), teacher.log()) > 1e-3
    turned = 0.5 - teacher
    turned = turned / turned.sum(dim=1, keepdim=True)
    assert (turned > 0).all()
    assert golden.close(dist_inter_loss(turned.log(), teacher.log()), 2.0, 1e-4)
    assert golden.close(dist_intra_loss(turned.log(), teacher.log()), 2.0, 1e-4)


def test_shift_of_a_samples_logits_and_order_of_classes_change_nothing() -> None:
    student, teacher = logits(2)
    shift = torch.arange(7.0, dtype=torch.float64).unsqueeze(1)
    order = torch.tensor([2, 0, 4, 1, 3])
    expected = dist_loss(student, teacher)
    torch.testing.assert_close(dist_loss(student + shift, teacher - shift), expected)
    torch.testing.assert_close(dist_loss(student[:, order], teacher[:, order]), expected)
    assert not torch.isclose(dist_loss(student[:, order], teacher), expected, rtol=1e-3)


def test_bounds() -> None:
    for seed in range(5):
        student, teacher = logits(seed)
        assert 0 <= dist_loss(student, teacher, beta=2.0, gamma=3.0, temperature=2.0) <= 2 * 4 * 5
        assert 0 <= dist_inter_loss(student, teacher) <= 2
        assert 0 <= dist_intra_loss(student, teacher) <= 2


def test_it_grows_like_the_square_of_the_temperature() -> None:
    student, teacher = logits(3)
    values = [dist_loss(student, teacher, temperature=t).item() for t in (16.0, 64.0)]
    assert values[1] / values[0] == pytest.approx(16, rel=0.05)
    paper = [
        dist_loss(student, teacher, temperature=t, variant="paper").item() for t in (16.0, 64.0)
    ]
    assert paper[1] / paper[0] == pytest.approx(1, rel=0.05)


def test_two_samples_have_no_intra_class_gradient() -> None:
    student, teacher = logits(4, batch=2)
    student.requires_grad_()
    loss = dist_intra_loss(student, teacher)
    loss.backward()
    # each correlation is 1 or −1
    assert golden.close(loss * 5 / 2, round(loss.item() * 5 / 2), 1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_two_classes_have_no_inter_class_gradient() -> None:
    student, teacher = logits(5, shape=(2,))
    student.requires_grad_()
    loss = dist_inter_loss(student, teacher)
    loss.backward()
    assert golden.close(loss * 7 / 2, round(loss.item() * 7 / 2), 1e-5)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


@lone_sample_expected()
def test_one_sample_has_an_intra_class_term_of_one() -> None:
    student, teacher = logits(6, batch=1)
    student.requires_grad_()
    loss = dist_intra_loss(student, teacher)
    loss.backward()
    assert loss == 1
    assert student.grad is not None
    assert (student.grad == 0).all()
    full = dist_loss(student, teacher)
    torch.testing.assert_close(full, 1 + dist_inter_loss(student, teacher))


def test_epsilon_is_added_not_clamped() -> None:
    """Columns of confident predictions fall below 1e-8; a clamped norm would hide it."""
    noise, teacher = logits(7, 32, (200,))
    student, teacher = 3 * (teacher + 0.3 * noise), 3 * teacher
    added = dist_intra_loss(student, teacher)
    y_s, y_t = (z.softmax(dim=1) for z in (student, teacher))
    clamped = 1 - F.cosine_similarity(y_s - y_s.mean(0), y_t - y_t.mean(0), dim=0).mean()
    assert added - clamped > 0.05


def test_pixels_are_rows() -> None:
    student, teacher = dense_logits(8)
    rows = [
        torch.stack([z[i, :, y, x] for i in range(7) for y in range(2) for x in range(3)])
        for z in (student, teacher)
    ]
    torch.testing.assert_close(dist_loss(student, teacher), dist_loss(*rows))
    per_image = dist_loss(student, teacher, reduction="none")
    per_pixel = dist_loss(*rows, reduction="none")
    torch.testing.assert_close(per_image, per_pixel.reshape(7, 6).mean(dim=1))


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 3, 2)])
def test_other_axes_are_told(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="height, width"):
        dist_loss(torch.zeros(shape), torch.zeros(shape))
