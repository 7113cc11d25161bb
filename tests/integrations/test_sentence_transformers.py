"""Losses in the shape that sentence-transformers' trainer calls: its numbers are ours."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses as theirs
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import pairwise_cos_sim
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

from congener.errors import DataError, RecipeError
from congener.integrations.sentence_transformers import (
    EmbeddingDistillation,
    cut_layers,
    teacher_labels,
)
from congener.losses import (
    CompRessLoss,
    DKDLoss,
    EmbeddingMSELoss,
    MarginMSELoss,
    ScoreKLLoss,
    SPLoss,
)
from congener.tasks.encoder_layers import keep_layers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *"abcdefgh"]
FIRST = ["a b c", "d e", "f g h a", "b"]
SECOND = ["a c", "e e d", "g h", "b b b a"]
THIRD = ["h", "a a", "c d e", "f"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


def encoder(folder: Path, width: int, *, layers: int = 4, words: Sequence[str] = WORDS) -> Any:
    """A model for sentences whose weights are drawn from its width."""
    path = folder / f"{width}-{layers}-{len(words)}"
    if not path.exists():
        path.mkdir(parents=True)
        (path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path)
        torch.manual_seed(width)
        config = BertConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=layers, num_attention_heads=2, max_position_embeddings=32,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3,
        )  # fmt: skip
        BertModel(config).save_pretrained(path)
    return SentenceTransformer(modules=[Transformer(str(path)), Pooling(width, "mean")]).double()


def tokens(model: Any, *columns: list[str]) -> list[dict[str, Tensor]]:
    return [dict(model.preprocess(column)) for column in columns]


def embedded(model: Any, column: list[str]) -> Tensor:
    embeddings: Tensor = model(dict(model.preprocess(column)))["sentence_embedding"]
    return embeddings


def close(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", [SPLoss(), CompRessLoss(0.5)])
def test_columns_are_laid_under_each_other(folder: Path, loss: nn.Module) -> None:
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 12)
    mine = EmbeddingDistillation(student, loss, teacher=teacher)
    value = mine(tokens(student, FIRST, SECOND), None)
    value.backward()
    both = [torch.cat([embedded(m, FIRST), embedded(m, SECOND)]) for m in (student, teacher)]
    close(value, loss(student_feature=both[0], teacher_feature=both[1].detach()))
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in student.parameters())


def test_scores_are_those_of_the_first_column(folder: Path) -> None:
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 12)
    for loss, similarity in ((ScoreKLLoss(), None), (MarginMSELoss(), pairwise_cos_sim)):
        options: Any = {} if similarity is None else {"similarity": similarity}
        mine = EmbeddingDistillation(student, loss, teacher=teacher, **options)
        value = mine(tokens(student, FIRST, SECOND, THIRD), torch.tensor(float("nan")))
        scores = []
        for model in (student, teacher):
            query, one, other = (embedded(model, column) for column in (FIRST, SECOND, THIRD))
            if similarity is None:
                pairs = [(query * one).sum(1), (query * other).sum(1)]
            else:
                pairs = [torch.cosine_similarity(query, x) for x in (one, other)]
            scores.append(torch.stack(pairs, 1))
        close(value, loss(student_logits=scores[0], teacher_logits=scores[1]))


def test_labels_stand_for_the_teacher(folder: Path) -> None:
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 8)
    rows = {"one": FIRST, "two": SECOND, "three": THIRD}
    for loss, columns, scores in (
        (EmbeddingMSELoss(), ["one"], False),
        (SPLoss(), ["one", "two"], False),
        (ScoreKLLoss(), ["one", "two", "three"], True),
    ):
        given = tokens(student, *(rows[name] for name in columns))
        label = teacher_labels(teacher, columns, scores=scores)(rows)["label"]
        told = EmbeddingDistillation(student, loss)(given, torch.tensor(label).double())
        live = EmbeddingDistillation(student, loss, teacher=teacher)(given, None)
        close(told, live, 1e-5)  # encode() rounds to float32


def test_it_is_the_trainers_own_loss_where_that_has_it(folder: Path) -> None:
    student = encoder(folder, 8, layers=2)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(4, 8, generator=generator, dtype=torch.float64)
    mine = EmbeddingDistillation(student, EmbeddingMSELoss())
    close(mine(tokens(student, FIRST), wide), theirs.MSELoss(student)(tokens(student, FIRST), wide))
    both = tokens(student, FIRST, SECOND)
    close(mine(both, wide), theirs.MSELoss(student)(tokens(student, FIRST, SECOND), wide))
    each = torch.stack([wide, wide.flip(0)], 1)
    close(
        mine(tokens(student, FIRST, SECOND), each),
        theirs.MSELoss(student)(tokens(student, FIRST, SECOND), each),
    )
    three = (FIRST, SECOND, THIRD)
    margin, other = EmbeddingDistillation(student, MarginMSELoss()), theirs.MarginMSELoss(student)
    for labels in (wide[:, :2], wide[:, :1], wide[:, 0]):
        close(margin(tokens(student, *three), labels), other(tokens(student, *three), labels))


def arguments(folder: Path, **changes: Any) -> SentenceTransformerTrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 4, "max_steps": 2,
        "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd",
        "use_cpu": True, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no",
        "dataloader_pin_memory": False, "max_grad_norm": 0.0,
    }  # fmt: skip
    return SentenceTransformerTrainingArguments(**given | changes)


def trained(folder: Path, out: Path, *, batch_size: int = 4) -> tuple[Any, EmbeddingDistillation]:
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 12)
    torch.manual_seed(3)
    projector = nn.Linear(8, 12).double()
    loss = EmbeddingDistillation(student, EmbeddingMSELoss(), teacher=teacher, projector=projector)
    trainer = SentenceTransformerTrainer(
        model=student, args=arguments(out, per_device_train_batch_size=batch_size),
        train_dataset=Dataset.from_dict({"text": FIRST}), loss=loss,
    )  # fmt: skip
    before = copy.deepcopy(teacher.state_dict())
    trainer.train()
    close(teacher.state_dict(), before, 0)
    return trainer, loss


def test_the_trainer_trains_the_student_and_the_projector(folder: Path, tmp_path: Path) -> None:
    trainer, loss = trained(folder, tmp_path)
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 12)
    torch.manual_seed(3)
    projector = nn.Linear(8, 12).double()
    optimizer = torch.optim.SGD([*student.parameters(), *projector.parameters()], lr=1e-2)
    for _ in range(2):  # our loss in a loop of one's own
        gaps = projector(embedded(student, FIRST)) - embedded(teacher, FIRST).detach()
        optimizer.zero_grad()
        gaps.square().mean().backward()
        optimizer.step()
    close(loss.projector.state_dict(), projector.state_dict(), 1e-9)
    close(trainer.model.state_dict(), student.state_dict(), 1e-9)
    trainer.save_model(str(tmp_path / "saved"))
    saved = SentenceTransformer(str(tmp_path / "saved")).double()
    assert saved.state_dict().keys() == student.state_dict().keys()


def _rank(rank: int, folder: Path, out: Path) -> Any:
    trainer, loss = trained(folder, out, batch_size=2)
    return trainer.model.state_dict(), loss.projector.state_dict()


@pytest.mark.filterwarnings("ignore:`broadcast_buffers` is deprecated")  # which the trainer sets
def test_two_processes_are_one(folder: Path, tmp_path: Path) -> None:
    trainer, loss = trained(folder, tmp_path / "one")
    for model, projector in in_two_processes(tmp_path / "two", _rank, folder, tmp_path / "run"):
        close(model, trainer.model.state_dict(), 1e-9)
        close(projector, loss.projector.state_dict(), 1e-9)


def test_a_student_is_cut_from_its_teacher(folder: Path) -> None:
    teacher = encoder(folder, 8)
    student = cut_layers(teacher, [0, 3])
    mine, whole = student[0].auto_model, teacher[0].auto_model
    assert (mine.config.num_hidden_layers, whole.config.num_hidden_layers) == (2, 4)
    for place, layer in enumerate((0, 3)):
        close(mine.encoder.layer[place].state_dict(), whole.encoder.layer[layer].state_dict(), 0)
    close(embedded(cut_layers(teacher, 4), FIRST), embedded(teacher, FIRST))
    frozen = EmbeddingDistillation(student, SPLoss(), teacher=teacher)
    assert all(p.requires_grad for p in cut_layers(teacher, 1).parameters())
    assert not list(frozen.state_dict()) or all("teacher" not in k for k in frozen.state_dict())
    for layers in (0, 5, [0, 0], [4], []):
        with pytest.raises(RecipeError, match="of an encoder of 4: give a number from 1 to 4"):
            cut_layers(teacher, layers)
    with pytest.raises(RecipeError, match="cannot be told apart"):
        keep_layers(nn.Linear(2, 2), 1)


def test_the_teacher_stays_in_evaluation_mode(folder: Path) -> None:
    student, teacher = encoder(folder, 8, layers=2), encoder(folder, 12)
    loss = EmbeddingDistillation(student, SPLoss(), teacher=teacher)
    loss.train()
    teacher.train()
    loss(tokens(student, FIRST), None)
    assert not any(module.training for module in teacher.modules())
    assert student.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_what_does_not_fit_is_told(folder: Path) -> None:
    student = encoder(folder, 8, layers=2)
    with pytest.raises(
        RecipeError, match=r"DKDLoss should compare .* it takes student_logits, .*labels"
    ):
        EmbeddingDistillation(student, DKDLoss())
    other = encoder(folder, 12, words=[*WORDS, "i"])
    with pytest.raises(RecipeError, match=r"\(vocabularies of 14 and 13 words\).*teacher_labels"):
        EmbeddingDistillation(student, SPLoss(), teacher=other)
    for teacher in (student, SentenceTransformer(modules=[student[0], Pooling(8, "cls")])):
        with pytest.raises(RecipeError, match="teacher holds weights of the student"):
            EmbeddingDistillation(student, SPLoss(), teacher=teacher)
    assert all(p.requires_grad for p in student.parameters())
    with pytest.raises(DataError, match="neither a teacher nor what it said"):
        EmbeddingDistillation(student, SPLoss())(tokens(student, FIRST), None)
    with pytest.raises(DataError, match="has one column of texts; give it two"):
        EmbeddingDistillation(student, ScoreKLLoss())(tokens(student, FIRST), torch.zeros(4))
    for loss, shape, wanted in (
        (SPLoss(), (3, 8), r"\(3, 8\); expected embeddings \(4, width\) or \(4, 2, width\)"),
        (SPLoss(), (4, 3, 8), r"\(4, 3, 8\); expected embeddings"),
        (SPLoss(), (4,), r"\(4,\); expected embeddings"),
        (ScoreKLLoss(), (4, 3), r"\(4, 3\); expected scores \(4, 1\) or margins \(4, 0\)"),
    ):
        with pytest.raises(DataError, match=wanted):
            EmbeddingDistillation(student, loss)(tokens(student, FIRST, SECOND), torch.zeros(shape))
