"""What a teacher said about the tokens of texts comes back, for the same texts alone."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.teachers.texts import (
    SAMPLES,
    WORDS,
    Reader,
    TextTask,
    read_batch,
    reader,
    text_store,
)

from congener.engine import FitConfig, fields_of, longest_answer
from congener.errors import DataError, RecipeError, StaleCache
from congener.teachers import CachedTeacher, FrozenTeacher, TeacherStore
from congener.teachers.rows import taken
from congener.teachers.witness import witness
from congener.types import Batch


@pytest.fixture
def task() -> TextTask:
    return TextTask()


def some(task: TextTask, places: torch.Tensor) -> Batch:
    """A batch of these texts, padded to its own longest."""
    whole = taken(task.splits["train"].columns | {"index": torch.arange(SAMPLES)}, places)
    return task.prepare(whole, train=True, seed=0, epoch=0) | {"view": 0}


def test_is_what_the_live_teacher_says_however_the_batch_is_padded(task, tmp_path) -> None:
    teacher = FrozenTeacher(reader(), task)
    store = text_store(tmp_path, task, teacher)
    assert str(store.fields["logits"]) == f"float32 [{WORDS}] of up to 5 tokens kept as fp32"
    assert len(store.shards) > 2
    cached = CachedTeacher(store, [], task=task)
    generator = torch.Generator().manual_seed(0)
    for rows in (SAMPLES, 17, 3, 1):
        batch = some(task, torch.randperm(SAMPLES, generator=generator)[:rows])
        found, wanted = cached(batch).logits, teacher(batch).logits
        assert found.shape == wanted.shape == (int(task.token_mask(batch).sum()), WORDS)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached(some(task, torch.tensor([7, 7, 1]))).logits[-5:],
                               teacher(some(task, torch.tensor([1]))).logits)  # fmt: skip
    assert cached(some(task, torch.tensor([0, 5]))).logits.shape == (0, WORDS)  # no answers


@pytest.mark.parametrize(("options", "tolerance"), [
    ({"dtype": "fp16"}, 1e-3), ({"dtype": "bf16"}, 1e-2), ({"top_k": 20}, 1e-4),
    ({"dtype": "fp16", "top_k": 20}, 1e-3),
])  # fmt: skip
def test_every_format(task, tmp_path, options, tolerance) -> None:
    teacher = FrozenTeacher(reader(), task)
    cached = CachedTeacher(text_store(tmp_path, task, teacher, **options), [], live=teacher)
    batch = read_batch(task)
    found, wanted = cached(batch).logits.softmax(-1), teacher(batch).logits.softmax(-1)
    top = wanted.topk(20).indices
    found, wanted = found.gather(-1, top), wanted.gather(-1, top)
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


def test_a_teacher_that_answers_in_bfloat16(task, tmp_path) -> None:
    teacher = FrozenTeacher(reader(), task)
    config = FitConfig(epochs=1, batch_size=12, device="cpu", precision="bf16")
    for number, options in enumerate(({"dtype": "bf16"}, {"sampled": 5}, {"top_k": 5})):
        store = text_store(tmp_path / str(number), task, teacher, config, **options)
        assert store.fields["logits"].returns == "bfloat16"
        batch = read_batch(task)
        with torch.autocast("cpu", torch.bfloat16):
            found = CachedTeacher(store, [], live=teacher)(batch).logits
            said = teacher(batch).logits
        assert found.dtype == (torch.float32 if "sampled" in options else torch.bfloat16)
        if number == 0:
            assert store.fields["logits"].exact
            torch.testing.assert_close(found, said, rtol=0.02, atol=0.05)


def test_a_killed_build_goes_on(task, tmp_path) -> None:
    """A process that dies in the middle leaves whole files; what it lacks is asked then."""
    teacher = FrozenTeacher(reader(), task)
    whole = text_store(tmp_path / "whole", task, teacher, top_k=9)
    child = os.fork()
    if not child:  # pragma: no cover
        asked: list[int] = []

        def die(*_: object) -> None:
            asked.append(1)
            if len(asked) == 5:  # two looks at what is kept, then three shards
                os.kill(os.getpid(), signal.SIGKILL)

        teacher.model.register_forward_hook(die)
        text_store(tmp_path / "killed", task, teacher, top_k=9)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    left = TeacherStore.open(tmp_path / "killed")
    assert 0 < len(left.missing()) < len(left.shards)
    store = text_store(tmp_path / "killed", task, teacher, top_k=9)
    assert store.verify() == []
    batch = read_batch(task)
    found, wanted = (CachedTeacher(each, [], task=task)(batch) for each in (store, whole))
    assert torch.equal(found.logits, wanted.logits)


def test_what_the_teacher_excludes_stays_excluded(task, tmp_path) -> None:
    network = reader()
    with torch.no_grad():
        network.head.bias[7:12] = -torch.inf
    teacher = FrozenTeacher(network, task)
    batch = read_batch(task)
    for number, options in enumerate(({}, {"dtype": "fp16"}, {"sampled": 8})):
        store = text_store(tmp_path / str(number), task, teacher, **options)
        found = CachedTeacher(store, [], live=teacher)(batch).logits
        assert (found[:, 7:12] == -torch.inf).all()
        assert found.amax(-1).isfinite().all()


def test_a_teacher_that_says_nothing_is_refused(task, tmp_path) -> None:
    network = reader()
    store_of = FrozenTeacher(network, task)
    text_store(tmp_path / "sound", task, store_of)
    network.head.register_forward_hook(
        lambda module, args, out: out.masked_fill((args[0][..., :1] > 0.5), -torch.inf)
    )
    with pytest.raises(DataError, match=r"logits of sample \d+ in view 0 are not finite"):
        text_store(tmp_path / "silent", task, store_of)


CHANGES = {
    "one token": lambda b: b["tokens"].__setitem__((1, 1), 49),
    "a token behind another": lambda b: b["tokens"].__setitem__(
        (1, slice(0, 2)), b["tokens"][1, :2].flip(0)
    ),
    "a longer answer": lambda b: b["labels"].__setitem__((1, 1), b["tokens"][1, 1]),
    "one token less": lambda b: b["mask"].__setitem__((1, int(b["length"][1]) - 1), False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_text_is_refused(task, tmp_path, change) -> None:
    cached = CachedTeacher(text_store(tmp_path, task, FrozenTeacher(reader(), task)), [], task=task)
    batch = {name: v.clone() if torch.is_tensor(v) else v for name, v in read_batch(task).items()}
    cached(batch)
    CHANGES[change](batch)
    with pytest.raises(StaleCache, match=r"read another text as sample 1 .* 1 of its 40 samples: "):
        cached(batch)


def test_the_texts_of_another_tokenizer_are_refused(task, tmp_path) -> None:
    cached = CachedTeacher(text_store(tmp_path, task, FrozenTeacher(reader(), task)), [], task=task)
    batch = read_batch(task)
    other = (batch["tokens"] + 1) % WORDS
    with pytest.raises(StaleCache, match="and so 40 of its 40 samples: the tokenizer, its settin"):
        cached(batch | {"tokens": other})
    with pytest.raises(StaleCache, match="another text"):
        cached(batch | {"index": batch["index"].roll(1)})


def test_padding_is_not_read(task) -> None:
    batch = read_batch(task)
    answered = task.token_mask(batch)
    padded = {name: torch.nn.functional.pad(batch[name], (0, 3), value=value)
              for name, value in (("tokens", 17), ("mask", False), ("labels", -100))}  # fmt: skip
    wider = batch | padded
    found = witness(batch, answered)
    assert torch.equal(witness(wider, task.token_mask(wider)), found)
    assert found.shape == (SAMPLES, 2)
    assert len({tuple(row) for row in found.tolist()}) == SAMPLES
    assert 0 <= float(found.min()) < float(found.max()) < 2**24
    assert torch.equal(found, found.round())
    with pytest.raises(RecipeError, match="batches have `tokens` and `mask`"):
        witness({k: v for k, v in batch.items() if k != "mask"}, answered)


def test_nothing_is_read_without_a_task(task, tmp_path) -> None:
    store = text_store(tmp_path, task, FrozenTeacher(reader(), task))
    with pytest.raises(RecipeError, match="give CachedTeacher its `task`"):
        CachedTeacher(store, [])


def test_a_teacher_that_changed_is_noticed(task, tmp_path) -> None:
    for number, options in enumerate(({}, {"top_k": 9}, {"top_k": 9, "sampled": 30})):
        store = text_store(tmp_path / str(number), task, FrozenTeacher(reader(), task), **options)
        CachedTeacher(store, [], live=FrozenTeacher(reader(), task))(read_batch(task))
        with pytest.raises(StaleCache, match="does not say what it said"):
            CachedTeacher(store, [], live=FrozenTeacher(reader(1), task))(read_batch(task))


def test_draws_follow_the_sample_and_its_view(task, tmp_path) -> None:
    teacher = FrozenTeacher(reader(), task)
    store = text_store(tmp_path, task, teacher, sampled=6)
    batch, field = read_batch(task), store.fields["logits"]
    draws = field.draws(batch["index"], 0, task.token_mask(batch).sum(1))
    wanted = field.decode(field.encode(teacher(batch).logits, draws)).softmax(-1)
    for view in (0, 5):  # the store has one view
        found = CachedTeacher(store, [], live=teacher)(batch | {"view": view}).logits.softmax(-1)
        assert float((found - wanted).norm() / wanted.norm()) < 0.05


def test_a_word_that_is_drawn_by_a_hair_is_no_other_teacher(task, tmp_path) -> None:
    store = text_store(tmp_path, task, FrozenTeacher(reader(), task), sampled=60)
    network = reader()
    with torch.no_grad():
        network.head.weight.mul_(1.001)
    cached = CachedTeacher(store, [], live=FrozenTeacher(network, task))
    said = cached(read_batch(task)).logits
    field, batch = store.fields["logits"], read_batch(task)
    draws = field.draws(batch["index"], 0, task.token_mask(batch).sum(1))
    now = field.decode(field.encode(FrozenTeacher(network, task)(batch).logits, draws))
    assert not torch.equal(now.isfinite(), said.isfinite())


def test_the_live_teacher_waits_for_texts_with_answers(task, tmp_path) -> None:
    store = text_store(tmp_path, task, FrozenTeacher(reader(), task))
    cached = CachedTeacher(store, [], live=FrozenTeacher(reader(1), task))
    cached(some(task, torch.tensor([0, 5])))
    with pytest.raises(StaleCache, match="does not say what it said"):
        cached(some(task, torch.tensor([0, 1])))


def test_what_no_answer_has_takes_no_space(tmp_path) -> None:
    task = TextTask(1500, unanswered=1)
    store = text_store(tmp_path, task, FrozenTeacher(reader(), task), shard_bytes=2**19)
    assert len(store.shards) == 3
    on_disk = sum(512 * path.stat().st_blocks for path in tmp_path.rglob("*.safetensors"))
    assert on_disk < 0.1 * store.nbytes
    assert store.verify() == []


def fields(task: TextTask, network: Reader, *taps: str, batch: Batch | None = None):
    return fields_of(FrozenTeacher(network, task, taps), batch or read_batch(task), places=5)


def test_what_cannot_be_kept_of_texts(task) -> None:
    assert [f.places for f in fields(task, reader())] == [5]
    with pytest.raises(
        RecipeError, match=r"teacher's body of 40 samples are .*, not numbers for e"
    ):
        fields(task, reader(), "body")
    with pytest.raises(RecipeError, match="depend on the rest of its batch"):
        fields(task, reader(bidirectional=True))  # which reads the padding
    with pytest.raises(RecipeError, match="No text has an answer"):
        fields(task, reader(), batch=some(task, torch.tensor([0, 5])))
    with pytest.raises(RecipeError, match="batches have `tokens` and `mask`"):
        fields(task, reader(), batch={k: v for k, v in read_batch(task).items() if k != "mask"})


def test_texts_longer_than_they_were_are_refused(task, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tests.teachers.texts.longest_answer", lambda *args, **options: 3)
    with pytest.raises(DataError, match="of at most 3 for each sample; do the data draw random"):
        text_store(Path(tmp_path), task, FrozenTeacher(reader(), task))


def test_the_longest_answer(task, monkeypatch) -> None:
    from tests.systems.tiny import TinyTask
    from tests.teachers.texts import CONFIG

    assert longest_answer(task, task.splits["train"], CONFIG, seed=0) == 5
    monkeypatch.setattr("congener.engine.answers.LOOKED_AT", 1)
    assert longest_answer(task, task.splits["train"], CONFIG, seed=0) == 5
    assert longest_answer(TinyTask(), TinyTask().splits["train"], CONFIG, seed=0) is None
