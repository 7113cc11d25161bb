"""Distillation terms for a ``Trainer`` of transformers, and for those that build on it, as TRL's.

    class Distiller(DistillationMixin, Trainer): ...

    trainer = Distiller(model=student, teacher=teacher, terms=[Term(GKDLoss())], args=…, …)

The rest of a script stays as it is. What is trained is

    total = task_weight · (the trainer's own loss) + Σ weightᵢ · scheduleᵢ(progress) · lossᵢ,

each a mean over the tokens, or samples, of all that one optimiser step sees, however it is cut into
micro-batches and over processes. (A loss of relations still relates no more than the samples of a
micro-batch, and a term on features is weighted by the rows of logits that count in a micro-batch:
where it averages over other tokens than those, cutting moves it a little.)
In evaluation the student's own loss is reported alone, and the teacher does not run.
What of the losses is trained, such as projectors, is in the optimiser and in each checkpoint's
``congener.safetensors``; the saved student is the student.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from congener.engine.checkpoint import load_weights
from congener.errors import CongenerError, DataError, RecipeError, ShapeError
from congener.integrations.inputs import TEACHERS, Counts, Inputs
from congener.ops.collectives import all_sum
from congener.ops.vocabulary import common_prefix
from congener.systems import Distillation
from congener.taps import Taps
from congener.teachers.frozen import check_apart
from congener.types import Outputs, Progress, Term

try:
    from transformers import Trainer, TrainerCallback
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
except ImportError as error:
    raise CongenerError(
        f"The mixin for a Trainer needs the package {error.name!r}; install it with: "
        'pip install "congener[transformers]"'
    ) from error

__all__ = ["DistillationMixin"]

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

FILE = "congener.safetensors"
"""Where a checkpoint keeps what of the losses is trained."""


class DistillationMixin(_Base):
    """Goes before a trainer among the bases of a class; takes its arguments and these.

    The trainer's own loss is what ``Trainer.compute_loss`` makes of the model's outputs, so a
    ``compute_loss_func`` and label smoothing count; a ``compute_loss`` of a base between does not.
    Columns that begin with ``teacher_`` are the teacher's, who then gets no other.

    Args:
        *arguments: what the trainer takes.
        teacher: the trained network; it is frozen, moved to the student's device where it is not
            spread over devices, and never saved.
        terms: what the student is to learn from it. Taps are paths of ``named_modules()``.
        task_weight: factor of the trainer's own loss; with 0, labels of samples may be missing.
            Default: ours, 1.
        teacher_tokenizer: to prove that the teacher reads the student's tokens. Default: that is
            taken for granted where the vocabularies have one size.
        **options: what the trainer takes.

    Raises:
        RecipeError: terms that do not fit, or settings that do not go together.
        ShapeError: different vocabularies.
    """

    def __init__(
        self,
        *arguments: Any,
        teacher: nn.Module,
        terms: Sequence[Term],
        task_weight: float = 1.0,
        teacher_tokenizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        _check_terms(self, terms)
        _check_settings(self, teacher, terms)
        student: Any = self.model
        self._inputs = Inputs(shifts=_shifts(student))
        self._system = Distillation(
            student, teacher, terms, task=self._inputs, task_weight=task_weight
        )
        bound = self._system.terms
        self._losses = self._system.losses.to(self.args.device)
        self._taps = Taps(student, [path for term in bound for path in term.student])
        self._words: int | None = None
        if any("teacher_logits" in term.words for term in bound):
            tokenizers = (self.processing_class, teacher_tokenizer)
            self._words = _shared_words(student, teacher, *tokenizers)
        placed = getattr(teacher, "hf_device_map", None) or getattr(teacher, "is_quantized", False)
        if not placed:
            teacher.to(self.args.device)
        self._rows_of_step: Counts | None = None
        self._said: dict[str, Tensor] = {}
        self._said_from = 0
        # The total is a summand of the step's mean: nothing has to be divided any more.
        self.loss_is_scaled_for_ga = True
        self.add_callback(_KeepsLosses(self._losses))

    def get_batch_samples(self, *arguments: Any, **options: Any) -> tuple[list[Any], Any]:
        """The micro-batches of an optimiser step, whose rows are counted over all processes."""
        samples, items = super().get_batch_samples(*arguments, **options)
        counts = [self._inputs.count(batch) for batch in samples]
        total = (sum(rows for rows, _ in counts), sum(labelled for _, labelled in counts))
        self._rows_of_step = self._everywhere(total)
        return samples, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The total of a micro-batch: those of a step add up, and the ranks' are averaged.

        Raises:
            DataError: no labels, where they are needed.
        """
        columns = {k: v for k, v in inputs.items() if not k.startswith(TEACHERS)}
        if not model.training:
            return super().compute_loss(model, columns, return_outputs, num_items_in_batch)
        here = self._inputs.count(inputs)
        with self.accelerator.autocast():
            said = self._ask(inputs)
        (own, outputs), features = self._taps(lambda: self._run(model, columns, here))
        seen = Outputs(self._cut(self._inputs.rows(outputs, inputs)), features)
        epoch = int(self.state.epoch or 0)
        progress = Progress(self.state.global_step, self.state.max_steps, epoch)
        with self.accelerator.autocast():
            _, terms = self._system.score(seen, said, {**inputs, "loss": own}, progress)
        total = self._of_the_step(terms, here, progress)
        return (total, outputs) if return_outputs else total

    def _ask(self, inputs: dict[str, Any]) -> Outputs:
        """What the teacher says of the words that both networks know."""
        assert self._system.teacher is not None
        said = self._system.teacher(inputs)
        return Outputs(self._cut(said.logits), said.features)

    def _cut(self, logits: Tensor) -> Tensor:
        return logits if self._words is None else logits[..., : self._words]

    def _run(self, model: nn.Module, columns: dict[str, Any], here: Counts) -> tuple[Tensor, Any]:
        """The student's own loss, a mean over what is labelled on this rank, and its outputs."""
        weight = self._system.task_weight
        if "labels" not in columns and "shift_labels" not in columns and weight:
            raise DataError(
                f"The batch has no `labels` for the student's own loss; it has: "
                f"{', '.join(columns)}. Give the data set a column of that name (look whether "
                "remove_unused_columns took it away), or set task_weight=0."
            )
        if here[1] and weight:
            loss, outputs = Trainer.compute_loss(self, model, dict(columns), return_outputs=True)
            return loss, outputs
        decodes = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        outputs = model(**{k: v for k, v in columns.items() if decodes or k != "labels"})
        return outputs.logits[:0].sum(), outputs

    def _of_the_step(self, terms: dict[str, Tensor], here: Counts, progress: Progress) -> Tensor:
        """The weighted sum of what each term of a micro-batch adds to the mean over the step."""
        everywhere = self._everywhere(here)
        step = self._rows_of_step or everywhere
        weights = self._system.weights(progress)
        total: Tensor | None = None
        losses = dict(self._losses.items())
        if not self._said:
            self._said_from = progress.step
        for name, value in terms.items():
            loss = losses.get(name)
            of = int(loss is None or bool(getattr(loss, "needs_labels", False)))
            part = value * self._share(loss, here[of], everywhere[of], step[of])
            self._said[name] = self._said.get(name, 0) + part.detach()
            total = weights[name] * part if total is None else total + weights[name] * part
        assert total is not None
        return total

    def _share(self, loss: nn.Module | None, here: int, everywhere: int, step: int) -> float:
        """What a mean over the rows here, or everywhere if the loss spans ranks, is times."""
        spans_ranks = getattr(loss, "scope", "local") == "global"
        copies = 1 if spans_ranks else self.accelerator.num_processes
        if getattr(loss, "reduction", "mean") == "sum":
            return float(copies)
        return copies * (everywhere if spans_ranks else here) / max(1, step)

    def _everywhere(self, counts: Counts) -> Counts:
        rows, labelled = all_sum(torch.tensor(counts, device=self.args.device)).tolist()
        return rows, labelled

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Besides the loss, each term's mean since the last time, unweighted."""
        if "loss" in logs and self._said:
            steps = max(1, self.state.global_step - self._said_from)
            over = steps * self.accelerator.num_processes
            values = all_sum(torch.stack(list(self._said.values()))).tolist()
            names = (f"loss_{name}" for name in self._said)
            logs = logs | {n: value / over for n, value in zip(names, values, strict=True)}
            self._said = {}
        super().log(logs, *arguments, **options)

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """Also of what is trained of the losses, whose weights decay as the model's do."""
        optimizer = super().create_optimizer(*arguments, **options)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        trained = {n: p for n, p in self._losses.named_parameters() if p.requires_grad}
        new = {n: p for n, p in trained.items() if id(p) not in known}
        decaying = set(self.get_decay_parameter_names(self._losses))
        for decays in (True, False):
            group = [p for name, p in new.items() if (name in decaying) == decays]
            decay = self.args.weight_decay if decays else 0.0
            if group:
                optimizer.add_param_group({"params": group, "weight_decay": decay})
        return optimizer

    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """As the trainer's; ranks agree on the gradients of the losses, which no wrapper sees."""
        loss = super().training_step(*arguments, **options)
        if not self.accelerator.sync_gradients:
            return loss
        self._rows_of_step = None
        if self.accelerator.num_processes > 1:
            for parameter in _trained(self._losses):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.accelerator.reduce(gradient, "mean")
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """The norm is that of all that is trained."""
        trained = _trained(self._losses)
        if not trained:
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        parameters = [*model.parameters(), *trained]
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *arguments)
        if self._losses.state_dict():
            load_weights(self._losses, Path(resume_from_checkpoint) / FILE)


class _KeepsLosses(TrainerCallback):
    """Does for the losses what the trainer does for the model alone."""

    def __init__(self, losses: nn.Module) -> None:
        self.losses = losses

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Forget gradients that have been used."""
        self.losses.zero_grad()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the losses' state beside the model's."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.losses.state_dict().items()}
        if tensors and state.is_world_process_zero:
            save_file(tensors, Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE)


def _trained(losses: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in losses.parameters() if parameter.requires_grad]


def _shifts(network: Any) -> bool:
    """Whether the logits at a token tell the next, as the loss that the network takes says."""
    kind = getattr(network, "loss_type", None) or "ForCausalLM"  # what transformers falls back to
    decodes = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
    return LOSS_MAPPING.get(kind) is ForCausalLMLoss and not decodes


def _check_terms(trainer: Any, terms: Sequence[Term]) -> None:
    if not terms:
        raise RecipeError(
            "There are no `terms`, so the student would learn nothing from the teacher; give some, "
            "as in terms=[Term(KDLoss(temperature=2.0))]."
        )
    for term in terms:
        name = getattr(term.loss, "name", type(term.loss).__name__)
        if getattr(term.loss, "reduction", "mean") == "none":
            raise RecipeError(
                f"The loss {name!r} has reduction='none', which is no scalar; take 'mean'."
            )
        if getattr(term.loss, "batch_coupled", False) and (
            trainer.args.gradient_accumulation_steps > 1
        ):
            warnings.warn(
                f"{name} relates the samples of a batch; with gradient_accumulation_steps="
                f"{trainer.args.gradient_accumulation_steps} it relates those of a micro-batch "
                "alone (congener's own engine, with `accumulate`, relates them all).",
                stacklevel=4,
            )


def _check_settings(trainer: Any, teacher: nn.Module, terms: Sequence[Term]) -> None:
    """Refuse what would go wrong in silence."""
    trained = any(_trained(term.loss) for term in terms)
    taps = any(term.student for term in terms)
    own = [name for name in _column_names(trainer.train_dataset) if name.startswith(TEACHERS)]
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    problems = {
        "This version of transformers cannot be told that a loss is a mean over the whole step; "
        "update it": not hasattr(Trainer, "loss_is_scaled_for_ga"),
        "model_init makes a new student for each trial; give the network itself, as model=": (
            trainer.model_init is not None
        ),
        "Threads of one process (DataParallel) cannot read taps; start with torchrun or "
        "accelerate launch, one process for each GPU": trainer.args.n_gpu > 1,
        "A compiled student cannot be tapped from here; set torch_compile=False, or take terms "
        "that compare logits": taps and trainer.args.torch_compile,
        "A loss with weights of its own does not go with sharded weights (FSDP, DeepSpeed); take "
        "a loss without, or train in data parallel": trained and sharded,
        "A loss has weights of its own, which a given schedule does not know; give the optimiser "
        "alone, as in optimizers=(optimizer, None)": trained and trainer.lr_scheduler is not None,
        f"The training set has {', '.join(own)} for the teacher, which remove_unused_columns takes "
        "away; set remove_unused_columns=False": bool(own) and trainer.args.remove_unused_columns,
    }
    for problem, there in problems.items():
        if there:
            raise RecipeError(f"{problem}.")
    check_apart(trainer.model, teacher)


def _column_names(data: Any) -> list[str]:
    names = getattr(data, "column_names", None)
    if names is None and isinstance(data, Sequence) and data and isinstance(data[0], Mapping):
        names = data[0].keys()
    return list(names or ())


def _shared_words(student: Any, teacher: Any, tokenizer: Any, teacher_tokenizer: Any) -> int | None:
    """To how many words logits of tokens are cut; none: they are not, or the networks have none.

    Raises:
        ShapeError: the networks do not read the same tokens.
    """
    sizes = [_words(network) for network in (student, teacher)]
    if sizes[0] is None or sizes[1] is None:
        return None
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    who = f"The student {_name(student)} and the teacher {_name(teacher)}"
    if tokenizer is not None and teacher_tokenizer is not None:
        _check_tokens(who, tokenizer, teacher_tokenizer)
    known = None if tokenizer is None else len(tokenizer)
    try:
        shared = common_prefix(sizes[0], sizes[1], known)
    except ShapeError as error:
        read = "no processing_class" if tokenizer is None else f"the tokenizer {_name(tokenizer)}"
        raise ShapeError(f"{who}, with {read}, do not fit: {error}") from error
    return None if sizes[0] == sizes[1] else shared


def _check_tokens(who: str, tokenizer: Any, teacher_tokenizer: Any) -> None:
    mine, theirs = tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    same = sum(theirs.get(word) == number for word, number in mine.items())
    if same < max(len(mine), len(theirs)):
        raise ShapeError(
            f"{who} read other tokens: the tokenizer {_name(tokenizer)} has {len(mine)} words and "
            f"{_name(teacher_tokenizer)} {len(theirs)}, of which {same} are the same; take a "
            "teacher of the student's tokenizer, or compare them by congener.losses.uld_loss in a "
            "loop of your own."
        )


def _words(network: Any) -> int | None:
    """Words that a network's logits of tokens are of; none: it has no such head."""
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    size = getattr(head, "out_features", None)
    return size if isinstance(size, int) else None


def _name(named: Any) -> str:
    """What a network or tokenizer is called."""
    config = getattr(named, "config", None)
    return repr(
        getattr(named, "name_or_path", "")
        or getattr(config, "name_or_path", "")
        or type(named).__name__
    )
