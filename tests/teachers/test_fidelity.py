"""What top-k loses is measured, and what is drawn has no bias."""

import math

import pytest
import torch
from tests.teachers.texts import CONFIG, TextTask, read_batch, reader, text_store
from torch import Tensor

from congener.engine import build_store
from congener.errors import RecipeError
from congener.losses import KDLoss, gkd_loss
from congener.runlog import RunLog
from congener.teachers import CachedTeacher, Fidelity, Field, FrozenTeacher, fidelity
from congener.teachers.rows import LEAST

ROWS, WORDS = 6, 40


def logits_of(seed: int = 0, rows: int = ROWS) -> Tensor:
    return 2 * torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed))


def gradient(student: Tensor, teacher: Tensor, temperature: float, beta: float = 0.0) -> Tensor:
    student = student.double().requires_grad_()
    loss = gkd_loss(student, teacher.double(), beta=beta, temperature=temperature, reduction="sum")
    return torch.autograd.grad(loss, student)[0]


def average(field: Field, keys: int, beta: float = 0.0) -> Tensor:
    """The gradient by what is drawn, on average over many keys."""
    teacher, student = logits_of(), logits_of(1)
    mean = torch.zeros(ROWS, WORDS, dtype=torch.float64)
    for view in range(keys):
        kept = field.decode(field.encode(teacher, field.draws(torch.arange(ROWS), view)))
        mean += gradient(student, kept, field.temperature, beta) / keys
    return mean


def off(field: Field, keys: int) -> Tensor:
    """How far the average is from the dense gradient, in standard errors.

    Of m draws from the words beyond the top k a word has m p rounded down or up.
    """
    teacher = logits_of()
    law = (teacher.double() / field.temperature).softmax(-1)
    drawn = torch.ones_like(law).scatter(-1, teacher.topk(field.top_k or 0).indices, 0)
    beyond = (law * drawn).sum(-1, keepdim=True)
    odds = field.sampled * law * drawn / beyond
    deviation = beyond * ((odds % 1) * (1 - odds % 1) / keys).sqrt()
    deviation = deviation / field.sampled / field.temperature
    away = average(field, keys) - gradient(logits_of(1), teacher, field.temperature)
    often = (keys * (odds % 1) > 20) & (keys * (1 - odds % 1) > 20)
    assert often.sum() > 60
    assert float(away[drawn == 0].abs().sum()) < 1e-5
    return (away / deviation)[often]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 10])
def test_what_is_drawn_has_no_bias(top_k, temperature) -> None:
    away = off(Field("logits", (WORDS,), "float32", "fp32", top_k, temperature, sampled=7), 400)
    assert float(away.abs().max()) < 4.5
    assert 0.5 < float(away.square().mean()) < 1.5


def test_what_is_shared_evenly_has_a_bias_and_draws_have_one_for_another_divergence() -> None:
    even = Field("logits", (WORDS,), "float32", "fp32", 10)
    drawn = Field("logits", (WORDS,), "float32", "fp32", 10, sampled=7)
    teacher, student = logits_of(), logits_of(1)

    def bias(field: Field, beta: float, keys: int) -> float:
        dense = gradient(student, teacher, 1.0, beta)
        return float((average(field, keys, beta) - dense).norm() / dense.norm())

    assert bias(even, 0.0, 1) > 0.05
    assert bias(drawn, 0.0, 400) < 0.008
    assert bias(drawn, 0.5, 400) > 0.05


def test_what_is_drawn_is_a_function_of_sample_view_and_place() -> None:
    field = Field("logits", (WORDS,), "float32", "fp32", 2, places=4, sampled=5)
    ids, counts = torch.tensor([3, 8, 11]), torch.tensor([2, 0, 4])
    draws = field.draws(ids, 0, counts)
    assert draws.shape == (6,)
    alone = [field.draws(ids[k : k + 1], 0, counts[k : k + 1]) for k in range(3)]
    assert torch.equal(draws, torch.cat(alone))
    assert len(set(draws.tolist())) == 6
    assert not torch.equal(draws, field.draws(ids, 1, counts))
    assert torch.equal(field.draws(ids, 0, torch.tensor([1, 0, 0])), draws[:1])
    assert Field("logits", (WORDS,), "float32", places=4).draws(ids, 0, counts) is None


def test_each_word_is_drawn_as_often_as_it_may_be() -> None:
    """Of 7 draws, a word has its 7 p rounded down or up."""
    field = Field("logits", (WORDS,), "float32", "fp32", sampled=7)
    teacher = logits_of()
    kept = field.decode(field.encode(teacher, torch.rand(ROWS)))
    counts, expected = 7 * kept.softmax(-1), 7 * teacher.softmax(-1)
    torch.testing.assert_close(counts, counts.round(), atol=1e-4, rtol=0)
    assert ((counts - expected).abs() < 1 + 1e-4).all()
    assert kept.dtype == torch.float32


def test_certain_teachers_and_extreme_numbers() -> None:
    teacher = torch.full((3, WORDS), -200.0)
    teacher[:, 5] = 0
    field = Field("logits", (WORDS,), "float32", "fp16", sampled=4)
    for draws in (0.0, 1 - 2.0**-24):
        kept = field.decode(field.encode(teacher, torch.full((3,), draws)))
        assert torch.equal(kept.softmax(-1).argmax(-1), torch.full((3,), 5))
        assert torch.equal(kept.isfinite().sum(-1), torch.ones(3, dtype=torch.int64))
    kept = Field("logits", (WORDS,), "float32", "fp32", 1, sampled=4)
    found = kept.decode(kept.encode(teacher, torch.full((3,), 0.5))).softmax(-1)
    torch.testing.assert_close(found[:, 5], torch.ones(3))


def test_rows_are_packed_alike_some_at_a_time(monkeypatch) -> None:
    field = Field("logits", (WORDS,), "float32", "fp16", 6, sampled=4)
    teacher, draws = logits_of(rows=50), torch.rand(50)
    whole = field.encode(teacher, draws)
    monkeypatch.setattr("congener.teachers.formats.PIECE", 3 * WORDS)
    pieces = field.encode(teacher, draws)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert field.encode(teacher[:0], draws[:0])["logits"].shape == (0, 8)


def test_the_largest_logits_stay_and_the_others_keep_their_weight() -> None:
    field = Field("logits", (WORDS,), "float32", "fp32", 10, 2.0, sampled=1000)
    teacher = logits_of()
    kept = field.decode(field.encode(teacher, torch.rand(ROWS)))
    top = teacher.topk(10).indices
    torch.testing.assert_close(kept.gather(-1, top), teacher.gather(-1, top))
    mine, true = ((x / 2).softmax(-1) for x in (kept, teacher))
    torch.testing.assert_close(mine, true, atol=1e-3, rtol=0)
    torch.testing.assert_close(mine.gather(-1, top), true.gather(-1, top))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_figures_are_those_of_the_definition(temperature) -> None:
    teacher, k = logits_of(), 10
    field = Field("logits", (WORDS,), "float32", "fp32", k, temperature)
    found = fidelity(field, teacher)
    tails, gaps, errors, cuts, norms = [], [], [], [], []
    for row in (teacher.double() / temperature).softmax(-1).tolist():
        order = sorted(row, reverse=True)
        rest = sum(order[k:])
        even = rest / (WORDS - k)
        tails.append(rest)
        gaps.append(sum(p * math.log(p / even) for p in order[k:]))
        errors.append(sum((p - even) ** 2 for p in order[k:]))
        cuts.append(
            sum((p / (1 - rest) - p) ** 2 for p in order[:k]) + sum(p * p for p in order[k:])
        )
        norms.append(sum(p * p for p in order))
    assert found.rows == ROWS
    assert found.tail == pytest.approx(sum(tails) / ROWS, rel=1e-5)
    assert found.lost == pytest.approx(sum(gaps) / ROWS, rel=1e-4)
    assert found.gradient == pytest.approx(math.sqrt(sum(errors) / sum(norms)), rel=1e-4)
    assert found.renormalised == pytest.approx(math.sqrt(sum(cuts) / sum(norms)), rel=1e-4)
    assert found.gradient < found.renormalised


def test_the_lower_bound_is_short_by_what_is_lost() -> None:
    """For a student who has the words beyond the top k alike."""
    teacher, k = logits_of(), 10
    field = Field("logits", (WORDS,), "float32", "fp32", k)
    student = torch.zeros_like(teacher).scatter(-1, teacher.topk(k).indices, logits_of(1)[:, :k])
    kept = field.decode(field.encode(teacher))
    whole, less = (KDLoss(1.0)(student, given) for given in (teacher, kept))
    assert float(whole - less) == pytest.approx(fidelity(field, teacher).lost, rel=1e-4)


def test_a_rounded_format_and_a_drawn_one() -> None:
    teacher = logits_of()
    rounded = fidelity(Field("logits", (WORDS,), "float32", "bf16"), teacher)
    assert (rounded.tail, 0 < rounded.gradient < 1e-2) == (0.0, True)
    field = Field("logits", (WORDS,), "float32", "fp32", sampled=9)
    assert fidelity(field, teacher, torch.rand(ROWS)).gradient > rounded.gradient


def test_a_store_tells_what_it_loses(tmp_path) -> None:
    task = TextTask()
    teacher = FrozenTeacher(reader(sharpness=2.0), task)
    store = text_store(tmp_path / "top", task, teacher, top_k=10, shard_bytes=10**6)
    found = Fidelity.read(store.folder)
    dense = teacher(read_batch(task)).logits
    first = int(task.token_mask(read_batch(task))[:LEAST].sum())
    wanted = fidelity(store.fields["logits"], dense[:first])
    assert found.rows == wanted.rows
    assert found.tail == pytest.approx(wanted.tail, rel=1e-4)
    words = found.words(store.fields["logits"])
    assert words.startswith(f"{100 * found.tail:.2g} % of the probability lies beyond the top 10, ")
    assert "KL is a lower bound" in words
    (store.folder / "fidelity.json").write_text("{")
    assert Fidelity.read(store.folder) is None
    assert store.verify() == []

    events: list[dict[str, object]] = []
    store.path(store.shards[0]).unlink()
    log = RunLog(None, (events.append,))
    build_store(store, teacher, task, task.splits["train"], CONFIG, seed=0, log=log)
    (event,) = [event for event in events if event["event"] == "cache_fidelity"]
    assert event["line"] == Fidelity.read(store.folder).words(store.fields["logits"])
    exact = text_store(tmp_path / "exact", task, teacher)
    assert Fidelity.read(exact.folder) is None


def test_words_for_each_kind() -> None:
    found = Fidelity(256, 0.03, 0.02, 0.05, 0.2)
    field = Field("logits", (WORDS,), "float32", "fp16")
    assert found.words(field) == "KD's gradient is off by 5 % (measured on 256 rows)"
    field = Field("logits", (WORDS,), "float32", "fp16", 4)
    assert found.words(field) == (
        "3 % of the probability lies beyond the top 4, shared evenly: KD's gradient is off by 5 % "
        "(were the top 4 made to sum to 1, by 20 %), and KL is a lower bound, 0.02 nats short for "
        "a student who has the others alike (measured on 256 rows)"
    )
    field = Field("logits", (WORDS,), "float32", "fp16", 4, sampled=8)
    assert found.words(field) == (
        "3 % of the probability lies beyond the top 4; KD's gradient has no bias, and a row's "
        "noise is 5 % (measured on 256 rows)"
    )
    assert str(field) == "float32 [40] kept as fp16, top 4 and 8 drawn of the rest at 1"


@pytest.mark.parametrize(("name", "shape", "count"), [
    ("layer1", (8,), 2), ("logits", (8,), 0), ("logits", (2, 8), 3), ("logits", (), 3),
])  # fmt: skip
def test_a_choice_of_no_use_is_refused(name, shape, count) -> None:
    with pytest.raises(RecipeError, match="sampled draws one token or more from a row of logits"):
        Field(name, shape, "float32", sampled=count)


def test_a_student_learns_from_draws_through_the_store(tmp_path) -> None:
    task = TextTask()
    teacher = FrozenTeacher(reader(), task)
    store = text_store(tmp_path, task, teacher, sampled=64)
    batch = read_batch(task)
    found, wanted = CachedTeacher(store, [], live=teacher)(batch).logits, teacher(batch).logits
    share = (found.softmax(-1) - wanted.softmax(-1)).norm() / wanted.softmax(-1).norm()
    assert float(share) < 0.1
    student = reader(3)(batch["tokens"])[task.token_mask(batch)]
    loss = KDLoss(1.0)(student, found)
    assert loss.isfinite()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "bytes_each", "gradient", "renormalised", "lost"), [
    ({}, 64_002, 0.00011, None, 0.0), ({"top_k": 64}, 260, 0.017, 0.18, 0.45),
    ({"top_k": 32}, 132, 0.029, 0.24, 0.68), ({"top_k": 32, "sampled": 32}, 196, 0.10, 0.24, None),
    ({"sampled": 64}, 132, 0.16, None, None),
])  # fmt: skip
def test_the_table_of_the_guide(options, bytes_each, gradient, renormalised, lost) -> None:
    words, rows = 32_000, 32
    noise = torch.randn(rows, words, generator=torch.Generator().manual_seed(0))
    teacher = noise - 1.3 * torch.arange(1.0, words + 1).log()
    field = Field("logits", (words,), "float32", "fp16", **options)
    found = fidelity(field, teacher, field.draws(torch.arange(rows), 0))
    assert field.nbytes == bytes_each
    assert found.gradient == pytest.approx(gradient, rel=0.06)
    if renormalised:
        assert found.renormalised == pytest.approx(renormalised, rel=0.06)
    if lost is not None:
        assert found.lost == pytest.approx(lost, rel=0.06, abs=1e-4)
    if "sampled" not in options and renormalised:
        assert found.gradient <= 0.25 * found.renormalised
