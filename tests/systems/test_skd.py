"""SKD: whose texts it learns from, what it asks the teacher, and how it averages."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.systems.texts import TextTask, writer, writing_teacher
from tests.systems.tiny import TinyTask
from tests.systems.tiny import prepared_batch as batch_of
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn

from congener.engine import FitConfig
from congener.engine.accumulate import accumulated_step
from congener.engine.machine import build_accelerator
from congener.errors import RecipeError
from congener.generation import Sampling, Written, generate, interleave_sequential
from congener.losses import GKDLoss, KDLoss, SPLoss
from congener.ops.keyed_random import keyed_uniform
from congener.schedules import Schedule
from congener.systems import SKD, Distillation
from congener.systems.skd_texts import Writing, rewritten
from congener.task import Task
from congener.teachers import FrozenTeacher
from congener.types import Batch, Progress, Term

NOW = Progress(3, 10, 0)
WORDS = TextTask().vocabulary.size
PLAIN = {"student_temperature": 1.0, "student_top_p": 1.0, "teacher_temperature": 0.7}


def build(task: Task | None = None, **options: Any) -> SKD:
    """In float64; both networks are untrained, and end a text after one to six tokens."""
    options.setdefault("writing", PLAIN)
    teacher = writing_teacher().double()
    return SKD(writer().double(), teacher, task=task or TextTask(), **options)


def responses(batch: Batch) -> list[list[int]]:
    rows = zip(batch["tokens"].tolist(), batch["prompt"], batch["length"], strict=True)
    return [row[int(prompt) : int(length)] for row, prompt, length in rows]


@contextmanager
def counted(network: nn.Module) -> Iterator[list[int]]:
    """How often a network runs within a block."""
    calls: list[int] = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    try:
        yield calls
    finally:
        handle.remove()


def gradients(system: nn.Module, total: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(total, list(system.parameters()), allow_unused=True)
    return [g if g is not None else torch.zeros(()) for g in found]


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_on_the_data_s_texts_it_is_distillation(weight: float) -> None:
    system = build(text="data", reduction="token", term_weights={"task": weight})
    other = Distillation(
        system.student, system.teacher.model, [Term(GKDLoss(beta=0.0))],
        task=system.task, task_weight=weight,
    )  # fmt: skip
    batch = batch_of(system.task)
    mine, theirs = system(batch, NOW), other(batch, NOW)
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1]["kd"], theirs[1]["gkd"])
    assert all(map(torch.equal, gradients(system, mine[0]), gradients(other, theirs[0])))
    assert system.views(batch, NOW) is batch
    assert type(system.teacher) is FrozenTeacher


def sequential(system: SKD, batch: Batch, row: int, *, step: int = 3, top_k: int = 2) -> list[int]:
    """The text of one sample, token by token and without caches."""
    one = slice(row, row + 1)
    prompt = batch["tokens"][one, : int(batch["prompt"][row])]
    written = interleave_sequential(
        system.student, system.teacher.network, prompt, batch["prompt"][one],
        index=batch["index"][one], seed=0, step=step, top_k=top_k,
        student_sampling=Sampling(1.0, 1.0), teacher_sampling=Sampling(0.7, 0.5),
        max_new_tokens=system.task.max_new_tokens,
        eos=system.task.vocabulary.eos, pad=system.task.vocabulary.pad,
    )  # fmt: skip
    return written.tokens[0, : int(written.length[0])].tolist()


@pytest.mark.parametrize("block", [1, 5, "adaptive", {"shape": "linear", "start": 1, "end": 6}])
def test_texts_are_those_of_the_sequential_rule(block: Any) -> None:
    system = build(top_k=2, writing=PLAIN | {"block": block})
    batch = batch_of(system.task)
    seen = system.views(batch, NOW)
    wanted = [sequential(system, batch, row) for row in range(len(batch["index"]))]
    assert responses(seen) == wanted
    assert len({len(text) for text in wanted}) > 1
    for row, text in enumerate(wanted):
        start, end = int(batch["prompt"][row]), int(batch["prompt"][row]) + len(text)
        assert torch.equal(seen["tokens"][row, :start], batch["tokens"][row, :start])
        assert (seen["tokens"][row, end:] == system.task.vocabulary.pad).all()
        assert seen["labels"][row, start:end].tolist() == text
        assert (seen["labels"][row, :start] == -100).all()
        assert (seen["labels"][row, end:] == -100).all()
        assert seen["mask"][row].tolist() == [at < end for at in range(seen["mask"].shape[1])]
    assert seen["tokens"].shape[1] == int(seen["length"].max())
    assert seen["index"] is batch["index"]


@pytest.mark.parametrize("text", ["skd", "teacher"])
def test_what_the_teacher_said_while_writing_is_what_it_says_of_the_text(text: Any) -> None:
    system = build(text=text, top_k=2)
    batch = batch_of(system.task)
    with counted(system.teacher.frozen.model) as calls:
        seen = system.views(batch, NOW)
        writing = len(calls)
        kept = system.teacher(seen).logits
        assert len(calls) == writing > 0
    fresh = system.teacher.frozen(seen).logits
    torch.testing.assert_close(kept, fresh, rtol=0, atol=1e-10)
    assert len(kept) == int((seen["length"] - seen["prompt"]).sum())
    with counted(system.teacher.frozen.model) as calls:
        system(batch, NOW)
        assert len(calls) == writing


def test_the_step_is_the_paper_s() -> None:
    """KL(p ‖ q) of each token of a text, the mean over a text, and the mean of those."""
    system = build(top_k=2)
    batch = batch_of(system.task)
    total, terms, _ = system(batch, NOW)
    wanted = [
        means(system, [*prompt, *sequential(system, batch, row)], len(prompt))
        for row, prompt in enumerate(prompts(batch))
    ]
    assert terms.keys() == system.weights(NOW).keys() == {"kd"}
    assert total.item() == pytest.approx(sum(map(mean, wanted)) / len(wanted), abs=1e-10)
    token = build(top_k=2, reduction="token")
    every = [value for values in wanted for value in values]
    assert token(batch, NOW)[0].item() == pytest.approx(mean(every), abs=1e-10)
    assert mean(every) != pytest.approx(total.item(), rel=1e-4)


def prompts(batch: Batch) -> list[list[int]]:
    return [row[:n] for row, n in zip(batch["tokens"].tolist(), batch["prompt"], strict=True)]


def means(system: SKD, text: list[int], prompt: int, beta: float = 0.0) -> list[float]:
    """The divergence at each token of a response, one network call and one loop at a time."""
    tokens = torch.tensor([text])
    teacher = system.teacher.frozen.model if text and hasattr(system.teacher, "frozen") else None
    with torch.no_grad():
        q = system.student(input_ids=tokens).logits[0].softmax(-1).tolist()
        network = teacher or system.teacher.model  # type: ignore[union-attr]
        p = network(input_ids=tokens).logits[0].softmax(-1).tolist()
    return [divergence(p[at], q[at], beta) for at in range(prompt - 1, len(text) - 1)]


def divergence(p: list[float], q: list[float], beta: float) -> float:
    if beta == 0:
        return kl(p, q)
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_all_or_none_accepted_is_a_text_of_one_of_them() -> None:
    batch = batch_of(TextTask())
    texts = {
        name: responses(build(**options).views(batch, NOW))
        for name, options in {
            "all": {"top_k": WORDS},
            "more": {"top_k": 10 * WORDS},
            "none": {"top_k": 0},
            "some": {"top_k": 2},
            "student": {"text": "student"},
            "teacher": {"text": "teacher"},
        }.items()
    }
    assert texts["all"] == texts["more"] == texts["student"]
    assert texts["none"] == texts["teacher"]
    assert len({str(text) for text in texts.values()}) == 3


def test_texts_follow_the_step_and_the_sample_alone() -> None:
    system = build(top_k=2)
    batch = batch_of(system.task)
    texts = responses(system.views(batch, NOW))
    assert responses(system.views(batch, NOW)) == texts
    assert responses(system.views(batch, Progress(4, 10, 0))) != texts
    order = torch.tensor([5, 2, 9, 0])
    some = {name: value[order] for name, value in batch.items()}
    assert responses(system.views(some, NOW)) == [texts[place] for place in order]


def test_writing_leaves_modes_and_random_numbers_alone() -> None:
    system = build(top_k=2).train()
    system.student.model.norm.eval()
    modes = [module.training for module in system.modules()]
    state = torch.get_rng_state()
    seen = system.views(batch_of(system.task), NOW)
    assert modes == [module.training for module in system.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(isinstance(v, Tensor) and v.requires_grad for v in seen.values())
    assert all(p.requires_grad for p in system.student.parameters())


def chosen(system: SKD, batch: Batch, step: int = 3) -> list[bool]:
    seen = system.views(batch, Progress(step, 10, 0))
    return seen["written"].tolist() if "written" in seen else [False] * len(batch["index"])


def test_a_coin_says_whose_text_is_written() -> None:
    system = build(text="student", share=0.4)
    batch = batch_of(system.task, 24)
    seen = system.views(batch, NOW)
    draws = keyed_uniform(batch["index"], seed=1, epoch=3, count=1)[:, 0]
    wanted = (draws < 0.4).tolist()
    assert chosen(system, batch) == wanted
    assert 0 < sum(wanted) < 24
    written = build(text="student").views(batch, NOW)
    before, own, now = responses(batch), responses(written), responses(seen)
    assert now == [own[i] if yes else before[i] for i, yes in enumerate(wanted)]
    assert chosen(system, batch, step=4) != wanted
    assert chosen(build(text="student", share=0.0), batch) == [False] * 24
    assert build(text="student", share=0.0).views(batch, NOW) is batch


def test_a_coin_for_the_batch() -> None:
    system = build(text="student", share=0.5, writing=PLAIN | {"coin": "batch"})
    batch = batch_of(system.task, 6)
    flips = [chosen(system, batch, step) for step in range(24)]
    assert {tuple(flip) for flip in flips} == {(False,) * 6, (True,) * 6}
    assert 5 < sum(flip[0] for flip in flips) < 19


def test_a_mixture_is_its_parts() -> None:
    """GKD: the data's texts and the student's own, of each the divergence that β names."""
    options = {"loss": {"name": "gkd", "beta": 0.3}, "reduction": "token"}
    system = build(text="student", share=0.4, **options)
    batch = batch_of(system.task)
    texts, written = responses(batch), responses(build(text="student").views(batch, NOW))
    values = []
    for row, yes in enumerate(chosen(system, batch)):
        text = written[row] if yes else texts[row]
        prompt = prompts(batch)[row]
        values += means(system, [*prompt, *text], len(prompt), beta=0.3)
    assert system(batch, NOW)[0].item() == pytest.approx(mean(values), abs=1e-10)


@pytest.mark.parametrize("longest", [1, 6])
@pytest.mark.parametrize("text", ["skd", "teacher"])
def test_a_mixture_asks_the_teacher_about_the_data_s_texts(text: Any, longest: int) -> None:
    writing = PLAIN | {"max_new_tokens": longest}
    system = build(text=text, top_k=2, share=0.5, writing=writing)
    batch = batch_of(system.task)
    seen = system.views(batch, NOW)
    assert 0 < int(seen["written"].sum()) < len(batch["index"])
    torch.testing.assert_close(
        system.teacher(seen).logits, system.teacher.frozen(seen).logits, rtol=0, atol=1e-10
    )
    with counted(system.teacher.frozen.model) as calls:
        system.teacher(seen)
        assert len(calls) == 1


def test_shares_and_ranks_may_follow_the_training() -> None:
    batch = batch_of(TextTask(), 24)
    system = build(text="student", share={"shape": "linear", "start": 0.0, "end": 1.0})
    counts = [sum(chosen(system, batch, step)) for step in (0, 4, 9)]
    assert counts[0] < counts[1] < counts[2] == 24
    by_epoch = build(text="student", share={"shape": "linear", "epochs": 2})
    drawn = [by_epoch.views(batch, Progress(3, 10, epoch))["written"].sum() for epoch in (0, 1)]
    assert 0 < drawn[0] < drawn[1] == 24
    falling = build(top_k={"shape": "linear", "start": WORDS, "end": 0, "steps": 10})
    own = build(text="student").views(batch, Progress(9, 10, 0))
    assert responses(falling.views(batch, Progress(9, 10, 0))) != responses(own)
    assert Schedule("linear", WORDS, 0, steps=10).factor(3, 10, 0) == pytest.approx(4.8)
    texts = [responses(build(top_k=top_k).views(batch, NOW)) for top_k in (4, 5)]
    assert responses(falling.views(batch, NOW)) == texts[1] != texts[0]
    last = build(text="teacher").views(batch, Progress(9, 10, 0))
    assert responses(falling.views(batch, Progress(9, 10, 0))) == responses(last)


def test_the_data_s_texts_come_first() -> None:
    system = build(top_k=2, warm_up=0.4)
    batch = batch_of(system.task)
    assert system.views(batch, Progress(3, 10, 0)) is batch
    assert system.figures() == {}
    assert chosen(system, batch, step=4) == [True] * len(batch["index"])
    assert system.figures() != {}
    system.views(batch, Progress(3, 10, 0))
    assert system.figures() == {}
    before = build(text="data")(batch, Progress(3, 10, 0))[0]
    torch.testing.assert_close(system(batch, Progress(3, 10, 0))[0], before, rtol=0, atol=1e-12)


def test_sequence_level_distillation() -> None:
    """SeqKD: the cross-entropy of the teacher's texts, which it is not asked about."""
    system = build(text="teacher", term_weights={"task": 2.0, "kd": 0.0})
    batch = batch_of(system.task)
    with counted(system.teacher.frozen.model) as calls, counted(system.student) as own:
        seen = system.views(batch, NOW)
        writing = len(calls)
        assert own == []
        total, terms, _ = system(batch, NOW)
        assert len(calls) == 2 * writing
    nll = []
    for prompt, text in zip(prompts(batch), responses(seen), strict=True):
        with torch.no_grad():
            logits = system.student(input_ids=torch.tensor([[*prompt, *text]])).logits[0]
        at = slice(len(prompt) - 1, len(prompt) + len(text) - 1)
        nll += F.cross_entropy(logits[at], torch.tensor(text), reduction="none").tolist()
    assert terms.keys() == system.weights(NOW).keys() == {"task"}
    assert terms["task"].item() == pytest.approx(mean(nll))
    assert total.item() == pytest.approx(2 * mean(nll))
    skd = build(top_k=2, term_weights={"task": 1.0, "kd": 0.0})
    assert "teacher_logits" not in skd.views(batch, NOW)
    assert skd(batch, NOW)[1].keys() == {"task"}


def test_prompts_without_a_response() -> None:
    task = TextTask(labelled=8)
    batch = batch_of(task)
    unlabelled = batch["length"] == batch["prompt"]
    assert 0 < int(unlabelled.sum()) < len(unlabelled)
    system = build(task, text="data")
    some = {name: value[~unlabelled] for name, value in batch.items()}
    torch.testing.assert_close(system(batch, NOW)[0], system(some, NOW)[0])
    assert not system.distils
    assert build(task).distils
    seen = build(task, top_k=2).views(batch, NOW)
    assert (seen["length"] > seen["prompt"]).all()


@pytest.mark.parametrize("reduction", ["sequence", "token"])
@pytest.mark.parametrize("text", ["data", "skd"])
def test_a_batch_without_a_token_says_nothing(reduction: Any, text: Any) -> None:
    task = TextTask(labelled=1)
    batch = {name: value[4:8] for name, value in batch_of(task).items()}
    assert not task.token_mask(batch).any()
    system = build(task, text=text, share=0.0, reduction=reduction, term_weights={"task": 1.0})
    total, terms, _ = system(batch, NOW)
    assert total.item() == 0
    assert all(value == 0 for value in terms.values())
    total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in system.parameters())


def test_where_a_text_goes() -> None:
    """An answer of one token, its end, and one that is longer than the batch."""
    task = TextTask()
    batch = batch_of(task, 4)
    eos, pad = task.vocabulary.eos, task.vocabulary.pad
    fresh = torch.tensor([[eos, pad, pad, pad, pad, pad], [1, 2, 3, 1, 2, eos]])
    said = torch.arange(7 * WORDS).view(7, WORDS).double()
    length = torch.tensor([1, 6])
    written = Written(fresh, length, length > 0, fresh > 0, said)
    before = {name: value.clone() for name, value in batch.items()}
    seen = rewritten(batch, torch.tensor([2, 3]), written, task)
    texts = responses(batch)
    assert responses(seen) == [texts[0], texts[1], [eos], [1, 2, 3, 1, 2, eos]]
    assert seen["tokens"].shape[1] > batch["tokens"].shape[1]
    assert all(torch.equal(batch[name], before[name]) for name in before)
    assert seen["written"].tolist() == [False, False, True, True]
    assert int(task.token_mask(seen)[2].sum()) == 1
    system = build(task)
    rows = system.teacher(seen | {"index": torch.arange(4)}).logits
    assert torch.equal(rows[-7:], said)
    assert len(rows) == len(texts[0]) + len(texts[1]) + 7
    for row, end in enumerate(seen["length"]):
        assert (seen["tokens"][row, end:] == pad).all()
        assert (seen["labels"][row, end:] == -100).all()
        assert seen["labels"][row, int(batch["prompt"][row]) : end].tolist() == responses(seen)[row]
    short = Written(fresh[:, :1], torch.tensor([1, 1]), length > 0, fresh[:, :1] > 0)
    both = {name: value[:2] for name, value in batch.items()}
    cut = rewritten(both, torch.tensor([0, 1]), short, task)
    assert cut["tokens"].shape[1] == int(both["prompt"].max()) + 1
    assert "teacher_logits" not in cut


@pytest.mark.parametrize("pieces", [3, 7])
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_pieces_are_the_whole(pieces: int, reduction: Any) -> None:
    found = []
    for count in (1, pieces):
        system = build(top_k=2, share=0.7, reduction=reduction, term_weights={"task": 0.5})
        accelerator = build_accelerator(FitConfig(steps=1, device="cpu"))
        batch = batch_of(system.task, 7)
        total, _, _ = accumulated_step(system, batch, NOW, count, accelerator)
        found.append([total.detach(), *(p.grad for p in system.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)


def _ragged(rank: int, reduction: Any, sizes: list[int]) -> list[Tensor]:
    """The step of a process whose share of the batch is not as large as the other's."""
    system = build(top_k=2, share=0.7, reduction=reduction)
    if len(sizes) > 1:
        build_accelerator(FitConfig(steps=1, device="cpu"))
    first = sum(sizes[:rank])
    rows = slice(first, first + sizes[rank])
    batch = {name: value[rows] for name, value in batch_of(system.task, 7).items()}
    total = system(batch, NOW)[0]
    total.backward()
    grads = torch.cat([p.grad.flatten() for p in system.parameters() if p.grad is not None])
    if len(sizes) > 1:
        torch.distributed.all_reduce(grads)
    return [total.detach(), grads / len(sizes), torch.tensor(system.figures()["accepted"])]


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_two_processes_are_one(reduction: Any, tmp_path: Path) -> None:
    one = _ragged(0, reduction, [7])
    for rank in in_two_processes(tmp_path, _ragged, reduction, [2, 5]):
        torch.testing.assert_close(rank, one, rtol=0, atol=1e-10)


def test_the_log_tells_how_many_tokens_are_the_student_s() -> None:
    batch = batch_of(TextTask())
    system = build(top_k=2)
    system.views(batch, NOW)
    accepted = system.figures()["accepted"]
    assert 0.05 < accepted < 0.95
    seen = system.views(batch, NOW)
    first = [text[0] for text in responses(seen)]
    own = build(text="student")
    drawn = [text[0] for text in responses(own.views(batch, NOW))]
    assert own.figures() == {}
    ranks = []
    for row, token in enumerate(drawn):
        logits = system.teacher.frozen(alone(seen, row)).logits[0]
        ranks.append(int((logits > logits[token]).sum()))
    one = build(top_k=2, writing=PLAIN | {"max_new_tokens": 1})
    one.views(batch, NOW)
    assert one.figures()["accepted"] == pytest.approx(mean([float(r < 2) for r in ranks]))
    assert all(a == b for a, b, r in zip(first, drawn, ranks, strict=True) if r < 2)
    for top_k, wanted in ((0, 0.0), (WORDS, 1.0)):
        system = build(top_k=top_k)
        system.views(batch, NOW)
        assert system.figures() == {"accepted": wanted}
    nobody = build(top_k=2, share=0.0)
    nobody.views(batch, NOW)
    assert nobody.figures() == {"accepted": 0.0}


def alone(batch: Batch, row: int) -> Batch:
    """A sample of a batch, by itself."""
    return {name: value[row : row + 1] for name, value in batch.items()}


def test_what_it_needs() -> None:
    needs = {
        text: (bool(system.needs_live_teacher()), bool(system.needs_whole_weights()))
        for text in ("skd", "student", "teacher", "data")
        for system in [build(text=text)]
    }
    assert needs == {
        "skd": (True, True), "student": (True, True),
        "teacher": (True, False), "data": (False, False),
    }  # fmt: skip
    assert build(text="data", term_weights={"task": 1.0, "kd": 0.0}).teacher is None
    assert isinstance(build(text="student").teacher, FrozenTeacher)
    system = build()
    assert not any(p is q for p in system.parameters() for q in system.teacher.network.parameters())
    assert not any(p.requires_grad for p in system.teacher.network.parameters())
    system.teacher.frozen.model.train()
    assert not system.teacher.network.training


def test_what_is_compiled_writes_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts grow, and each length would be compiled by itself."""
    stances: list[str] = []

    @contextmanager
    def stance(name: str) -> Iterator[None]:
        stances.append(name)
        yield
        stances.append("")

    def run(*arguments: Any, **named: Any) -> Any:
        assert stances == ["force_eager"]
        return system.student._call_impl(*arguments, **named)

    monkeypatch.setattr(torch.compiler, "set_stance", stance)
    system = build(top_k=2)
    batch = batch_of(system.task)
    wanted = responses(system.views(batch, NOW))
    assert stances == []
    system.student._compiled_call_impl = run
    assert responses(system.views(batch, NOW)) == wanted
    assert stances == ["force_eager", ""]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_half_precision(share: float) -> None:
    system = build(top_k=2, share=share, term_weights={"task": 0.1}).float()
    system.teacher.frozen.model.float()
    with torch.autocast("cpu", torch.bfloat16):
        total, terms, _ = system(batch_of(system.task), NOW)
    total.backward()
    assert total.dtype == terms["kd"].dtype == torch.float32
    whole = build(top_k=2, share=share, term_weights={"task": 0.1})
    assert total.item() == pytest.approx(whole(batch_of(whole.task), NOW)[0].item(), rel=0.1)


@pytest.mark.parametrize(
    ("given", "kind"),
    [("skew_kl", "SkewKLLoss"), ({"name": "total_variation"}, "TotalVariationLoss"),
     ({"beta": 1.0}, "GKDLoss"), (KDLoss(2.0), "KDLoss")],
)  # fmt: skip
def test_any_loss_of_tokens(given: Any, kind: str) -> None:
    system = build(text="data", reduction="token", loss=given)
    assert type(system.loss).__name__ == kind
    batch = batch_of(system.task)
    student, teacher = system.observe(batch), system.teacher(batch)
    plain = given if isinstance(given, nn.Module) else type(system.loss)()
    if given == {"beta": 1.0}:
        plain.beta = 1.0
    assert plain.reduction == "mean"
    torch.testing.assert_close(system(batch, NOW)[0], plain(student.logits, teacher.logits))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"text": "gkd"}, ValueError, "text must be one of 'skd', 'student', 'teacher', 'data'"),
        ({"reduction": "mean"}, ValueError, "reduction must be one of 'sequence', 'token'"),
        ({"share": 1.5}, RecipeError, "share must be finite, at least 0 and at most 1, not 1.5"),
        ({"share": {"end": -1.0}}, RecipeError, "share must be finite, at least 0 and at most 1"),
        ({"share": {"stat": 1.0}}, RecipeError, "The part 'share' takes no argument 'stat'; did"),
        ({"warm_up": -0.1}, RecipeError, "warm_up must be finite, at least 0 and at most 1"),
        ({"top_k": -1}, RecipeError, "top_k must be finite, at least 0, not -1"),
        ({"top_k": "25"}, RecipeError, "top_k must be a number, not '25'"),
        ({"top_k": True}, RecipeError, "top_k must be a number, not True"),
        ({"top_k": [1]}, RecipeError, r"top_k must be a number, not \[1\]"),
        ({"top_k": math.nan}, RecipeError, "top_k must be finite, at least 0, not nan"),
        ({"top_k": Schedule(start="1")}, RecipeError, "top_k must be a number, not '1'"),
        ({"share": "all"}, RecipeError, "share must be a number, not 'all'"),
        ({"share": math.nan}, RecipeError, "share must be finite"),
        ({"warm_up": "0.1"}, RecipeError, "warm_up must be a number"),
        ({"term_weights": {"kd": "1"}}, RecipeError, "The weight of 'kd' must be a number"),
        ({"term_weights": 2.0}, RecipeError, "term_weights must give terms their factors, not be"),
        ({"loss": 3}, RecipeError, "loss must be a loss, or its name and arguments, not 3"),
        ({"term_weights": {"ce": 1.0}}, RecipeError, "SKD has no term 'ce' to weigh; "),
        ({"term_weights": {"kd": -1.0}}, RecipeError, "The weight of 'kd' must be finite, at"),
        ({"term_weights": {"kd": math.inf}}, RecipeError, "The weight of 'kd' must be finite, a"),
        ({"term_weights": {"kd": 0.0}}, RecipeError, "All term_weights are 0, so nothing would be"),
        ({"loss": "sp"}, RecipeError, "There is no loss of token logits named 'sp'; "),
        ({"loss": SPLoss(reduction="sum")}, RecipeError, "must have the reduction 'mean' to begin"),
        ({"writing": {"block": 0}}, RecipeError, "block must be a number of tokens, at least 1, n"),
        ({"writing": {"block": {"end": -2}}}, RecipeError, "block must be finite, at least 0, n"),
        ({"writing": {"stop": "x"}}, RecipeError, "The argument .stop. of the part .writing. is"),
        ({"writing": {"stop": ["x"]}}, RecipeError, "the tiny vocabulary makes no tokens of text;"),
        ({"writing": {"stop": [[9]]}}, RecipeError, r"stop holds \[9\]; expected a string, or ids"),
        ({"writing": {"stop": [[]]}}, RecipeError, r"stop holds \[\]; expected .*, at least one."),
        ({"writing": {"max_new_tokens": 0}}, RecipeError, "max_new_tokens must be a number of tok"),
        ({"writing": {"coin": "epoch"}}, RecipeError, "'coin' of the part 'writing' is 'epoch'"),
        ({"writing": {"student_top_p": 0.0}}, ValueError, "top_p must be in"),
        ({"writing": {"teacher_temperature": -1.0}}, RecipeError, "teacher_temperature must be f"),
        ({"writing": {"top_k": 5}}, RecipeError, "The part 'writing' takes no argument 'top_k'"),
        ({"task": TinyTask()}, RecipeError,
         "learns from texts that answer prompts, and the batches of this task .TinyTask. hold ima"),
    ],
)  # fmt: skip
def test_bad_requests_are_told(options: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        build(**options)


def test_writing_is_checked_without_a_recipe_too() -> None:
    with pytest.raises(ValueError, match="coin must be one of 'sample', 'batch', not 'epoch'"):
        Writing(coin="epoch")  # type: ignore[arg-type]
    wrong: Any
    for wrong in ("hot", True, math.nan):
        with pytest.raises(RecipeError, match="student_temperature must be "):
            Writing(student_temperature=wrong)
        with pytest.raises(RecipeError, match="teacher_top_p must be "):
            Writing(teacher_top_p=wrong)
    for wrong in (True, 2.0):
        with pytest.raises(RecipeError, match=f"block must be .*, not {wrong}"):
            Writing(block=wrong)


def test_a_schedule_gives_the_length_of_drafts() -> None:
    def calls(block: Any, step: int) -> int:
        system = build(top_k=WORDS, writing=PLAIN | {"block": block})
        with counted(system.teacher.network) as seen:
            system.views(batch_of(system.task), Progress(step, 101, 0))
        return len(seen)

    rising = {"shape": "linear", "end": 3}
    for step, block in ((0, 1), (50, 2), (100, 3)):
        assert calls(rising, step) == calls(block, step)
    assert calls(1, 0) > calls(3, 0)


@pytest.mark.parametrize("block", [1, 2, 5, "adaptive"])
@pytest.mark.parametrize("text", ["skd", "student", "teacher"])
def test_a_stop_ends_a_text_wherever_a_block_ends(block: Any, text: Any) -> None:
    free = build(top_k=2, text=text, writing=PLAIN | {"block": block})
    batch = batch_of(free.task)
    whole = responses(free.views(batch, NOW))
    pairs = Counter(pair for words in whole for pair in itertools.pairwise(words))
    (first, second), _ = pairs.most_common(1)[0]
    as_text = TextTask()
    known = {"encode": lambda given: [int(word) for word in given]}
    as_text.vocabulary = dataclasses.replace(as_text.vocabulary, **known)
    for task, stop in ((TextTask(), [[first, second]]), (as_text, [f"{first}{second}"])):
        stopped = build(task, top_k=2, text=text, writing=PLAIN | {"block": block, "stop": stop})
        found = responses(stopped.views(batch, NOW))
        assert found == [_up_to(words, [first, second]) for words in whole]
    assert found != whole


def _up_to(words: list[int], stop: list[int]) -> list[int]:
    for end in range(len(stop), len(words) + 1):
        if words[end - len(stop) : end] == stop:
            return words[:end]
    return words


def test_batches_without_prompts_are_refused() -> None:
    class Bare(TextTask):
        def prepare(self, batch: Batch, *, train: bool, seed: int, epoch: int) -> Batch:
            whole = super().prepare(batch, train=train, seed=seed, epoch=epoch)
            return {name: value for name, value in whole.items() if name != "prompt"}

    with pytest.raises(
        RecipeError, match=r"this task \(Bare\) hold index, labels, length, mask, t"
    ):
        build(Bare())


def test_networks_of_other_tokens_are_refused() -> None:
    class Wide(TextTask):
        def call(self, model: nn.Module, batch: Batch) -> Tensor:
            logits = super().call(model, batch)
            return logits[:, :-1] if len(logits) and model.config.hidden_size > 16 else logits

    with pytest.raises(
        RecipeError, match=f"tells {WORDS} tokens apart and the teacher {WORDS - 1}"
    ):
        build(Wide())


def test_what_it_shows_of_itself() -> None:
    shown = repr(build(share=0.5, writing=Writing(block="adaptive")))
    assert shown.startswith(
        "SKD(\n  text='skd', share=0.5, warm_up=0.0, top_k=25, writing=Writing("
    )
    assert "(loss): GKDLoss(beta=0.0" in shown


def test_one_network_writes_what_generate_writes() -> None:
    system = build(text="student", writing=PLAIN | {"max_new_tokens": 2})
    batch = batch_of(system.task, 5)
    seen = system.views(batch, NOW)
    written = generate(
        system.student, batch["tokens"][:, : int(batch["prompt"].max())], batch["prompt"],
        index=batch["index"], seed=0, step=3, sampling=Sampling(), max_new_tokens=2,
        eos=system.task.vocabulary.eos, pad=system.task.vocabulary.pad,
    )  # fmt: skip
    assert [len(text) for text in responses(seen)] == written.length.tolist()
    assert max(written.length.tolist()) == 2
