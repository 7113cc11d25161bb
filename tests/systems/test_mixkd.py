"""MixKD: pairs and shares, mixtures in the networks' own embeddings, both terms of them."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from tests.systems.tiny import TinyTask, TinyTextTask, student_net, text_net, text_teacher
from tests.systems.tiny import prepared_batch as batch_of
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig, fit
from congener.engine.accumulate import accumulated_step
from congener.errors import RecipeError
from congener.losses import KDLoss, SPLoss
from congener.systems import Distillation, MixKD
from congener.systems import mixture as mixtures
from congener.systems.mixture import Mixing, symmetric_beta
from congener.teachers import fingerprint
from congener.types import Batch, Progress, Term

NOW = Progress(3, 10, 0)


def mixkd(unlabelled: int = 0, **options: Any) -> MixKD:
    task = TinyTextTask(unlabelled=unlabelled)
    return MixKD(text_net(), text_teacher(), task=task, **options).eval()


def seen_by(system: MixKD, count: int = 12, step: int = 3) -> tuple[Batch, Batch]:
    """A batch, and what the networks see of it."""
    batch = batch_of(system.task, count)
    return batch, system.views(batch, Progress(step, 10, 0))


def answers(net: nn.Module, batch: Batch, rows: slice | None = None) -> Tensor:
    """What a :class:`TextNet` says of mixtures, by a loop of its own."""
    found = []
    for row in range(len(batch["tokens"]))[rows or slice(None)]:
        words = net.get_submodule("words").weight
        share, kept = batch["share"][row], batch["mask"][row]
        own, other = (words[batch[key][row]] for key in ("tokens", "other_tokens"))
        mean = (share * own + (1 - share) * other)[kept].mean(0)
        found.append(net.get_submodule("classifier")(net.get_submodule("hidden")(mean)))
    return torch.stack(found)


def shares(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(
        mixtures, "symmetric_beta", lambda u, a: torch.full((len(u),), value, dtype=torch.float64)
    )


# Pairs and shares


def test_each_text_is_mixed_with_another_one_and_each_is_one_partner() -> None:
    batch, seen = seen_by(mixkd())
    assert len(seen["share"]) == len(seen["index"]) == len(seen["mixed"]) == 24
    assert seen["mixed"] == [False] * 12 + [True] * 12
    first, second = seen["tokens"].chunk(2)
    assert torch.equal(first, batch["tokens"])
    assert torch.equal(second, batch["tokens"])
    partners = [
        next(i for i in range(12) if torch.equal(batch["tokens"][i], row))
        for row in seen["other_tokens"][12:]
    ]
    assert sorted(partners) == list(range(12))
    assert all(partner != row for row, partner in enumerate(partners))
    at, steps = partners[0], 1
    while at != 0:
        at, steps = partners[at], steps + 1
    assert steps == 12  # one circle
    assert torch.equal(seen["other_labels"][12:], batch["labels"][partners])
    assert torch.equal(seen["mask"][12:], batch["mask"] | batch["mask"][partners])
    assert torch.equal(seen["length"][12:], seen["mask"][12:].sum(1))
    for key in ("tokens", "labels"):
        assert torch.equal(seen[f"other_{key}"][:12], batch[key])
    assert torch.equal(seen["share"][:12], torch.ones(12))
    assert torch.equal(seen["mask"][:12], batch["mask"])
    assert torch.equal(seen["length"][:12], batch["length"])
    assert torch.equal(seen["index"], batch["index"].repeat(2))


def pairs(seen: Batch) -> dict[int, tuple[list[int], float]]:
    rows = range(len(seen["index"]) // 2, len(seen["index"]))
    return {
        int(seen["index"][row]): (seen["other_tokens"][row].tolist(), float(seen["share"][row]))
        for row in rows
    }


@pytest.mark.parametrize("per", ["batch", "example"])
def test_pairs_follow_ids_and_step_alone(per: Any) -> None:
    mixing, batch = Mixing(per=per), batch_of(TinyTextTask(), 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    shuffled = {key: value[order] for key, value in batch.items()}
    before = torch.get_rng_state()
    assert pairs(mixing(batch, step=3)) == pairs(mixing(shuffled, step=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert pairs(mixing(batch, step=3)) != pairs(mixing(batch, step=4))


def test_a_share_for_the_batch_or_for_each_example() -> None:
    batch = batch_of(TinyTextTask(), 12)
    assert len(mixing_shares(Mixing(per="batch"), batch)) == 1
    assert len(mixing_shares(Mixing(per="example"), batch)) == 12
    other = batch | {"index": batch["index"] + 100}
    assert mixing_shares(Mixing(), batch) != mixing_shares(Mixing(), other)


def mixing_shares(mixing: Mixing, batch: Batch) -> set[float]:
    return set(mixing(batch, step=0)["share"][len(batch["index"]) :].tolist())


def test_a_lone_text_is_mixed_with_itself() -> None:
    batch = batch_of(TinyTextTask(), 1)
    seen = Mixing()(batch, step=0)
    assert torch.equal(seen["other_tokens"], batch["tokens"].repeat(2, 1))


def test_the_mask_of_the_major_share(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(TinyTextTask(), 12)
    for share in (0.7, 0.3):
        shares(monkeypatch, share)
        seen = Mixing(mask="major")(batch, step=0)
        tokens = seen["tokens" if share > 0.5 else "other_tokens"]
        assert torch.equal(seen["mask"][12:], tokens[12:] != 0)


def grid() -> Tensor:
    """The middles of 400 × 400 squares of the unit square."""
    middles = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    return torch.cartesian_prod(middles, middles)


@pytest.mark.parametrize("a", [0.3, 0.4, 1.0, 2.5, 40.0])
def test_shares_have_the_moments_of_beta(a: float) -> None:
    drawn = symmetric_beta(grid(), a)
    assert drawn.mean().item() == pytest.approx(0.5, abs=1e-9)
    spread = (drawn - 0.5).square()
    assert spread.mean().item() == pytest.approx(1 / (4 * (2 * a + 1)), rel=1e-2)
    fourth = 3 / (16 * (2 * a + 1) * (2 * a + 3))
    assert spread.square().mean().item() == pytest.approx(fourth, rel=2e-2)


def test_shares_of_one_half_follow_the_arcsine_law() -> None:
    found = symmetric_beta(grid(), 0.5).sort().values
    level = (torch.arange(len(found)) + 0.5) / len(found)
    assert torch.allclose(2 / math.pi * found.sqrt().asin(), level.double(), atol=5e-3)


def test_shares_at_the_limits() -> None:
    uniforms = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    uniforms[0] = 0
    alone = symmetric_beta(uniforms, 1e-4)
    assert (((alone - 0.5).abs() > 0.4999) | (uniforms[:, 0] < 0.01)).all()
    assert ((alone >= 0) & (alone <= 1)).all()
    assert torch.allclose(symmetric_beta(uniforms, 1e9), torch.tensor(0.5).double(), atol=1e-3)


# The system


def test_the_total_is_the_papers() -> None:
    system = mixkd(alpha_sm=0.7, alpha_tmkd=0.3, mixing={"per": "example"})
    batch, seen = seen_by(system)
    total, terms, _ = system(batch, NOW)
    mine = answers(system.student, seen)
    theirs = answers(system.teacher.frozen.model, seen)
    clean = F.cross_entropy(mine[:12], batch["labels"])
    share = seen["share"][12:, None]
    soft = share * F.one_hot(seen["labels"][12:], 3) + (1 - share) * F.one_hot(
        seen["other_labels"][12:], 3
    )
    mixed = F.cross_entropy(mine[12:], soft)
    distance = F.mse_loss(mine[12:], theirs[12:])
    assert terms["task"].item() == pytest.approx(clean.item(), rel=1e-5)
    assert terms["student_mixup"].item() == pytest.approx(mixed.item(), rel=1e-5)
    assert terms["teacher_mixup"].item() == pytest.approx(distance.item(), rel=1e-5)
    expected = clean + 0.7 * mixed + 0.3 * distance
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert system.weights(NOW) == {"task": 1.0, "student_mixup": 0.7, "teacher_mixup": 0.3}


def test_the_divergence_as_the_distance() -> None:
    system = mixkd(distance="kl", temperature=2.0, kd_weight=0.4)
    batch, seen = seen_by(system)
    _, terms, _ = system(batch, NOW)
    mine, theirs = answers(system.student, seen), answers(text_teacher().eval(), seen)
    for name, rows in (("kd", slice(12)), ("teacher_mixup", slice(12, None))):
        wanted = 4 * F.kl_div(
            (mine[rows] / 2).log_softmax(1), (theirs[rows] / 2).softmax(1), reduction="batchmean"
        )
        assert terms[name].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert system.weights(NOW)["kd"] == 0.4


def test_labels_count_where_both_texts_have_one() -> None:
    system = mixkd(unlabelled=6, mixing={"per": "example"})
    batch, seen = seen_by(system)
    assert (batch["labels"] < 0).any()
    _, terms, _ = system(batch, NOW)
    mine = answers(system.student, seen)[12:].log_softmax(1)
    values = [
        -(share * row[own] + (1 - share) * row[other])
        for row, own, other, share in zip(
            mine, seen["labels"][12:], seen["other_labels"][12:], seen["share"][12:], strict=True
        )
        if own >= 0 and other >= 0
    ]
    assert len(values) == 6  # labelled texts are mixed with labelled ones
    assert terms["student_mixup"].item() == pytest.approx(
        torch.stack(values).mean().item(), rel=1e-5
    )
    none = mixkd(unlabelled=50)
    total, terms, _ = none(batch_of(none.task, 12), NOW)
    assert terms["student_mixup"].item() == terms["task"].item() == 0
    assert total.item() == terms["teacher_mixup"].item() > 0


def test_a_share_of_one_is_the_text_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shares(monkeypatch, 1.0)
    system = mixkd(mixing={"mask": "major"}, terms=[Term(MSE(), 0.0)])
    _, terms, _ = system(batch_of(system.task, 12), NOW)
    assert terms["student_mixup"].item() == pytest.approx(terms["task"].item(), rel=1e-6)
    assert terms["teacher_mixup"].item() == pytest.approx(terms["mse"].item(), rel=1e-6)


class MSE(nn.Module):
    name = "mse"

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return F.mse_loss(student_logits, teacher_logits)


def test_pairs_seen_from_either_side_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    system = mixkd()
    batch = batch_of(system.task, 2)  # the circle of two: each is the other's partner
    shares(monkeypatch, 0.25)
    one = system.observe(system.views(batch, NOW)).logits[2:]
    shares(monkeypatch, 0.75)
    other = system.observe(system.views(batch, NOW)).logits[2:]
    assert torch.allclose(one, other.flip(0), atol=1e-6)


def test_a_linear_teacher_answers_with_the_mixture() -> None:
    net = text_net()
    net.hidden = nn.Sequential()
    batch = batch_of(TinyTextTask(), 12)
    batch["mask"] = torch.ones_like(batch["mask"])
    seen = Mixing(per="example")(batch, step=0)
    share = seen["share"][:, None]
    own, other = (
        answers(net, seen | {"tokens": seen[key], "share": torch.ones(24)})
        for key in ("tokens", "other_tokens")
    )
    assert torch.allclose(
        TinyTextTask().call(net, seen), share * own + (1 - share) * other, atol=1e-6
    )


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    system = MixKD(text_teacher(), text_teacher(), task=TinyTextTask(), alpha_sm=0.0).eval()
    _, terms, _ = system(batch_of(system.task, 12), NOW)
    assert terms["teacher_mixup"].item() == 0
    (slope,) = torch.autograd.grad(terms["teacher_mixup"], system.student.words.weight)
    assert not slope.any()


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = text_teacher()
    system = MixKD(text_net(), teacher, task=TinyTextTask()).train()
    before = fingerprint(teacher)
    system(batch_of(system.task, 12), NOW)[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert fingerprint(teacher) == before
    assert system.student.words.weight.grad.any()


def test_without_both_terms_the_run_is_that_without_mixing() -> None:
    task = TinyTextTask()
    config = FitConfig(steps=6, batch_size=16, lr=0.05, threads=1, device="cpu")

    def trained(make: Any) -> str:
        torch.manual_seed(0)
        system = make(text_net(dropout=0.3))
        fit(system, task, config, train=task.splits["train"], test=None)
        return fingerprint(system.student) + str(torch.get_rng_state().sum().item())

    off = {"alpha_sm": 0.0, "alpha_tmkd": 0.0}
    plain = trained(lambda net: Distillation(net, None, [], task=task))
    assert trained(lambda net: MixKD(net, text_teacher(), task=task, **off)) == plain
    assert trained(lambda net: MixKD(net, None, task=task, **off)) == plain
    kd = [Term(KDLoss(temperature=2.0), 0.5)]
    wanted = trained(lambda net: Distillation(net, text_teacher(), kd, task=task))
    options = off | {"kd_weight": 0.5, "temperature": 2.0}
    assert trained(lambda net: MixKD(net, text_teacher(), task=task, **options)) == wanted
    assert trained(lambda net: MixKD(net, text_teacher(), task=task)) != plain


def test_networks_are_called_once_and_the_teacher_on_what_is_used_alone() -> None:
    texts = {"alpha_tmkd": 0.0, "kd_weight": 1.0}
    for options, rows in (({}, 12), ({"kd_weight": 1.0}, 24), (texts, 12)):
        system = mixkd(**options)
        calls: list[int] = []

        def count(_net: Any, given: Any, _said: Any, calls: list[int] = calls) -> None:
            calls.append(len(given[0]))

        for net in (system.student, _network(system)):
            net.register_forward_hook(count)
        system(batch_of(system.task, 12), NOW)
        assert calls == [rows, 24]  # the teacher first


def _network(system: MixKD) -> nn.Module:
    (frozen,) = system.teacher.networks
    return frozen.model


def test_the_teacher_of_the_texts_alone_is_asked_as_they_are() -> None:
    terms = [Term(SPLoss(), 2.0, "hidden", "hidden")]
    both = mixkd(kd_weight=0.5, terms=terms)
    alone = mixkd(kd_weight=0.5, terms=terms, alpha_tmkd=0.0)
    batch = batch_of(both.task, 12)
    wanted, found = both(batch, NOW)[1], alone(batch, NOW)[1]
    assert found.keys() == wanted.keys() - {"teacher_mixup"}
    for name, value in found.items():
        assert value.item() == pytest.approx(wanted[name].item(), rel=1e-6)


TEXTS = {"alpha_tmkd": 0.0, "kd_weight": 0.5}


@pytest.mark.parametrize("options", [{}, {"kd_weight": 0.5}, {"alpha_tmkd": 0.0}, TEXTS], ids=str)
@pytest.mark.parametrize("pieces", [8, 3])
def test_pieces_are_the_whole_batch(options: dict[str, Any], pieces: int) -> None:
    whole, cut = (mixkd(unlabelled=3, mixing={"per": "example"}, **options) for _ in range(2))
    batch = batch_of(whole.task, 8)
    total, terms, _ = whole(batch, NOW)
    total.backward()
    found, each, _ = accumulated_step(cut, batch, NOW, pieces, Accelerator(cpu=True))
    assert found.item() == pytest.approx(total.item(), rel=1e-6)
    assert {k: v.item() for k, v in each.items()} == pytest.approx(
        {k: v.item() for k, v in terms.items()}, rel=1e-6
    )
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-7)


def _mixed_here(rank: int, sizes: tuple[int, int]) -> dict[int, Any]:
    task = TinyTextTask()
    task.pad = 20
    batch = batch_of(task, sum(sizes))
    order = batch["length"].argsort(stable=True)  # the first process' texts are the short ones
    batch = {key: value[order] for key, value in batch.items()}
    own = slice(sizes[0]) if rank == 0 else slice(sizes[0], None)
    batch = {key: value[own] for key, value in batch.items()}
    longest = int(batch["length"].max())
    for key in ("tokens", "mask"):
        batch[key] = batch[key][:, :longest]
    batch["tokens"] = batch["tokens"].masked_fill(~batch["mask"], 20)
    Accelerator(cpu=True)  # joins the processes, if there are two
    system = MixKD(text_net(), text_teacher(), task=task, mixing={"per": "example"})
    seen = system.views(batch, NOW)
    return pairs(seen) | {-1 - rank: seen["tokens"].shape}


def test_two_processes_mix_as_one(tmp_path: Path) -> None:
    for at, sizes in enumerate(((6, 6), (9, 3))):
        one = _mixed_here(2, (0, 12))
        first, second = in_two_processes(tmp_path / str(at), _mixed_here, sizes)
        wanted = {key: value for key, value in one.items() if key >= 0}
        both = {key: value for key, value in (first | second).items() if key >= 0}
        assert both == wanted
        assert first[-1][1] == second[-2][1] == one[-3][1]


def test_the_pool_can_be_left_out() -> None:
    assert mixkd().distils
    assert not mixkd(pool=False).distils
    assert not mixkd(alpha_tmkd=0.0).distils
    assert mixkd(alpha_tmkd=0.0, kd_weight=1.0).distils


def test_further_terms_are_of_the_texts_as_they_are() -> None:
    system = mixkd(terms=[Term(SPLoss(), 2.0, "hidden", "hidden")])
    batch = batch_of(system.task, 12)
    _, terms, _ = system(batch, NOW)
    alone = Distillation(
        text_net(), text_teacher(), [Term(SPLoss(), 2.0, "hidden", "hidden")], task=system.task
    ).eval()
    assert terms["sp"].item() == pytest.approx(alone(batch, NOW)[1]["sp"].item(), rel=1e-5)
    assert system.weights(NOW)["sp"] == 2.0


class Numbers(TinyTextTask):
    """Numbers to predict, some of which are not known."""

    class_names = ()

    def collate(self, samples: Any) -> Batch:
        batch = super().collate(samples)
        return batch | {
            "labels": batch["labels"].float().masked_fill(batch["length"] == 3, torch.nan)
        }

    def logits(self, result: Any) -> Tensor:
        return result[:, :1]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        known = ~batch["labels"].isnan()
        return (logits[:, 0] - batch["labels"])[known].square().mean()


def test_numbers_are_mixed_too() -> None:
    task = Numbers()
    system = MixKD(text_net(), text_teacher(), task=task, mixing={"per": "example"}).eval()
    batch = batch_of(task, 12)
    seen = system.views(batch, NOW)
    _, terms, _ = system(batch, NOW)
    mine = answers(system.student, seen)[12:, 0]
    share, own, other = (seen[key][12:] for key in ("share", "labels", "other_labels"))
    known = ~(own.isnan() | other.isnan())
    assert 0 < known.sum() < 12
    off = (mine - (share * own + (1 - share) * other))[known]
    assert terms["student_mixup"].item() == pytest.approx(off.square().mean().item(), rel=1e-5)
    with pytest.raises(RecipeError, match="these labels are numbers; use 'mse'"):
        MixKD(text_net(), text_teacher(), task=task, distance="kl")


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_sm": -1.0}, "alpha_sm must not be negative, not -1"),
        ({"alpha_tmkd": -1.0}, "alpha_tmkd must not be negative"),
        ({"temperature": 0.0}, "temperature"),
        ({"distance": "l1"}, "distance must be one of 'mse', 'kl', not 'l1'"),
        (
            {"mixing": {"per": "token"}},
            "'per' of the part 'mixing' is 'token': expected 'batch' or 'example'",
        ),
        ({"mixing": {"mask": "both"}}, "'mask' of the part 'mixing' is 'both'"),
        ({"mixing": {"concentration": 0.0}}, "concentration must be"),
        ({"mixing": {"alpha": 0.4}}, "'mixing'.*'alpha'"),
        ({"terms": [{"loss": "sp"}]}, "are Term objects, not"),
        ({"terms": [Term(KDLoss(), name="student_mixup")]}, "cannot be called 'student_mixup'"),
    ],
    ids=str,
)
def test_bad_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixkd(**options)


def test_what_cannot_be_mixed_is_told() -> None:
    task = TinyTextTask()
    with pytest.raises(RecipeError, match="needs a teacher to ask about mixtures; name one, or"):
        MixKD(text_net(), None, task=task)
    with pytest.raises(RecipeError, match=r"these have 'image', 'labels', 'index'\. For images"):
        MixKD(student_net(), student_net(), task=TinyTask())
    wider = deepcopy(text_teacher())
    wider.classifier = nn.Linear(16, 4)
    with pytest.raises(RecipeError, match="tells 3 classes apart and the teacher 4"):
        MixKD(text_net(), wider, task=task)

    class Tags(TinyTextTask):
        def collate(self, samples: Any) -> Batch:
            batch = super().collate(samples)
            return batch | {"labels": F.one_hot(batch["labels"].clamp(min=0), 3)}

    with pytest.raises(RecipeError, match=r"one class or number for each text.*\(1, 3\)"):
        MixKD(text_net(), text_teacher(), task=Tags())
