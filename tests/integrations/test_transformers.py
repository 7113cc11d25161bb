"""The mixin for a Trainer: the same numbers as under our own engine, however a step is cut."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.integrations.tiny import (
    WORDS,
    classifier,
    conversations,
    language_model,
    sentences,
    settings,
    texts,
)
from tests.trajectory.processes import in_two_processes
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer

from congener.engine import FitConfig, fit
from congener.errors import CheckpointError, DataError, RecipeError, ShapeError
from congener.integrations.transformers import DistillationMixin
from congener.losses import (
    DKDLoss,
    GKDLoss,
    KDLoss,
    NDLoss,
    SPLoss,
)
from congener.ops.collectives import global_mean
from congener.schedules import Schedule
from congener.systems import Distillation
from congener.tasks.language_modelling import LanguageModelling, data
from congener.types import Progress, Term


class Distiller(DistillationMixin, Trainer):
    pass


class Matched(nn.Module):
    """A loss of a user's own: of this rank's samples, with a projector that is trained."""

    name = "matched"

    def __init__(self, width: int = 16, teacher_width: int = 24) -> None:
        super().__init__()
        self.projector = nn.Linear(width, teacher_width).double()

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        return F.mse_loss(self.projector(student_feature), teacher_feature)


class MatchedEverywhere(Matched):
    """The same of the samples of all ranks, as our own losses are."""

    name, scope = "everywhere", "global"

    def forward(self, student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
        gaps = (self.projector(student_feature) - teacher_feature).square()
        return global_mean(gaps.mean(1))


def exact_loss(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """What a model's own loss is, but without its rounding to float32."""
    logits = outputs.logits
    if labels.ndim == 2:
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return F.cross_entropy(logits, labels)


def terms_of(kind: str) -> list[Term]:
    torch.manual_seed(5)
    if kind == "tokens":
        return [Term(GKDLoss(0.3), 0.7), Term(KDLoss(2.0), 0.1)]
    pooled = ("bert.pooler", "bert.pooler")
    return [
        Term(KDLoss(2.0), 0.5),
        Term(DKDLoss(), 0.3),
        Term(Matched(), 0.7, *pooled),
        Term(MatchedEverywhere(), 0.2, *pooled),
    ]


OPTIONS = (
    "model", "teacher", "terms", "task_weight", "teacher_tokenizer", "train_dataset", "model_init",
    "eval_dataset", "processing_class", "compute_loss_func", "optimizers",
)  # fmt: skip
"""What goes to the trainer; the rest are settings."""


def trainer(folder: Path, kind: str = "tokens", **changes: Any) -> Any:
    """A student of 8 texts, of which some samples have no label."""
    if kind == "tokens":
        networks, rows = (language_model(), language_model(24, seed=2)), conversations()
    else:
        networks, rows = (classifier(), classifier(24, seed=2)), sentences(unlabelled=3)
    options = {name: changes.pop(name) for name in OPTIONS if name in changes}
    given = {
        "model": networks[0], "teacher": networks[1], "terms": terms_of(kind),
        "train_dataset": rows, "compute_loss_func": exact_loss,
    }  # fmt: skip
    return Distiller(args=settings(folder, **changes), **given | options)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    torch.manual_seed(0)


def our_task() -> LanguageModelling:
    given = texts()
    return LanguageModelling(
        data.tensors(
            **{f"train_{k}": v for k, v in given.items()},
            **{f"test_{k}": v for k, v in given.items()},
            vocabulary=WORDS, eos=1, pad=0,
        ),
        generate=False,
    )  # fmt: skip


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {n: v.detach().clone() for n, v in network.state_dict().items()}


def close(one: Any, other: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


def test_a_batch_costs_what_it_does_under_our_engine(tmp_path: Path) -> None:
    task = our_task()
    theirs = trainer(tmp_path, task_weight=0.4)
    batch = theirs.data_collator(conversations())
    total = theirs.compute_loss(theirs.model.train(), batch)
    total.backward()
    found = gradients(theirs.model)

    student = language_model()
    ours = Distillation(
        student, language_model(24, seed=2), terms_of("tokens"), task=task, task_weight=0.4
    )
    prepared = task.prepare(
        task.collate(task.texts("train").columns | {"index": torch.arange(8)}),
        train=True, seed=0, epoch=0,
    )  # fmt: skip
    wanted, _, _ = ours(prepared, Progress(0, 1, 0))
    wanted.backward()
    close(total, wanted)
    close(found, gradients(student))


def test_a_run_ends_where_ours_does(tmp_path: Path) -> None:
    task, student = our_task(), language_model()
    system = Distillation(student, language_model(24, seed=2), terms_of("tokens"), task=task)
    config = FitConfig(
        steps=3, batch_size=8, lr=1e-2, schedule="constant", clip=1.0, device="cpu",
        evaluate_every=0, checkpoint_every=0,
    )  # fmt: skip
    fit(system, task, config, train=task.splits["train"], test=None)
    theirs = trainer(tmp_path, optim="adamw_torch", max_grad_norm=1.0)
    theirs.train()
    close(weights(theirs.model), weights(student))


@pytest.mark.parametrize(("kind", "pieces"), [("tokens", 8), ("samples", 2)])
def test_micro_batches_add_up_to_the_batch(tmp_path: Path, kind: str, pieces: int) -> None:
    # A classifier's own loss is a mean over the micro-batch, whatever it is told of the step.
    own = exact_loss if kind == "tokens" else None
    whole = trainer(tmp_path, kind, compute_loss_func=own)
    whole.train()
    cut = trainer(
        tmp_path, kind, compute_loss_func=own,
        per_device_train_batch_size=8 // pieces, gradient_accumulation_steps=pieces,
    )  # fmt: skip
    cut.train()
    close(weights(cut.model), weights(whole.model))
    close(weights(cut._losses), weights(whole._losses))


def test_padding_changes_nothing(tmp_path: Path) -> None:
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    wider = [
        {name: F.pad(value, (0, 4), value=fill[name]) for name, value in row.items()}
        for row in conversations()
    ]
    one, other = trainer(tmp_path), trainer(tmp_path, train_dataset=wider)
    one.train()
    other.train()
    close(weights(one.model), weights(other.model))


def _rank(rank: int, folder: Path, kind: str) -> Any:
    mine = trainer(
        folder, kind, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        logging_strategy="steps", logging_steps=1,
    )  # fmt: skip
    mine.train()
    return weights(mine.model), weights(mine._losses), mine.state.log_history


@pytest.mark.parametrize("kind", ["tokens", "samples"])
def test_two_processes_are_one(tmp_path: Path, kind: str) -> None:
    alone = trainer(tmp_path / "one", kind, logging_strategy="steps", logging_steps=1)
    alone.train()
    ranks = in_two_processes(tmp_path / "two", _rank, tmp_path / "run", kind)
    for model, losses, _ in ranks:
        close(model, weights(alone.model))
        close(losses, weights(alone._losses))
    for name in ("loss", "loss_task", "loss_kd", *(["loss_matched"] if kind == "samples" else [])):
        told = [entry[name] for entry in ranks[0][2] if name in entry]
        close(told, [entry[name] for entry in alone.state.log_history if name in entry], 1e-6)


@pytest.mark.parametrize("kind", ["tokens", "samples"])
def test_a_resumed_run_is_the_straight_one(tmp_path: Path, kind: str) -> None:
    each: dict[str, Any] = {"optim": "adamw_torch", "logging_strategy": "steps"}
    straight = trainer(tmp_path / "one", kind, logging_steps=1, **each)
    straight.train()
    halves = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 3} | each
    trainer(tmp_path / "two", kind, max_steps=2, **halves).train()
    resumed = trainer(tmp_path / "two", kind, **halves)
    nn.init.zeros_(next(resumed.model.parameters()))
    for parameter in resumed._losses.parameters():
        nn.init.zeros_(parameter)
    resumed.train(resume_from_checkpoint=True)
    close(weights(resumed.model), weights(straight.model), 0)
    close(weights(resumed._losses), weights(straight._losses), 0)
    # What is told first is of the one step since.
    close(*(one.state.log_history[-2]["loss_kd"] for one in (resumed, straight)), 1e-6)


def test_a_checkpoint_holds_the_student_and_the_losses(tmp_path: Path) -> None:
    mine = trainer(tmp_path, "samples", save_strategy="steps", save_steps=3)
    mine.train()
    checkpoint = tmp_path / "checkpoint-3"
    again, told = type(mine.model).from_pretrained(checkpoint, output_loading_info=True)
    assert not told["unexpected_keys"]
    assert not told["missing_keys"]
    close(weights(again.double()), weights(mine.model))
    (checkpoint / "congener.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"congener\.safetensors"):
        trainer(tmp_path, "samples").train(resume_from_checkpoint=True)


def test_the_saved_student_of_tokens_is_a_student(tmp_path: Path) -> None:
    mine = trainer(tmp_path)
    mine.train()
    mine.save_model()
    close(
        weights(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)),
        weights(mine.model),
    )
    assert not (tmp_path / "congener.safetensors").exists()


def test_the_teacher_stays_as_it_was(tmp_path: Path) -> None:
    teacher = language_model(24, seed=2)
    teacher.config.attention_dropout = 0.5
    before = weights(teacher)
    mine = trainer(tmp_path, teacher=teacher.train())
    mine.train()
    close(weights(teacher), before, 0)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_weights_of_losses_are_trained_as_the_model_is(tmp_path: Path) -> None:
    mine = trainer(tmp_path, "samples", weight_decay=0.1)
    mine.train()
    groups = mine.optimizer.param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    projector = mine._losses["matched"].projector
    assert decay[id(projector.weight)] == 0.1
    assert decay[id(projector.bias)] == 0.0
    assert all(p.grad is None for p in mine._losses.parameters())
    untouched = terms_of("samples")[2].loss.projector
    assert not torch.equal(projector.weight, untouched.weight)
    assert not torch.equal(projector.bias, untouched.bias)


def test_the_norm_that_is_clipped_is_that_of_all_gradients(tmp_path: Path) -> None:
    mine = trainer(tmp_path, "samples", max_grad_norm=1e-3, max_steps=1)
    before = {**weights(mine.model), **weights(mine._losses)}
    mine.train()
    after = {**weights(mine.model), **weights(mine._losses)}
    moved = torch.stack([(after[n] - before[n]).norm() for n in after]).norm() / 1e-2
    close(moved.item(), 1e-3, 1e-6)


def test_what_is_told_are_the_unweighted_terms(tmp_path: Path) -> None:
    mine = trainer(
        tmp_path, task_weight=0.4, logging_strategy="steps", logging_steps=3, optim="sgd",
        learning_rate=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    mine.train()
    told = mine.state.log_history[0]
    batch = mine.data_collator(conversations())
    total = mine.compute_loss(mine.model.train(), batch)
    close(told["loss"], total.item(), 1e-6)
    weighted = 0.4 * told["loss_task"] + 0.7 * told["loss_gkd"] + 0.1 * told["loss_kd"]
    close(weighted, total.item(), 1e-6)


def test_schedules_follow_the_trainer(tmp_path: Path) -> None:
    warm = Term(GKDLoss(), 1.0, schedules={"weight": Schedule("linear", steps=3, start=0.0)})
    mine = trainer(
        tmp_path, task_weight=0.0, terms=[warm], optim="sgd", learning_rate=0.0,
        logging_strategy="steps", logging_steps=1,
    )  # fmt: skip
    mine.train()
    told = [entry for entry in mine.state.log_history if "loss_gkd" in entry]
    close([entry["loss_gkd"] for entry in told], 3 * [told[0]["loss_gkd"]], 1e-6)
    wanted = [warm.schedules["weight"].factor(step, 3, step) for step in range(3)]
    close([entry["loss"] / entry["loss_gkd"] for entry in told], wanted, 1e-6)
    assert len(set(wanted)) == 3


def test_evaluation_tells_the_students_own_loss(tmp_path: Path) -> None:
    mine = trainer(tmp_path, eval_dataset=conversations())
    mine._system.teacher = None  # is not asked
    plain = Trainer(
        model=mine.model, args=settings(tmp_path), eval_dataset=conversations(),
        compute_loss_func=exact_loss,
    )  # fmt: skip
    assert mine.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_without_a_weight_the_labels_of_samples_may_be_missing(tmp_path: Path) -> None:
    bare = [{k: v for k, v in row.items() if k != "labels"} for row in sentences()]
    terms = [Term(KDLoss(2.0))]
    mine = trainer(
        tmp_path, "samples", terms=terms, task_weight=0.0, train_dataset=bare,
        per_device_train_batch_size=4, gradient_accumulation_steps=2,
    )  # fmt: skip
    mine.train()
    same = trainer(tmp_path, "samples", terms=[Term(KDLoss(2.0))], task_weight=0.0)
    same.train()
    close(weights(mine.model), weights(same.model))
    needy = trainer(tmp_path, "samples", terms=terms, train_dataset=bare)
    with pytest.raises(DataError, match=r"no `labels` for the student's own.*: input_ids"):
        needy.train()


def test_a_step_without_any_label_teaches_what_the_teacher_says(tmp_path: Path) -> None:
    mine = trainer(tmp_path, "samples", train_dataset=sentences(unlabelled=8), max_steps=1)
    before = weights(mine.model)
    mine.train()
    after = weights(mine.model)
    assert all(bool(value.isfinite().all()) for value in after.values())
    batch = mine.data_collator(sentences(unlabelled=8))
    assert mine.compute_loss(mine.model.train(), batch).isfinite()
    assert not torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_a_teacher_with_columns_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(7)
    others = torch.randint(2, WORDS, (8, 5))
    rows = [
        row | {"teacher_input_ids": own, "teacher_attention_mask": torch.ones(5, dtype=torch.long)}
        for row, own in zip(sentences(), others, strict=True)
    ]
    mine = trainer(tmp_path, "samples", terms=[Term(KDLoss(2.0))], train_dataset=rows)
    heard: list[Any] = []
    mine._system.teacher.model.register_forward_pre_hook(
        lambda _, __, named: heard.append(named), with_kwargs=True
    )
    read: list[str] = []
    mine.model.register_forward_pre_hook(lambda _, __, named: read.extend(named), with_kwargs=True)
    mine.train()
    assert set(heard[0]) == {"input_ids", "attention_mask"}
    assert {tuple(row) for row in heard[0]["input_ids"].tolist()} == {
        tuple(row) for row in others.tolist()
    }
    mine.evaluate(rows)
    assert not [name for name in read if name.startswith("teacher_")]
    with pytest.raises(RecipeError, match="has teacher_input_ids, teacher_attention_mask for"):
        trainer(tmp_path, "samples", train_dataset=rows, remove_unused_columns=True)


class Words:
    """A tokenizer, as far as one is looked at."""

    def __init__(self, name: str, *words: str) -> None:
        self.name_or_path, self.words = name, words

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


ALL = [chr(97 + number) for number in range(WORDS)]


@pytest.mark.filterwarnings("ignore:the student's vocabulary has")
def test_padded_vocabularies_are_cut_to_what_both_know(tmp_path: Path) -> None:
    teacher = language_model(24, seed=2)
    padded = language_model(24, words=WORDS + 5, seed=3)
    state = padded.state_dict()
    for name, value in teacher.state_dict().items():
        state[name][: len(value)] = value
    padded.load_state_dict(state)
    mine = trainer(tmp_path, teacher=padded, processing_class=Words("mine", *ALL))
    same = trainer(tmp_path, teacher=teacher)
    mine.data_collator = same.data_collator
    mine.processing_class = None
    mine.train()
    same.train()
    close(weights(mine.model), weights(same.model))


def test_other_vocabularies_are_refused(tmp_path: Path) -> None:
    other = language_model(24, words=WORDS + 5, seed=2)
    other.config.name_or_path = "big/teacher"
    with pytest.raises(ShapeError, match=r"'big/teacher', with no processing_class.* has 19 words"):
        trainer(tmp_path, teacher=other)
    more = Words("small/words", *ALL, "x", "y")
    with pytest.raises(ShapeError, match=r"'small/words', do not fit: .*tokenizer's 21.*uld_loss"):
        trainer(tmp_path, teacher=other, processing_class=more)
    swapped = Words("big/words", *reversed(ALL))
    mine = Words("small/words", *ALL)
    with pytest.raises(ShapeError, match=r"'small/words' has 19 .* 'big/words' 19, of which 1 "):
        trainer(tmp_path, processing_class=mine, teacher_tokenizer=swapped)
    trainer(tmp_path, processing_class=mine, teacher_tokenizer=Words("copy", *ALL))
    taps = ("model.layers.0", "model.layers.0")
    features = [Term(SPLoss(), 1.0, *taps)]
    trainer(tmp_path, teacher=other, terms=features)  # no one compares words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"terms": []}, "There are no `terms`"),
        ({"terms": [Term(KDLoss(reduction="none"))]}, "'kd' has reduction='none'"),
        ({"terms": [Term(NDLoss(), 1.0, "model.norm", "model.norm")]}, "congener.distill"),
        ({"model": None, "model_init": lambda: language_model()}, "model_init makes a new student"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        trainer(tmp_path, **changes)


def test_more_that_does_not_fit_is_told(tmp_path: Path) -> None:
    student = language_model()
    with pytest.raises(RecipeError, match="teacher holds weights of the student"):
        trainer(tmp_path, model=student, teacher=student)
    taps = ("model.layers.0", "model.layers.0")
    with pytest.raises(RecipeError, match="compiled student cannot be tapped"):
        trainer(tmp_path, terms=[Term(SPLoss(), 1.0, *taps)], torch_compile=True)
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with pytest.raises(RecipeError, match="give the optimiser alone"):
        trainer(tmp_path, "samples", model=model, optimizers=(optimizer, schedule))
    with pytest.warns(UserWarning, match="sp relates the samples.*of a micro-batch"):
        trainer(tmp_path, terms=[Term(SPLoss(), 1.0, *taps)], gradient_accumulation_steps=2)
    unmarked = [{k: v for k, v in row.items() if k != "labels"} for row in conversations()]
    with pytest.raises(DataError, match=r"has no whole `labels`.*input_ids, attention_mask"):
        trainer(tmp_path, train_dataset=unmarked).train()
    shorter = [row | {"labels": row["labels"][:5]} for row in conversations()]
    with pytest.raises(ShapeError, match=r"logits \(8, 9, 19\) and the labels \(8, 5\)"):
        trainer(tmp_path, train_dataset=shorter).train()


def test_an_optimiser_of_the_users_trains_the_losses_too(tmp_path: Path) -> None:
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mine = trainer(tmp_path, "samples", model=model, optimizers=(optimizer, None))
    before = copy.deepcopy(mine._losses["matched"].projector.weight)
    mine.train()
    assert not torch.equal(mine._losses["matched"].projector.weight, before)
