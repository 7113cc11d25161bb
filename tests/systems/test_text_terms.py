"""Terms of other methods on texts: relations, logits, states of tokens; padding counts nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from congener.engine import FitConfig, fit, prepare
from congener.losses import (
    CSKDLoss,
    DISTLoss,
    EmbeddingMSELoss,
    FitNetsLoss,
    IUSPLoss,
    MarginMSELoss,
    PKTLoss,
    RKDLoss,
    ScoreKLLoss,
    SPLoss,
)
from congener.runlog import RunLog
from congener.system import System
from congener.systems import MHKD, Distillation
from congener.tasks.text_classification import TextClassification, data
from congener.types import Batch, Progress, Term

NOW = Progress(0, 1, 0)
COUNT = 48
CONFIG = FitConfig(steps=20, batch_size=12, lr=5e-3, log_every=1, threads=1, device="cpu")
LAYERS = {"student": "encoder.encoder.layer.0", "teacher": "encoder.encoder.layer.1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of four layers, as transformers keeps it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("encoder")
    BertModel(config).save_pretrained(path)
    return path


def texts() -> TextClassification:
    """Texts of 3 to 9 tokens; their class is that of most of their tokens."""
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(3, 10, (COUNT,), generator=generator)
    labels = torch.arange(COUNT) % 3
    tokens = torch.randint(5, 16, (COUNT, 9), generator=generator) + 8 * labels[:, None]
    tokens = tokens.masked_fill(torch.arange(9) >= length[:, None], 0)
    given = {"tokens": tokens, "length": length, "labels": labels}
    return TextClassification(
        data.tensors(**{f"{part}_{k}": v for part in ("train", "test") for k, v in given.items()})
    )


def networks(task: TextClassification, folder: Path) -> tuple[nn.Module, nn.Module]:
    """A cut of two layers, and the encoder."""
    torch.manual_seed(1)
    student, teacher = (
        task.build_model("pretrained", model=str(folder), layers=layers, dropout=0.0)
        for layers in ([0, 3], None)
    )
    for net in (student, teacher):
        for module in net.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return student, teacher


def batch_of(task: TextClassification, rows: slice = slice(12)) -> Batch:
    index = list(range(COUNT))[rows]
    raw = task.collate(task.part("train").__getitems__(index))
    return task.prepare(raw | {"index": torch.tensor(index)}, train=True, seed=0, epoch=0)


def more_padding(batch: Batch) -> Batch:
    """The same texts with three more columns of padding, which says something else."""
    wide = {
        key: torch.cat((batch[key], batch[key].new_zeros(len(batch["mask"]), 3)), 1)
        for key in ("tokens", "segments", "mask")
    }
    wide["tokens"] = wide["tokens"].masked_fill(~wide["mask"], 7)
    return batch | wide


STATES = {
    "sp": SPLoss(),
    "pkt": PKTLoss(),
    "rkd": RKDLoss(),
    "iusp": IUSPLoss(),
    "embedding_mse": EmbeddingMSELoss(),
    "fitnets": FitNetsLoss(),
    "fitnets, of two widths": FitNetsLoss((16,), (16,)),
}
TERMS: dict[str, Term] = {
    **{f"{k}, states": Term(v, 1.0, **LAYERS, name="term") for k, v in STATES.items()},
    "sp, pool": Term(SPLoss(), 100.0, "pool", "pool", name="term"),
    "embedding_mse, pool": Term(EmbeddingMSELoss(), 10.0, "pool", "pool", name="term"),
    "cskd": Term(CSKDLoss(), 1.0, name="term"),
    "dist": Term(DISTLoss(), 1.0, name="term"),
}


def build(folder: Path, term: Term) -> Distillation:
    task = texts()
    return Distillation(*networks(task, folder), [term], task=task)


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_padding_counts_nothing(folder: Path, term: Term) -> None:
    system = build(folder, term).eval()
    batch = batch_of(system.task)
    assert not batch["mask"].all()
    found, wanted = (system(each, NOW)[1]["term"] for each in (more_padding(batch), batch))
    assert wanted > 0
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=1e-6)


def steps(system: System, task: TextClassification, count: int = 25) -> list[dict[str, float]]:
    events: list[dict[str, Any]] = []
    config = CONFIG.model_copy(update={"steps": count})
    log = RunLog(None, (events.append,))
    fit(system, task, config, train=task.splits["train"], test=None, log=log)
    return [e["terms"] | {"total": e["total"]} for e in events if e["event"] == "step"]


@pytest.mark.parametrize("name", ["sp, pool", "cskd", "dist", "embedding_mse, states"])
def test_a_cut_encoder_learns_from_the_whole_one(folder: Path, name: str) -> None:
    system = build(folder, TERMS[name])
    system.task_weight = 0.0
    values = [each["term"] for each in steps(system, system.task)]
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


def features(system: Distillation, batch: Batch) -> tuple[Tensor, Tensor]:
    assert system.teacher is not None
    (mine,) = system.observe(batch).features.values()
    (theirs,) = system.teacher(batch).features.values()
    return mine, theirs


def test_states_of_tokens_are_compared_where_there_are_tokens(folder: Path) -> None:
    system = build(folder, TERMS["embedding_mse, states"]).eval()
    batch = batch_of(system.task)
    mine, theirs = features(system, batch)
    squares = [
        (mine[row, place] - theirs[row, place]).square().mean()
        for row, length in enumerate(batch["length"].tolist())
        for place in range(length)
    ]
    torch.testing.assert_close(system(batch, NOW)[1]["term"], torch.stack(squares).mean())


def test_similarities_of_texts_are_of_their_tokens(folder: Path) -> None:
    system = build(folder, TERMS["sp, states"]).eval()
    batch = batch_of(system.task)
    mine, theirs = (
        torch.stack([
            torch.stack([
                sum((one[k] @ other[k] for k in range(min(n, m))), torch.zeros(()))
                for other, m in zip(states, batch["length"].tolist(), strict=True)
            ])
            for one, n in zip(states, batch["length"].tolist(), strict=True)
        ])
        for states in features(system, batch)
    )  # fmt: skip
    rows = nn.functional.normalize(mine) - nn.functional.normalize(theirs)
    torch.testing.assert_close(
        system(batch, NOW)[1]["term"], rows.square().mean(), rtol=1e-4, atol=1e-7
    )


def _terms_here(rank: int, folder: Path, rows: dict[int, slice]) -> dict[str, float]:
    from accelerate import Accelerator

    Accelerator(cpu=True)  # joins the processes, if there are two
    found = {}
    for name in ("embedding_mse, states", "sp, states", "iusp, states"):
        system = build(folder, TERMS[name]).eval()
        found[name] = system(batch_of(system.task, rows[rank]), NOW)[1]["term"].item()
    return found


def test_two_processes_are_one(folder: Path, tmp_path: Path) -> None:
    """Each crops its texts to its own longest."""
    one = _terms_here(2, folder, {2: slice(12)})
    both = in_two_processes(tmp_path, _terms_here, folder, {0: slice(7), 1: slice(7, 12)})
    task = texts()
    widths = {len(batch_of(task, rows)["mask"][0]) for rows in (slice(7), slice(7, 12))}
    assert len(widths) == 2
    for each in both:
        assert each == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("regime", ["joint", "two-step"])
def test_heads_on_states(folder: Path, regime: Any) -> None:
    task = texts()
    taps = [[path, "pool"] for path in LAYERS.values()]
    system = MHKD(
        *networks(task, folder), task=task, student_taps=taps[0], teacher_taps=taps[1], width=8,
        regime=regime,
    )  # fmt: skip
    prepare(system, task, CONFIG)
    batch = batch_of(task)
    system.eval()
    found, wanted = (system(each, NOW)[1] for each in (more_padding(batch), batch))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=1e-6)
    values = [each["heads"] for each in steps(system, task, 40)]
    assert sum(values[-5:]) < 0.9 * sum(values[:5])


# Embeddings of sentences: a cut encoder against the whole one


def scores(states: Tensor) -> Tensor:
    """Of texts in threes, the cosines of the first with the others, (batch / 3, 2)."""
    first, second, third = nn.functional.normalize(states, dim=1).chunk(3)
    return torch.stack(((first * second).sum(1), (first * third).sum(1)), 1)


SENTENCES = {
    "embedding_mse": EmbeddingMSELoss(),
    "sp": SPLoss(),
    "margin_mse": lambda mine, theirs: MarginMSELoss()(scores(mine), scores(theirs)),
    "score_kl": lambda mine, theirs: ScoreKLLoss(temperature=0.1)(scores(mine), scores(theirs)),
}


def own_loop(folder: Path, loss: Any) -> list[float]:
    """Anyone's training loop: encode, compare, step."""
    task = texts()
    student, teacher = networks(task, folder)
    states: dict[nn.Module, Tensor] = {}
    for net in (student, teacher):
        net.get_submodule("pool").register_forward_hook(
            lambda pool, _given, said: states.update({pool: said})
        )
    optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)
    values = []
    for step in range(24):
        batch = batch_of(task, slice(12 * (step % 4), 12 * (step % 4) + 12))
        with torch.no_grad():
            task.call(teacher.eval(), batch)
        task.call(student.train(), batch)
        value = loss(*(states[net.get_submodule("pool")] for net in (student, teacher)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@pytest.mark.parametrize("loss", SENTENCES.values(), ids=SENTENCES)
def test_embeddings_of_sentences_by_anyones_loop(folder: Path, loss: Any) -> None:
    values = own_loop(folder, loss)
    assert sum(values[-4:]) < 0.6 * sum(values[:4])
