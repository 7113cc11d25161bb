"""Our losses for a ``SentenceTransformerTrainer``.

    loss = EmbeddingDistillation(student, SPLoss(), teacher=teacher)
    SentenceTransformerTrainer(model=student, train_dataset=texts, loss=loss).train()

A loss that compares features gets the embeddings of all text columns, laid under each other; one
that compares logits gets scores of the first column, the query, with each of the others, its
passages. What the teacher says is computed live, where it reads the student's tokens, or comes as
the labels, which :func:`teacher_labels` makes.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from congener.errors import CongenerError, DataError, RecipeError
from congener.ops.collectives import all_sum
from congener.tasks.encoder_layers import keep_layers
from congener.teachers.frozen import check_apart

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import pairwise_dot_score
except ImportError as error:
    raise CongenerError(
        f"The losses for sentence embeddings need the package {error.name!r}; install it with: "
        'pip install "congener[sentence-transformers]"'
    ) from error

__all__ = ["EmbeddingDistillation", "cut_layers", "teacher_labels"]

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Of embeddings (batch, dims) and others, their scores, (batch,)."""


@final
class EmbeddingDistillation(nn.Module):
    """One of our losses, in the shape that sentence-transformers' trainer calls.

    What of it is trained is in that trainer's optimiser, and agrees on all ranks. The trainer saves
    the student alone.

    Args:
        model: the student.
        loss: any that compares ``student_feature`` and ``teacher_feature``, such as
            ``EmbeddingMSELoss()``, ``SPLoss()``, ``CompRessLoss()``, or ``student_logits`` and
            ``teacher_logits``, such as ``MarginMSELoss()``, ``ScoreKLLoss()``.
        teacher: run on the student's tokens; frozen, never saved. Default: labels say what it said.
        projector: from the student's embeddings to what the loss compares, such as
            ``nn.Linear(384, 768)``. Default: none.
        similarity: scores embeddings; ours and sentence-transformers' default: their product.

    Raises:
        RecipeError: a loss that asks for anything else, or a teacher that reads other tokens or
            holds weights of the student.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module,
        *,
        teacher: SentenceTransformer | None = None,
        projector: nn.Module | None = None,
        similarity: Similarity = pairwise_dot_score,
    ) -> None:
        super().__init__()
        self.scores = _compares_scores(loss)
        self.model, self.loss, self.similarity = model, loss, similarity
        self.projector = nn.Identity() if projector is None else projector
        self._teacher: tuple[SentenceTransformer, ...] = ()  # in a tuple: it is no submodule
        if teacher is not None:
            _check_tokens(model, teacher)
            check_apart(model, teacher)
            self._teacher = (teacher.requires_grad_(False).eval(),)
        for parameter in (*self.loss.parameters(), *self.projector.parameters()):
            parameter.register_post_accumulate_grad_hook(_agree)  # type: ignore[no-untyped-call]

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: the tokens of each text column, as the trainer's collator makes them.
            labels: the teacher's embeddings, (batch, width), or (batch, columns, width); or its
                scores, (batch, passages), or margins; not read where there is a teacher.

        Raises:
            DataError: labels are missing or of another shape, or scores lack a passage.
        """
        columns = [dict(column) for column in sentence_features]
        said = [self._embed(dict(column)) for column in columns] if self._teacher else None
        mine = [self.projector(self.model(column)["sentence_embedding"]) for column in columns]
        if self.scores and len(mine) < 2:
            raise DataError(
                "The loss compares scores of a query and passages, but the data has one column of "
                "texts; give it two or more."
            )
        if said is not None:
            theirs = self._scores(said) if self.scores else torch.cat(said)
        elif labels is None:
            raise DataError(
                "There is neither a teacher nor what it said; give teacher=, or a column `label`, "
                "as dataset.map(teacher_labels(teacher, columns), batched=True) makes it."
            )
        else:
            theirs = _told(labels, len(mine[0]), len(mine), scores=self.scores)
        value: Tensor
        if self.scores:
            value = self.loss(student_logits=self._scores(mine), teacher_logits=theirs)
        else:
            value = self.loss(student_feature=torch.cat(mine), teacher_feature=theirs)
        return value

    def _embed(self, column: dict[str, Tensor]) -> Tensor:
        teacher = self._teacher[0]
        device = next(value.device for value in column.values() if isinstance(value, Tensor))
        if teacher.device != device:
            teacher.to(device)
        with torch.no_grad():
            embeddings: Tensor = teacher.eval()(column)["sentence_embedding"]
        return embeddings

    def _scores(self, columns: Sequence[Tensor]) -> Tensor:
        return _scores(columns, self.similarity)


def teacher_labels(
    teacher: SentenceTransformer,
    columns: Sequence[str],
    *,
    scores: bool = False,
    similarity: Similarity = pairwise_dot_score,
    batch_size: int = 32,
) -> Callable[[Mapping[str, Sequence[str]]], dict[str, Any]]:
    """What ``dataset.map(..., batched=True)`` adds the teacher's answers with, as ``label``.

    Args:
        teacher: of any tokenizer.
        columns: the text columns that it embeds, in the order of the data set.
        scores: of the first column with each other one, instead of embeddings.
        similarity: scores embeddings.
        batch_size: texts that it embeds at a time; ours.
    """

    def label(rows: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        embeddings = [
            teacher.encode(
                list(rows[name]), batch_size=batch_size, convert_to_tensor=True,
                show_progress_bar=False,
            ).cpu()
            for name in columns
        ]  # fmt: skip
        if scores:
            return {"label": _scores(embeddings, similarity).tolist()}
        found = embeddings[0] if len(columns) == 1 else torch.stack(embeddings, 1)
        return {"label": found.tolist()}

    return label


def cut_layers(teacher: SentenceTransformer, layers: int | Sequence[int]) -> SentenceTransformer:
    """A copy of a model with some layers of its encoder alone: a student to begin with.

    Args:
        teacher: stays as it is.
        layers: which to keep, in this order, or how many of the first.

    Raises:
        RecipeError: layers that there are not, or that cannot be told apart.
    """
    student = copy.deepcopy(teacher).requires_grad_(True)
    encoder: Any = student[0]
    keep_layers(encoder.auto_model, layers)
    return student


def _scores(columns: Sequence[Tensor], similarity: Similarity) -> Tensor:
    return torch.stack([similarity(columns[0], passage) for passage in columns[1:]], 1)


def _compares_scores(loss: nn.Module) -> bool:
    parameters = inspect.signature(loss.forward).parameters
    for scores, words in ((False, "feature"), (True, "logits")):
        if {f"student_{words}", f"teacher_{words}"} <= parameters.keys():
            required = {name for name, p in parameters.items() if p.default is p.empty}
            if required <= {f"student_{words}", f"teacher_{words}"}:
                return scores
    raise RecipeError(
        f"{type(loss).__name__} should compare student_feature with teacher_feature, or "
        f"student_logits with teacher_logits, and ask for no more; it takes "
        f"{', '.join(parameters)}."
    )


def _check_tokens(model: SentenceTransformer, teacher: SentenceTransformer) -> None:
    mine, theirs = model.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != theirs:
        raise RecipeError(
            f"The teacher reads other tokens than the student (vocabularies of {len(theirs)} and "
            f"{len(mine)} words), and would be given the student's; add what it says to the data "
            "first: dataset.map(teacher_labels(teacher, columns), batched=True)."
        )


def _told(labels: Tensor, count: int, columns: int, *, scores: bool) -> Tensor:
    """What the teacher said, in the form that the loss compares."""
    if scores and labels.shape == (count,):
        labels = labels.unsqueeze(1)
    if scores and labels.shape in ((count, columns - 2), (count, columns - 1)):
        return labels
    if not scores and labels.ndim == 2 and len(labels) == count:
        return labels.repeat(columns, 1)
    if not scores and labels.ndim == 3 and labels.shape[:2] == (count, columns):
        return labels.transpose(0, 1).flatten(0, 1)
    wanted = (
        f"scores ({count}, {columns - 1}) or margins ({count}, {columns - 2})"
        if scores
        else f"embeddings ({count}, width) or ({count}, {columns}, width)"
    )
    raise DataError(f"The labels have the shape {tuple(labels.shape)}; expected {wanted}.")


def _agree(parameter: Tensor) -> None:
    """The gradient of a parameter that no wrapper sees is the mean of all ranks'."""
    if parameter.grad is not None:
        own = parameter.grad
        total = all_sum(torch.cat((own.flatten(), own.new_ones(1))))
        parameter.grad = (total[:-1] / total[-1]).view_as(own)
