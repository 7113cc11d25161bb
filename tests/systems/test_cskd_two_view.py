"""One step of CSKD's trainer against plain torch, its factors, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.tiny import TinyTask, TwoViewTask, batch_of, student_net, teacher_net
from tests.trajectory.processes import in_two_processes
from torch import Tensor

from congener.engine import FitConfig, build_accelerator
from congener.errors import RecipeError
from congener.losses import CSKDLoss
from congener.ops.collectives import rank_sizes
from congener.recipe import parse_recipe
from congener.runner import execute
from congener.systems import TwoViewCSKD
from congener.tasks.image_classification import ImageClassification
from congener.tasks.image_classification.data.splits import Arrays, divide
from congener.types import Outputs, Progress

START = Progress(0, 1, 0)
DEFAULTS = {"T": 4.0, "alpha": 2.0, "low": 2.0, "high": 6.0, "ce": 1.0, "kd": 1.0}
CHANGED = {
    "temperature": 3.0, "alpha": 1.5, "low_temperature": 1.5, "high_temperature": 5.0,
    "task_weight": 0.7, "kd_weight": 1.3,
}  # fmt: skip


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.norm() * b.norm() + 1e-8)


def oracle(
    zs_weak: Tensor,
    zs_strong: Tensor,
    zt_weak: Tensor,
    zt_strong: Tensor,
    labels: Tensor,
    *,
    T: float,
    alpha: float,
    low: float,
    high: float,
    ce: float,
    kd: float,
    factors: bool = True,
) -> dict[str, Tensor]:
    """The card's section 2(c), sample by sample and class by class."""
    count, classes = zs_weak.shape
    ps, pt = zs_weak.detach().softmax(1), zt_weak.softmax(1)
    agree = torch.stack([cosine(ps[i], pt[i]) for i in range(count)])
    most, least = agree.max(), agree.min()
    each = low + (high - low) * (most - agree) / (most - least)

    def columns(zs: Tensor, zt: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        qs, qt = (zs / t).softmax(1), (zt / t).softmax(1)
        cosines = [cosine(qs[:, j], qt[:, j]) for j in range(classes)]
        return alpha * scale**2 * (1 - torch.stack(cosines).mean())

    def together(zs: Tensor, zt: Tensor, t: Tensor, *, samples: bool) -> Tensor:
        qs, qt = (zs / t).softmax(1), (zt / t).softmax(1)
        gs, gt = (qs @ qs.T, qt @ qt.T) if samples else (qs.T @ qs, qt.T @ qt)
        return 1 - torch.stack([cosine(gs[i], gt[i]) for i in range(len(gs))]).mean()

    plain, own = torch.full((count, 1), T, dtype=zs_weak.dtype), each[:, None]
    fixed, mean = torch.tensor(T), each.mean()
    sure, wide = pt.max(1).values, pt.sum(0)
    m = sum(float(c) <= float(sure.quantile(0.5)) for c in sure) / count if factors else 1.0
    mc = sum(float(c) <= float(wide.quantile(0.5)) for c in wide) / classes if factors else 1.0
    weak, strong = (zs_weak, zt_weak), (zs_strong, zt_strong)
    return {
        "task": ce * F.cross_entropy(zs_weak, labels, ignore_index=-100),
        "task_strong": ce * F.cross_entropy(zs_strong, labels, ignore_index=-100),
        "weak": kd * m * (columns(*weak, plain, fixed) + columns(*weak, own, mean)),
        "strong": kd * (columns(*strong, plain, fixed) + columns(*strong, own, mean)),
        "class": kd * mc * sum(together(*weak, t, samples=False) for t in (plain, own)),
        "batch": kd * m * sum(together(*weak, t, samples=True) for t in (plain, own)),
    }


def logits(count: int, classes: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(count)
    drawn = [2 * torch.randn(count, classes, generator=generator).double() for _ in range(4)]
    labels = torch.randint(classes, (count,), generator=generator)
    return (*(z.requires_grad_(k < 2) for k, z in enumerate(drawn)), labels)


def scored(given: tuple[Tensor, ...], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    zs_weak, zs_strong, zt_weak, zt_strong, labels = given
    task = TwoViewTask()
    system = TwoViewCSKD(student_net(), teacher_net(), task=task, **options)
    total, terms = system.score(
        Outputs(zs_weak, {"strong": zs_strong}),
        Outputs(zt_weak, {"strong": zt_strong}),
        {"labels": labels},
        START,
    )
    weights = system.weights(START)
    assert total.item() == pytest.approx(sum(weights[k] * v.item() for k, v in terms.items()))
    return total, {name: weights[name] * term for name, term in terms.items()}


@pytest.mark.parametrize("count", [12, 7])
@pytest.mark.parametrize("classes", [5, 4])
@pytest.mark.parametrize("factors", [True, False])
@pytest.mark.parametrize("changes", [{}, CHANGED])
def test_the_loss_of_a_step(count: int, classes: int, factors: bool, changes: Any) -> None:
    given = logits(count, classes)
    values = (changes or DEFAULTS).values()
    wanted = oracle(*given, **dict(zip(DEFAULTS, values, strict=True)), factors=factors)
    total, found = scored(given, median_factors=factors, **changes)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)
    expected = torch.autograd.grad(sum(wanted.values()), given[:2])
    for a, b in zip(torch.autograd.grad(total, given[:2]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_a_whole_step_through_the_networks() -> None:
    """Each network runs twice, each view by itself: batch normalisation sees one at a time."""
    task, teacher, mine = TwoViewTask(), teacher_net(), student_net()
    system = TwoViewCSKD(student_net(), teacher, task=task).train()
    batch = batch_of(task, 10)
    total, _, _ = system(batch, START)
    total.backward()
    mine.train()
    views = batch["image"], batch["strong_image"]
    said = [mine(view) for view in views]
    with torch.no_grad():
        taught = [teacher.eval()(view) for view in views]
    wanted = sum(oracle(*said, *taught, batch["labels"], **DEFAULTS).values())
    wanted.backward()
    torch.testing.assert_close(total, wanted)
    for (name, found), plain in zip(
        system.student.named_parameters(), mine.parameters(), strict=True
    ):
        torch.testing.assert_close(found.grad, plain.grad, msg=name)
    for found, plain in zip(system.student.buffers(), mine.buffers(), strict=True):
        torch.testing.assert_close(found, plain)
    assert set(system.state_dict()) == {f"student.{name}" for name in mine.state_dict()}


def test_factors_select_nothing() -> None:
    """For an even number without ties they are one half; a tie makes them larger."""
    for count, classes in ((12, 4), (6, 6)):
        given = logits(count, classes)
        with_factors, without = (scored(given, median_factors=on)[1] for on in (True, False))
        for name in ("weak", "class", "batch"):
            torch.testing.assert_close(with_factors[name], 0.5 * without[name])
        for name in ("task", "task_strong", "strong"):
            torch.testing.assert_close(with_factors[name], without[name])
    zs_weak, zs_strong, zt_weak, zt_strong, labels = logits(12, 4)
    same = zt_weak[:1].expand(12, 4).clone()
    tied = (zs_weak, zs_strong, same, zt_strong, labels)
    ratio = scored(tied)[1]["weak"] / scored(tied, median_factors=False)[1]["weak"]
    assert ratio.item() == pytest.approx(1.0)


def test_temperatures_are_of_the_weak_view_and_carry_no_gradient() -> None:
    given = logits(8, 5)
    _, found = scored(given)
    (gradient,) = torch.autograd.grad(found["strong"], given[0], allow_unused=True)
    assert gradient is None
    zs_weak = (given[0].detach() * torch.linspace(0.1, 3, 8)[:, None]).requires_grad_()
    _, other = scored((zs_weak, *given[1:]))
    assert not torch.allclose(other["strong"], found["strong"])


def test_equal_predictions_cost_nothing() -> None:
    zs_weak, zs_strong, _, _, labels = logits(8, 5)
    _, found = scored((zs_weak, zs_strong, zs_weak.detach(), zs_strong.detach(), labels))
    assert all(abs(found[k].item()) < 1e-4 for k in ("weak", "strong", "class", "batch"))


def test_samples_without_a_label_are_distilled() -> None:
    *given, labels = logits(8, 5)
    _, whole = scored((*given, labels))
    _, found = scored((*given, torch.where(torch.arange(8) < 5, -100, labels)))
    for name in ("weak", "strong", "class", "batch"):
        assert found[name].item() == whole[name].item()
    kept = F.cross_entropy(given[1][5:], labels[5:])
    torch.testing.assert_close(found["task_strong"], kept)


def _factors(rank: int) -> list[float]:
    """Ragged shares: the first process has two samples more than the second."""
    build_accelerator(FitConfig(steps=1, device="cpu"))  # joins the processes
    zt = logits(12, 5)[2].detach()
    zt[:7] = 0.0  # alone, the first process would find all classes alike
    if rank_sizes(zt) is not None:
        zt = zt[:7] if rank == 0 else zt[7:]
    system = TwoViewCSKD(student_net(), teacher_net(), task=TwoViewTask())
    return [float(factor) for factor in system._factors(zt)]


def test_medians_are_of_the_batch_of_all_processes(tmp_path: Path) -> None:
    assert in_two_processes(tmp_path, _factors) == [_factors(0)] * 2
    assert _factors(0) == pytest.approx([7 / 12, 3 / 5])


def test_factors_are_of_probabilities() -> None:
    """Three rows are equal but for a constant; only the largest probability counts."""
    alike = torch.tensor([2.0, 1.0, 0.0])
    zt = torch.stack([alike, alike + 2, alike + 4, torch.tensor([9.0, 0.0, 0.0])])
    system = TwoViewCSKD(student_net(), teacher_net(), task=TwoViewTask())
    assert [float(factor) for factor in system._factors(zt)] == pytest.approx([3 / 4, 2 / 3])


def test_without_a_second_view() -> None:
    system = TwoViewCSKD(student_net(), teacher_net(), task=TinyTask())
    with pytest.raises(RecipeError, match=r"no 'strong_image'; add .* task: \{strong: rand_augm"):
        system(batch_of(TinyTask()), START)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"low_temperature": 7.0}, "7"),
        ({"low_temperature": 0.0}, "0"),
    ],
)
def test_bad_settings(options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TwoViewCSKD(student_net(), teacher_net(), task=TwoViewTask(), **options)


def test_it_says_what_it_is() -> None:
    with pytest.raises(RecipeError, match="needs a teacher"):
        TwoViewCSKD(student_net(), None, task=TwoViewTask())  # type: ignore[arg-type]
    system = TwoViewCSKD(student_net(), teacher_net(), task=TwoViewTask(), alpha=1.0)
    assert system.extra_repr().startswith("temperature=4.0, alpha=1.0, low_temperature=2.0")
    assert system.paper is CSKDLoss.paper
    assert system.batch_coupled


def task_of(strong: Any) -> ImageClassification:
    generator = torch.Generator().manual_seed(0)
    arrays = Arrays(torch.randn(120, 1, 40, generator=generator), torch.arange(120) % 10)
    names = [str(k) for k in range(10)]
    splits = divide("noise", arrays, arrays, class_names=names, mean=[0.0], std=[1.0])
    return ImageClassification(splits, strong=strong)


def recipe(strong: Any) -> Any:
    train = {"steps": 2, "batch_size": 30, "threads": 1, "device": "cpu"}
    return parse_recipe(
        {
            "task": task_of(strong),
            "teacher": {"name": "cnn1d", "channels": 16, "train": train},
            "student": {"name": "mlp", "hidden": [8]},
            "system": {"name": "cskd_two_view", "alpha": 1.0},
            "train": train | {"accumulate": 2},
        }
    )


def test_as_a_recipe(tmp_path: Path) -> None:
    metrics = execute(recipe("jitter"), tmp_path / "run").metrics
    assert metrics["steps"] == 2
    assert metrics["arms"]["distilled"]["role"] == "distilled"
    with pytest.raises(RecipeError, match="no 'strong_image'; add a second view"):
        execute(recipe(None), tmp_path / "other")
    assert not (tmp_path / "other").exists()
