"""Backward-pass distillation: its step, its auxiliary samples, what making them leaves alone."""

import inspect
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.systems.tiny import FEATURES, TinyTask, batch_of, student_net, teacher_net
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from congener.engine.accumulate import accumulated_step
from congener.engine.optim import FitConfig, build_optimizer
from congener.errors import RecipeError, ShapeError
from congener.losses import backward_divergence
from congener.system import System
from congener.systems import BackwardKD
from congener.systems.ascent import Ascent
from congener.teachers import fingerprint
from congener.types import Batch, Progress

NOW = Progress(0, 10, 1)
DIVERGENCES = ("l2_logits", "l2_prob", "kl")
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def double(batch: Batch) -> Batch:
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def build(student: nn.Module | None = None, teacher: nn.Module | None = None, **options: Any):
    student = student_net() if student is None else student
    teacher = teacher_net() if teacher is None else teacher
    options = {"task": TinyTask()} | options
    return BackwardKD(student.double(), teacher.double(), **options).train()


def points(system: BackwardKD, count: int = 12) -> Batch:
    return double(batch_of(system.task, count))


def moved(system: BackwardKD, batch: Batch, now: Progress = NOW) -> Tensor:
    return system.views(batch, now)["auxiliary"]


def distance(student: nn.Module, teacher: nn.Module, x: Tensor, divergence: str) -> Tensor:
    """D of each sample, in plain torch."""
    z_s, z_t = student(x), teacher(x)
    if divergence == "kl":
        p_s, p_t = z_s.softmax(1), z_t.softmax(1)
        return (p_t * (p_t / p_s).log()).sum(1)
    if divergence == "l2_prob":
        z_s, z_t = z_s.softmax(1), z_t.softmax(1)
    return ((z_s - z_t) ** 2).sum(1)


def slope(student: nn.Module, teacher: nn.Module, x: Tensor, divergence: str) -> Tensor:
    """∇D of one sample by the chain rule, from the Jacobians of the networks."""
    z_s, z_t = student(x[None])[0].detach(), teacher(x[None])[0].detach()
    jacobians = [jacobian(lambda v, net=net: net(v[None])[0], x) for net in (student, teacher)]
    p_s, p_t = z_s.softmax(0), z_t.softmax(0)
    if divergence == "l2_logits":
        ends = [2 * (z_s - z_t), -2 * (z_s - z_t)]
    elif divergence == "l2_prob":
        soft = [p.diag() - p.outer(p) for p in (p_s, p_t)]
        ends = [2 * soft[0] @ (p_s - p_t), -2 * soft[1] @ (p_s - p_t)]
    else:
        log = (p_t / p_s).log()
        ends = [p_s - p_t, p_t * (log - (p_t * log).sum())]
    return jacobians[0].T @ ends[0] + jacobians[1].T @ ends[1]


@each_divergence
def test_one_step(divergence: Any) -> None:
    """The whole step against plain torch: terms, total, gradients, running statistics."""
    system = build(
        ascent={"divergence": divergence, "steps": 3, "step_size": 0.2},
        task_weight=0.3, kd_weight=0.7, auxiliary_weight=1.9, temperature=3.0,
    )  # fmt: skip
    batch = points(system)
    batch["labels"][::3] = -100
    assert isinstance(system.student, nn.Sequential)
    student, teacher = deepcopy(system.student), deepcopy(system.teacher.frozen.model)
    total, terms, _ = system(batch, NOW)
    total.backward()

    still = deepcopy(student).eval()
    x = batch["image"].clone()
    for _ in range(3):
        x = x + 0.2 * torch.stack([slope(still, teacher, row, divergence) for row in x])
    assert (x - batch["image"]).abs().max() > 0.02

    def kd(inputs: Tensor, logits: Tensor) -> Tensor:
        target = (teacher(inputs).detach() / 3).softmax(1)
        return 9 * F.kl_div((logits / 3).log_softmax(1), target, reduction="batchmean")

    z, z_auxiliary = student(batch["image"]), student(x)
    task = F.cross_entropy(z, batch["labels"])
    wanted = {"task": task, "kd": kd(batch["image"], z), "auxiliary": kd(x, z_auxiliary)}
    expected = 0.3 * wanted["task"] + 0.7 * wanted["kd"] + 1.9 * wanted["auxiliary"]
    expected.backward()
    torch.testing.assert_close(terms, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-12)
    pairs = zip(system.student.parameters(), student.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(system.student.state_dict(), student.state_dict())
    assert system.weights(NOW) == {"task": 0.3, "kd": 0.7, "auxiliary": 1.9}


@each_divergence
@pytest.mark.parametrize("normalise", ["none", "l2", "sign"])
def test_networks_that_agree_move_nothing(divergence: Any, normalise: Any) -> None:
    """P1, for raw gradients and for directions, which would blow round-off up."""
    ascent = Ascent(divergence, step_size=3.0, steps=2, normalise=normalise)
    teacher = teacher_net()
    system = build(deepcopy(teacher), teacher, ascent=ascent)
    batch = points(system)
    assert torch.equal(moved(system, batch), batch["image"])


@pytest.mark.parametrize("step", [1e-3, 0.1, 10.0])
def test_linear_networks(step: float) -> None:
    """P2: g = 2 x M with M = (W_S − W_T)ᵀ (W_S − W_T), and D grows for every η."""
    torch.manual_seed(1)
    student, teacher = (nn.Linear(FEATURES, 3, bias=False) for _ in range(2))
    system = build(student, teacher, ascent={"step_size": step})
    batch = points(system)
    x, gap = batch["image"], (student.weight - teacher.weight).detach()
    found = moved(system, batch)
    torch.testing.assert_close(found, x + step * 2 * x @ gap.T @ gap)
    assert (((found @ gap.T) ** 2).sum(1) > ((x @ gap.T) ** 2).sum(1)).all()


@each_divergence
@pytest.mark.parametrize("normalise", ["none", "l2", "sign"])
def test_small_steps_climb(divergence: Any, normalise: Any) -> None:
    """P3: for a step that is small enough, found by halving, D grows by what its slope says."""
    student, teacher = student_net().eval(), teacher_net().eval()
    step, wrong = 1.0, 1.0
    while wrong > 0.02 and step > 1e-9:
        step /= 8
        ascent = Ascent(divergence, step_size=step, normalise=normalise)
        system = build(student, teacher, ascent=ascent)
        batch = points(system)
        x, found = batch["image"], moved(system, batch)
        before, after = (distance(student.eval(), teacher, v, divergence) for v in (x, found))
        slopes = torch.stack([slope(student, teacher, row, divergence) for row in x])
        rise = ((found - x) * slopes).sum(1)
        if not (after > before).all():
            continue
        wrong = ((after - before) / rise - 1).abs().max().item()
    assert wrong <= 0.02


@pytest.mark.parametrize("ascent", [{"steps": 0}, {"step_size": 0.0, "steps": 4}])
def test_no_step_is_plain_distillation(ascent: dict[str, Any]) -> None:
    """P4: the same samples twice."""
    system = build(ascent=ascent).eval()
    batch = points(system)
    assert torch.equal(moved(system, batch), batch["image"])
    _, terms, _ = system(batch, NOW)
    assert torch.equal(terms["auxiliary"], terms["kd"])


def _state(*networks: nn.Module) -> list[Any]:
    seen: list[Any] = [torch.get_rng_state().tolist()]
    for network in networks:
        seen.append(fingerprint(network))
        seen.append([module.training for module in network.modules()])
        for p in network.parameters():
            seen.append((p.requires_grad, None if p.grad is None else p.grad.tolist()))
    return seen


@pytest.mark.parametrize("mode", ["online", "epoch"])
def test_making_them_leaves_everything_as_it_was(mode: Any) -> None:
    """P5, with odd modes, flags and gradients, and a teacher that someone set to train."""
    system = build(student_net(dropout=0.5), ascent={"steps": 2}, mode=mode)
    student, teacher = system.student, system.teacher.frozen.model
    student.hidden.eval()
    student.classifier.bias.requires_grad_(False)
    student.classifier.weight.grad = torch.ones_like(student.classifier.weight)
    batch = points(system)
    teacher.train()
    before, weights = _state(student), fingerprint(teacher)
    first = moved(system, batch)
    assert _state(student) == before
    teacher.train()
    with torch.no_grad():
        assert torch.equal(moved(system, batch), first)
    assert _state(student) == before
    assert fingerprint(teacher) == weights
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_a_failure_leaves_the_student_as_it_was() -> None:
    system = build(ascent={"steps": 1})
    before = _state(system.student)
    with pytest.raises(RuntimeError):
        system.views(points(system) | {"image": torch.zeros(4, 7, dtype=torch.float64)}, NOW)
    assert _state(system.student) == before


def test_no_parameter_takes_part_in_the_climb() -> None:
    system = build(ascent={"steps": 2})
    learning = []
    for network in (system.student, system.teacher.frozen.model):
        network.register_forward_hook(
            lambda net, *_: learning.append([p.requires_grad for p in net.parameters()])
        )
    moved(system, points(system))
    assert len(learning) == 4
    assert not any(flag for flags in learning for flag in flags)


@each_divergence
def test_a_sample_moves_alike_in_any_company(divergence: Any) -> None:
    """P6, in a network with batch normalisation and dropout that is being trained."""
    ascent = Ascent(divergence, step_size=0.5, steps=2)
    system = build(student_net(dropout=0.5), ascent=ascent)
    batch = points(system)
    together = moved(system, batch)
    for rows in (torch.tensor([4]), torch.tensor([7, 0, 3]), torch.arange(11, -1, -1)):
        some = {key: value[rows] for key, value in batch.items()}
        torch.testing.assert_close(moved(system, some), together[rows], rtol=1e-10, atol=1e-12)
    assert (together - batch["image"]).abs().max() > 1e-2


def test_auxiliary_samples_carry_no_graph() -> None:
    """P8, and the batch's own samples are not touched."""
    system = build(ascent={"steps": 2, "step_size": 0.5})
    batch = points(system)
    before = batch["image"].clone()
    found = moved(system, batch)
    assert not found.requires_grad
    assert found.grad_fn is None
    assert torch.equal(batch["image"], before)
    assert not batch["image"].requires_grad
    assert "auxiliary" not in batch


def test_warm_start_is_plain_distillation() -> None:
    system = build(warm_start=3, kd_weight=0.5)
    batch = points(system)
    for epoch in (0, 2):
        total, terms, _ = system(batch, Progress(9, 10, epoch))
        assert set(terms) == {"task", "kd"}
        torch.testing.assert_close(total, terms["task"] + 0.5 * terms["kd"])
    assert set(system(batch, Progress(9, 10, 3))[1]) == {"task", "kd", "auxiliary"}


def _train(system: System, batch: Batch, now: Progress, count: int = 1) -> None:
    optimizer = build_optimizer(system.parameters(), FitConfig(steps=1, lr=0.5))
    for _ in range(count):
        optimizer.zero_grad()
        system(batch, now)[0].backward()
        optimizer.step()


def test_epochs_climb_from_the_student_of_their_start() -> None:
    """What is made batch by batch is what a pass over all data before the epoch would have made."""
    system = build(mode="epoch", ascent={"step_size": 0.3})
    everything = points(system, 40)
    parts = [{k: v[i : i + 10] for k, v in everything.items()} for i in range(0, 40, 10)]
    for epoch in (1, 2):
        start = deepcopy(system.student).eval()
        stored = build(start, deepcopy(system.teacher.frozen.model), ascent={"step_size": 0.3})
        expected = moved(stored, everything)
        for i, part in enumerate(parts):
            now = Progress(4 * epoch + i, 12, epoch)
            torch.testing.assert_close(moved(system, part, now), expected[10 * i : 10 * i + 10])
            _train(system, part, now)
        after = moved(build(system.student, system.teacher.frozen.model,
                            ascent={"step_size": 0.3}), everything)  # fmt: skip
        assert (after - expected).abs().max() > 1e-3


def test_online_climbs_from_the_student_as_it_is() -> None:
    system = build(ascent={"step_size": 0.3})
    batch = points(system)
    first = moved(system, batch)
    _train(system, batch, NOW, 3)
    fresh = build(deepcopy(system.student), system.teacher.frozen.model, ascent={"step_size": 0.3})
    again = moved(system, batch)
    assert torch.equal(again, moved(fresh, batch))
    assert (again - first).abs().max() > 1e-3


def test_epochs_go_on_from_a_saved_state() -> None:
    system = build(mode="epoch")
    batch = points(system)
    _train(system, batch, NOW, 2)
    other = build(mode="epoch")
    other.load_state_dict(system.state_dict())
    assert torch.equal(moved(other, batch), moved(system, batch))
    assert torch.equal(other(batch, NOW)[0], system(batch, NOW)[0])
    assert not torch.equal(moved(other, batch, Progress(5, 10, 2)), moved(system, batch))


def test_the_copy_is_not_trained() -> None:
    system = build(mode="epoch")
    kept = [p for n, p in system.named_parameters() if n.startswith("climbed.")]
    assert kept
    assert not any(p.requires_grad for p in kept)
    assert {n for n, p in system.named_parameters() if p.requires_grad} == {
        f"student.{n}" for n, _ in system.student.named_parameters()
    }
    assert not any(name.startswith("climbed") for name in build().state_dict())


def test_directions_and_limits() -> None:
    batch = points(build())
    raw = moved(build(ascent={"step_size": 1.0}), batch) - batch["image"]
    unit = moved(build(ascent={"step_size": 1.0, "normalise": "l2"}), batch) - batch["image"]
    torch.testing.assert_close(unit, raw / (raw**2).sum(1, keepdim=True).sqrt())
    sign = moved(build(ascent={"step_size": 0.5, "normalise": "sign"}), batch) - batch["image"]
    torch.testing.assert_close(sign, 0.5 * raw.sign())
    within = moved(build(ascent={"step_size": 1.0, "clamp": [-1.0, 0.5]}), batch)
    torch.testing.assert_close(within, (batch["image"] + raw).clamp(-1, 0.5))


def test_what_the_mask_leaves_out_stays() -> None:
    """And the direction is that of what moves."""
    batch = points(build()) | {"free": torch.arange(72).reshape(12, 6) % 3 > 0}
    options = {"step_size": 1.0, "normalise": "l2"}
    raw = moved(build(ascent={"step_size": 1.0}), batch) - batch["image"]

    class Masked(TinyTask):
        def collate(self, samples: Any) -> Batch:
            found = super().collate(samples)
            return found | {"free": torch.ones_like(found["image"], dtype=torch.bool)}

    system = build(task=Masked(), ascent=options | {"mask": "free"})
    shift = moved(system, batch) - batch["image"]
    assert (shift[~batch["free"]] == 0).all()
    torch.testing.assert_close(shift, F.normalize(raw * batch["free"], dim=1))


def test_pieces_are_the_whole() -> None:
    gradients = []
    for pieces in (1, 3):
        system = build(student_net(norm=False), ascent={"step_size": 0.3})
        batch = points(system)
        total, _, _ = accumulated_step(system, batch, NOW, pieces, Accelerator(cpu=True))
        gradients.append([total.detach(), *(p.grad for p in system.student.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(("steps", "forwards"), [(0, 2), (1, 2), (3, 4)])
def test_the_teacher_is_asked_once_for_each_answer(steps: int, forwards: int) -> None:
    """At the samples, at each further step, and at the auxiliary samples."""
    system = build(ascent={"steps": steps, "step_size": 0.5})
    batch, teacher, ran = points(system), system.teacher.frozen.model, []
    teacher.register_forward_hook(lambda *_: ran.append(1))
    system(batch, NOW)
    assert len(ran) == forwards
    seen = system.views(batch, NOW)
    said = system.teacher(seen)
    assert torch.equal(said.logits, teacher(batch["image"]))
    assert torch.equal(said.features["auxiliary"], teacher(seen["auxiliary"]))
    assert not any(value.requires_grad for value in seen.values())
    asking = batch | {"image": batch["image"].clone().requires_grad_()}
    assert not system.teacher(asking).logits.requires_grad


def test_autocast_does_not_reach_the_climb() -> None:
    system = BackwardKD(student_net(), teacher_net(), task=TinyTask(), ascent={"step_size": 0.3})
    batch = batch_of(system.task)
    exact = moved(build(ascent={"step_size": 0.3}), double(batch))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(moved(system, batch).double(), exact, rtol=1e-5, atol=1e-5)
        assert system(batch, NOW)[0].isfinite()


def test_labels_do_not_move_samples() -> None:
    system = build()
    batch = points(system)
    bare = batch | {"labels": torch.full((12,), -100)}
    assert torch.equal(moved(system, batch), moved(system, bare))
    total, terms, _ = system(bare, NOW)
    assert terms["task"].item() == 0
    total.backward()
    assert all(p.grad is not None and p.grad.any() for p in system.student.classifier.parameters())


def test_every_default_has_a_source() -> None:
    names = set(inspect.signature(BackwardKD).parameters) - {"student", "teacher", "task"}
    assert names == set(BackwardKD.sources)
    assert len(names) <= 8
    assert all(source.startswith("ours") for source in BackwardKD.sources.values())
    assert "temperature=1.0" in repr(build())
    assert "Ascent(divergence='l2_logits', step_size=0.01, steps=1" in repr(build())


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"mode": "batch"}, ValueError, "mode must be one of 'online', 'epoch', not 'batch'"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, not 0.0"),
        ({"warm_start": -1}, RecipeError, "warm_start must be a number of epochs, not -1."),
        ({"ascent": {"stepsize": 1.0}}, RecipeError, "takes no argument 'stepsize'; did you mean "
         "'step_size'"),
        ({"ascent": {"divergence": "l1"}}, RecipeError, "expected 'l2_logits', 'l2_prob' or 'kl'"),
        ({"ascent": {"normalise": "max"}}, RecipeError, "expected 'none', 'l2' or 'sign'"),
        ({"ascent": {"step_size": -0.1}}, RecipeError, "of at least 0, not -0.1 and 1."),
        ({"ascent": {"steps": -1}}, RecipeError, "of at least 0, not 0.01 and -1."),
        ({"ascent": {"step_size": float("inf")}}, RecipeError, "a finite step_size .*, not inf"),
        ({"ascent": {"clamp": [1.0, 0.0]}}, RecipeError, r"two numbers, \[low, high\], not"),
        ({"ascent": {"clamp": [1.0]}}, RecipeError, r"two numbers, \[low, high\], not"),
        ({"ascent": {"entry": "images"}}, RecipeError, "no tensor 'images' to climb with; did you "
         "mean 'image'"),
        ({"ascent": {"mask": "mask"}}, RecipeError, "no tensor 'mask' to climb with; known: "),
        ({"ascent": {"mask": "labels"}}, RecipeError, "The entry 'labels', torch.int64 .* must be "
         "boolean with the first axes of 'image'"),
        ({"ascent": {"entry": "labels"}}, RecipeError, "the entry 'labels' must be floating point"),
        ({"teacher_map": torch.zeros(5, 6)}, ShapeError, "the former 6"),
        ({"teacher_map": torch.zeros(6)}, ShapeError, r"teacher_map \(6,\) must be"),
    ],
)  # fmt: skip
def test_bad_requests_are_told(options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        build(**options)


def test_an_entry_that_no_network_reads_is_told() -> None:
    class Two(TinyTask):
        def collate(self, samples: Any) -> Batch:
            found = super().collate(samples)
            mask = found["image"][:, :3] > 0
            return found | {"other": found["image"] + 1, "first": mask, "one": mask[:, 0].float()}

    system = build(task=Two(), ascent={"entry": "other"})
    with pytest.raises(RecipeError, match=r"'first', torch.bool \(1, 3\), must be boolean"):
        build(task=Two(), ascent={"mask": "first"})
    with pytest.raises(
        RecipeError, match=r"the entry 'one' must be floating point, \(batch, ...\)"
    ):
        build(task=Two(), ascent={"entry": "one"})
    with pytest.raises(RecipeError, match="do not read the entry 'other'"):
        system.views(points(system), NOW)


def test_divergence_is_the_losses_own() -> None:
    """The oracle of this file and the loss agree on what D is."""
    student, teacher = student_net().double().eval(), teacher_net().double().eval()
    x = points(build())["image"]
    for divergence in DIVERGENCES:
        expected = distance(student, teacher, x, divergence)
        options: Any = {"divergence": divergence, "reduction": "none"}
        torch.testing.assert_close(backward_divergence(student(x), teacher(x), **options), expected)


@pytest.mark.parametrize("word", ["divergence", "normalise"])
def test_unknown_words_are_told(word: str) -> None:
    with pytest.raises(ValueError, match=f"{word} must be one of .*, not 'most'"):
        Ascent(**{word: "most"})  # type: ignore[arg-type]
