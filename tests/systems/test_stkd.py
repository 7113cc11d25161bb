"""STKD, as reconstructed: the virtual samples, the step in every variant, and its limits."""

import inspect
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.systems.tiny import TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn

import congener.systems.stkd as module
from congener.engine.accumulate import accumulated_step
from congener.errors import RecipeError
from congener.losses import stkd_loss
from congener.systems import STKD
from congener.systems.stkd import virtual_batch
from congener.types import Batch, Progress, StepResult

NOW = Progress(0, 1, 0)


def build(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any):
    student = student_net() if student is None else student
    teacher = teacher_net() if teacher is None else teacher
    options = {"task": TinyTask()} | options
    return STKD(student.double(), teacher.double(), **options).train()


def points(count: int = 12) -> Batch:
    batch = batch_of(TinyTask(), count)
    return batch | {"image": batch["image"].double()}


def step(system: STKD, virtual: Batch) -> StepResult:
    """The step of a batch that is mixed already."""
    return system.score(system.observe(virtual), system.teacher(virtual), virtual, NOW)


def pairs(batch: Batch, partners: Tensor, share: float | Tensor) -> Batch:
    """Virtual samples of pairs: ``share`` of each image, the rest of its partner."""
    rows = torch.arange(len(partners))
    shares = torch.as_tensor(share, dtype=torch.float64).expand(len(partners))
    return virtual_batch(
        batch, torch.stack([rows, partners], 1), torch.stack([shares, 1 - shares], 1)
    )


OTHERS = torch.tensor([3, 0, 7, 1, 11, 2, 5, 4, 6, 10, 8, 9])
VARIANTS = [
    {},
    {"lambda_per": "sample"},
    {"n_mix": 3, "alpha": 0.5},
    {"teacher_target": "interpolated"},
    {"add_clean_terms": True},
    {"n_mix": 4, "lambda_per": "sample", "teacher_target": "interpolated", "add_clean_terms": True},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_one_step(options: dict[str, Any]) -> None:
    """The whole step against sums over samples, images and classes in plain torch."""
    tau, count = 3.0, 12
    system = build(**options, ce_weight=0.3, kl_weight=1.7, temperature=tau)
    batch = points(count)
    student, teacher = deepcopy(system.student), deepcopy(system.teacher.frozen.model)
    torch.manual_seed(7)
    seen = system.views(batch, NOW)
    torch.manual_seed(7)
    total, terms, _ = system(batch, NOW)
    total.backward()

    x, y = batch["image"], batch["labels"]
    partners, shares = seen["partners"].tolist(), seen["shares"].tolist()
    mixture = [list(zip(p, s, strict=True)) for p, s in zip(partners, shares, strict=True)]
    assert {len(row) for row in mixture} == {options.get("n_mix", 2)}
    virtual = torch.stack([sum(s * x[p] for p, s in row) for row in mixture])
    z = student(virtual)
    log = z.log_softmax(1)
    task = -sum(s * log[i, y[p]] for i, row in enumerate(mixture) for p, s in row) / count

    def soft(inputs: Tensor) -> Tensor:
        return (teacher(inputs).detach() / tau).softmax(1)

    target = soft(virtual)
    if options.get("teacher_target") == "interpolated":
        target = torch.stack([sum(s * soft(x)[p] for p, s in row) for row in mixture])

    def kl(p: Tensor, logits: Tensor) -> Tensor:
        return tau**2 * (p * (p.log() - (logits / tau).log_softmax(1))).sum() / count

    wanted = {"task": task, "kd": kl(target, z)}
    expected = 0.3 * wanted["task"] + 1.7 * wanted["kd"]
    if options.get("add_clean_terms"):
        clean = student(x)
        wanted |= {"clean_task": F.cross_entropy(clean, y), "clean_kd": kl(soft(x), clean)}
        expected = expected + 0.3 * wanted["clean_task"] + 1.7 * wanted["clean_kd"]
    expected.backward()
    torch.testing.assert_close(terms, wanted)
    torch.testing.assert_close(total, expected)
    for mine, theirs in zip(system.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(system.student.state_dict(), student.state_dict())
    weights = system.weights(NOW)
    assert weights.keys() == terms.keys()
    torch.testing.assert_close(total, sum(weights[name] * terms[name] for name in terms))


def test_pairs_are_the_losses_own() -> None:
    system = build()
    batch = points()
    batch["labels"][::4] = -100
    seen = pairs(batch, OTHERS, torch.linspace(0, 1, 12, dtype=torch.float64))
    student, teacher = system.observe(seen), system.teacher(seen)
    labels = batch["labels"]
    expected = stkd_loss(
        student.logits, teacher.logits, labels, labels[OTHERS], seen["shares"][:, 0]
    )
    torch.testing.assert_close(system.score(student, teacher, seen, NOW).total, expected)


@pytest.mark.parametrize("target", ["virtual", "interpolated"])
@pytest.mark.parametrize("how", ["share", "partner"])
def test_unmixed_is_distillation(how: str, target: Any) -> None:
    """Property 1: λ = 1, or pairs of a sample with itself, whatever λ."""
    system = build(teacher_target=target)
    batch = points()
    others, share = (OTHERS, 1.0) if how == "share" else (torch.arange(12), 0.37)
    total, terms = step(system, pairs(batch, others, share))
    z, teacher = system.student(batch["image"]), system.teacher.frozen.model
    kd = 16 * F.kl_div(
        (z / 4).log_softmax(1), (teacher(batch["image"]) / 4).softmax(1), reduction="batchmean"
    )
    torch.testing.assert_close(terms["task"], F.cross_entropy(z, batch["labels"]))
    torch.testing.assert_close(terms["kd"], kd)
    total.backward()
    assert all(p.grad.isfinite().all() for p in system.student.parameters())


def test_the_same_mixtures_named_otherwise() -> None:
    """Property 2: (λ, π) and (1 − λ, π⁻¹); the student is in training mode."""
    system = build()
    batch = points()
    first = step(system, pairs(batch, OTHERS, 0.3)).total
    torch.testing.assert_close(step(system, pairs(batch, OTHERS.argsort(), 0.7)).total, first)
    other = step(system, pairs(batch, OTHERS.argsort(), 0.3)).total
    assert not torch.isclose(other, first, rtol=1e-3)


def test_mixed_labels() -> None:
    """Property 3: their rows sum to 1; an image that comes twice counts twice."""
    partners = torch.tensor([[0, 1, 0], [1, 2, 2], [2, 0, 1]])
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [1.0, 0.0, 0.0]])
    batch = virtual_batch(points(3) | {"image": torch.eye(3)}, partners, shares)
    batch["labels"] = torch.tensor([2, 0, 2])
    found, known = module._mixed_labels(batch, torch.zeros(3, 3))
    expected = torch.tensor([[0.5, 0, 0.5], [0.1, 0, 0.9], [0, 0, 1.0]])
    torch.testing.assert_close(found, expected)
    assert known.all()
    mixed = torch.tensor([[0.5, 0.5, 0], [0, 0.1, 0.9], [0, 0, 1.0]])
    torch.testing.assert_close(batch["virtual"], mixed)


def test_a_student_that_is_the_teacher() -> None:
    """Property 4, first half."""
    teacher = teacher_net()
    system = build(deepcopy(teacher), teacher, ce_weight=0.0, kl_weight=1.0).eval()
    assert system(points(), NOW)[0].abs() < 1e-12
    apart = build(teacher=teacher, ce_weight=0.0, kl_weight=1.0)
    assert apart(points(), NOW)[0] > 0.1


def test_a_shift_of_all_logits_changes_nothing() -> None:
    """Property 4, second half: of the student's, and of the teacher's in both targets."""
    for target in ("virtual", "interpolated"):
        system = build(teacher_target=target)
        seen = pairs(points(), OTHERS, 0.3)
        before = step(system, seen).total
        with torch.no_grad():
            system.student.classifier.bias += 3.0
            system.teacher.frozen.model.classifier.bias -= 5.0
        torch.testing.assert_close(step(system, seen).total, before)


def test_high_temperature_is_a_squared_distance() -> None:
    """Property 5: τ² KL → mean ‖z̃_s − z̃_t‖² / 2C, of centred logits."""
    system = build(temperature=1e4)
    seen = pairs(points(), OTHERS, 0.3)
    student, teacher = system.observe(seen), system.teacher(seen)
    gap = student.logits - teacher.logits
    limit = (gap - gap.mean(1, keepdim=True)).square().sum(1).mean() / 6
    kd = system.score(student, teacher, seen, NOW).terms["kd"]
    torch.testing.assert_close(kd, limit, rtol=1e-3, atol=0)


class Affine(nn.Module):
    """A teacher whose probabilities at τ are affine in its input, a point of a simplex."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        self.table = nn.Parameter(torch.rand(6, 3, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: Tensor) -> Tensor:
        table = self.table / self.table.sum(1, keepdim=True)
        return self.tau * (0.1 / 3 + 0.9 * x @ table).log()


def test_targets_agree_for_a_teacher_that_is_affine() -> None:
    """Property 6; for another teacher they differ."""
    batch = points()
    batch["image"] = batch["image"].softmax(1)
    seen = pairs(batch, OTHERS, 0.3)
    for teacher, alike in ((Affine(4.0), True), (Affine(1.0), False), (teacher_net(), False)):
        values = [
            step(build(teacher=deepcopy(teacher), teacher_target=target), seen).terms["kd"]
            for target in ("virtual", "interpolated")
        ]
        assert torch.isclose(*values, rtol=1e-9 if alike else 1e-4) == alike


@pytest.mark.parametrize("n_mix", [2, 5])
@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("alpha", [0.3, 1.0, 20.0])
def test_draws(n_mix: int, per: Any, alpha: float) -> None:
    """Shares are Dirichlet's: their mean 1/n, their variance (n − 1) / (n² (nα + 1))."""
    system = build(n_mix=n_mix, lambda_per=per, alpha=alpha)
    batch = points(12)
    torch.manual_seed(0)
    drawn = [system.views(batch, NOW) for _ in range(400)]
    shares = torch.stack([seen["shares"] for seen in drawn])
    torch.testing.assert_close(shares.sum(2), torch.ones_like(shares[..., 0]))
    assert (shares == shares[:, :1]).all() == (per == "batch")
    variance = (n_mix - 1) / (n_mix**2 * (n_mix * alpha + 1))
    assert shares[:, 0].mean(0).tolist() == pytest.approx([1 / n_mix] * n_mix, abs=0.06)
    assert shares[:, 0].var(0).tolist() == pytest.approx([variance] * n_mix, rel=0.25)
    partners = torch.stack([seen["partners"] for seen in drawn])
    rows = torch.arange(12)
    assert (partners[..., 0] == rows).all()
    assert (partners.sort(1).values == rows.unsqueeze(1)).all()
    meetings = F.one_hot(partners[..., 1], 12).double().mean(0)
    assert (meetings - 1 / 12).abs().max() < 0.08
    if n_mix > 2:
        assert (partners[..., 1] != partners[..., 2]).any()


def test_draws_come_from_the_global_generator() -> None:
    system, batch = build(), points()
    torch.manual_seed(1)
    first, second = system.views(batch, NOW), system.views(batch, NOW)
    torch.manual_seed(1)
    again = system.views(batch, NOW)
    assert torch.equal(first["virtual"], again["virtual"])
    assert not torch.equal(first["shares"], second["shares"])
    assert not torch.equal(first["partners"], second["partners"])


def test_the_batch_itself_stays() -> None:
    system, batch = build(add_clean_terms=True), points()
    before = {key: value.clone() for key, value in batch.items()}
    seen = system.views(batch, NOW)
    assert set(seen) == {*batch, "virtual", "partners", "shares"}
    assert {len(value) for value in seen.values()} == {12}
    for key, value in before.items():
        assert torch.equal(batch[key], value)
        assert seen[key] is batch[key]


@pytest.mark.parametrize(
    ("options", "forwards"),
    [
        ({}, (1, 1)),
        ({"teacher_target": "interpolated"}, (1, 1)),
        ({"add_clean_terms": True}, (2, 2)),
        ({"add_clean_terms": True, "teacher_target": "interpolated"}, (2, 1)),
    ],
)
def test_no_forward_too_many(options: dict[str, Any], forwards: tuple[int, int]) -> None:
    system = build(**options)
    ran = []
    for name, net in (("student", system.student), ("teacher", system.teacher.frozen.model)):
        net.register_forward_hook(lambda *_, name=name: ran.append(name))
    system(points(), NOW)
    assert (ran.count("student"), ran.count("teacher")) == forwards


@pytest.mark.parametrize("n_mix", [2, 3])
def test_samples_without_labels_teach_the_teachers_answer(n_mix: int) -> None:
    system = build(n_mix=n_mix, add_clean_terms=True)
    batch = points()
    bare = torch.arange(12) % 3 == 0
    batch["labels"] = batch["labels"].masked_fill(bare, -100)
    seen = system.views(batch, NOW)
    student, teacher = system.observe(seen), system.teacher(seen)
    gradients = {}
    for name, term in system.score(student, teacher, seen, NOW).terms.items():
        place = student.features["clean"] if name.startswith("clean") else student.logits
        (gradients[name],) = torch.autograd.grad(term, place, retain_graph=True)
    absent = bare[seen["partners"]].any(1)
    assert absent.any()
    assert not absent.all()
    assert (gradients["task"][absent] == 0).all()
    assert (gradients["task"][~absent] != 0).any(1).all()
    assert (gradients["clean_task"][bare] == 0).all()
    assert (gradients["clean_task"][~bare] != 0).any(1).all()
    assert all((gradients[name] != 0).any(1).all() for name in ("kd", "clean_kd"))
    alone = step(system, {k: v for k, v in seen.items() if k != "labels"}
                 | {"labels": torch.full((12,), -100)})  # fmt: skip
    assert alone.terms["task"].item() == alone.terms["clean_task"].item() == 0
    alone.total.backward()
    assert all(p.grad.isfinite().all() for p in system.student.parameters())


@pytest.mark.parametrize("options", VARIANTS[3:], ids=str)
def test_pieces_are_the_whole(options: dict[str, Any]) -> None:
    gradients = []
    for pieces in (1, 5):
        system = build(student_net(norm=False), **options)
        torch.manual_seed(3)
        total, _, _ = accumulated_step(system, points(), NOW, pieces, Accelerator(cpu=True))
        gradients.append([total.detach(), *(p.grad for p in system.student.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_half_precision_images_and_autocast() -> None:
    system = STKD(student_net(), teacher_net(), task=TinyTask(), teacher_target="interpolated")
    batch = batch_of(system.task)
    torch.manual_seed(0)
    full = system.eval()(batch, NOW)[0]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        total = system(batch, NOW)[0]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, full, rtol=3e-2, atol=0)
    half = system.views(batch | {"image": batch["image"].half()}, NOW)
    assert half["virtual"].dtype == torch.float16


def test_it_says_that_it_is_a_reconstruction() -> None:
    for doc in (module.__doc__, STKD.__doc__):
        assert "reconstruction" in (doc or "").splitlines()[0]
    assert all(source.startswith("ours") for source in STKD.sources.values())
    names = set(inspect.signature(STKD).parameters) - {"student", "teacher", "task"}
    assert names == set(STKD.sources)
    assert len(names) <= 8
    assert "alpha=1.0, n_mix=2, lambda_per='batch'" in repr(build())


class Other(TinyTask):
    def __init__(self, name: str, value: Any) -> None:
        super().__init__()
        self.name, self.value = name, value

    def collate(self, samples: Any) -> Batch:
        found = super().collate(samples) | {self.name: self.value}
        return {key: value for key, value in found.items() if value is not None}


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"alpha": 0.0}, ValueError, "alpha must be positive and finite, not 0.0"),
        ({"temperature": -1.0}, ValueError, "temperature must be positive and finite, not -1.0"),
        ({"lambda_per": "epoch"}, ValueError, "lambda_per must be one of 'batch', 'sample'"),
        ({"teacher_target": "clean"}, ValueError, "teacher_target must be one of 'virtual', 'in"),
        ({"n_mix": 1}, RecipeError, "mixed of 2 images or more, not n_mix=1."),
        ({"task": Other("image", torch.zeros(1, 6, dtype=torch.uint8))}, RecipeError,
         r"mixes a batch's 'image', which must be floats, .*, not torch.uint8 \(1, 6\); have"),
        ({"task": Other("image", None)}, RecipeError, "'image', .*, not nothing; have the task"),
        ({"task": Other("labels", torch.zeros(1, 3))}, RecipeError,
         r"'labels', which must be class numbers, \(batch,\), not torch.float32 \(1, 3\); only"),
        ({"task": Other("labels", torch.zeros(1))}, RecipeError, r"float32 \(1,\); only"),
        ({"task": Other("labels", torch.zeros(1, 3).long())}, RecipeError, r"int64 \(1, 3\); only"),
    ],
)  # fmt: skip
def test_bad_requests_are_told(options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        build(**options)


def test_a_label_that_is_no_class() -> None:
    batch = points()
    batch["labels"][3] = 9
    with pytest.raises(ValueError, match="labels must lie in 0…2, not 9"):
        build()(batch, NOW)
