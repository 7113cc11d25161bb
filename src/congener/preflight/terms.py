"""Faults of the terms: signals that are not there, gradients that go nowhere, or too far."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from congener.engine import check_stage, steps_per_epoch
from congener.errors import CongenerError, TapError
from congener.losses import Loss, MultiLabelKDLoss
from congener.preflight.finding import BROKEN, Finding, Patient, network_of, without_trace
from congener.system import System, loss_balance
from congener.taps import Taps
from congener.task import answer_kind
from congener.types import Outputs, Progress, Term

__all__ = ["cannot_run", "examine_arm"]

SWAMPS = 300.0  # a term that pulls so many times harder than all others leaves them no say
FEW = 8  # samples of a batch below which relations between them say little
START = Progress(0, 1, 0)


def examine_arm(patient: Patient, arm: str, system: System) -> Iterator[Finding]:
    """Everything that can be wrong with one arm's system."""
    terms: list[Term] = [bound.term for bound in getattr(system, "terms", [])]
    names: list[str] = [bound.name for bound in getattr(system, "terms", [])]
    yield from _parts(patient, arm, system)
    ruined = False
    for name, term in zip(names, terms, strict=True):
        where = f"{arm}, term {name!r}"
        for finding in _taps(patient, where, term, system):
            ruined |= finding.name != "dead_tap"
            yield finding
        yield from _batch(patient, where, term.loss)
    yield from _batch(patient, arm, system)
    config = patient.recipe.train
    with torch.no_grad():
        ready = [check_stage(s, patient.task, config, patient.batch) for s in system.stages()]
    if not ruined and all(ready):
        yield from _step(patient, arm, system)


def _parts(patient: Patient, arm: str, system: System) -> Iterator[Finding]:
    teacher = _taught_by(patient, system)
    shared = [name for name, p in system.named_parameters(remove_duplicate=False) if p in teacher]
    if shared:
        yield Finding(
            "teacher_is_trained", arm,
            "The teacher is part of what is trained.",
            f"{len(shared)} of its parameters are the system's, the first is {shared[0]!r}.",
            "Hold no reference to the teacher in the student or in a loss.",
        )  # fmt: skip
    frozen = [name for name, p in system.student.named_parameters() if not p.requires_grad]
    if len(frozen) == len(list(system.student.parameters())) and frozen:
        yield Finding(
            "student_is_frozen", arm,
            "Nothing of the student is trained.",
            f"all {len(frozen)} parameters have requires_grad=False, as a teacher's have.",
            "Call student.requires_grad_(True), and do not share modules with the teacher.",
        )  # fmt: skip


def _taught_by(patient: Patient, system: System) -> set[Tensor]:
    """The parameters of the recipe's teacher, and of whom this system asks."""
    networks = (patient.teacher, network_of(system.teacher))
    return {p for network in networks if network is not None for p in network.parameters()}


def _taps(patient: Patient, where: str, term: Term, system: System) -> Iterator[Finding]:
    for side, network, paths in (
        ("student", system.student, term.student),
        ("teacher", network_of(system.teacher, term.of), term.teacher),
    ):
        listed = (paths,) if isinstance(paths, str) else paths or ()
        if network is None:
            continue
        for path in listed:
            yield from _tap(patient, where, side, network, path)


def _tap(
    patient: Patient, where: str, side: str, network: nn.Module, path: str
) -> Iterator[Finding]:
    said, seen = "", None
    states = {key: value.clone() for key, value in network.state_dict().items()}
    modes = (False, True) if side == "student" else (False,)  # a teacher is never in training mode
    for training in modes:
        network.train(training)
        taps = Taps(network, [path])
        try:
            with torch.no_grad(), taps:
                _, found = taps(lambda: patient.task.call(network, without_trace(patient.batch)))
            seen = found[path] if seen is None else seen
        except (TapError, *BROKEN) as error:
            said = _words(error)
    network.load_state_dict(states)
    if said:
        yield Finding(
            "tap_of_one_mode", where,
            f"The {side}'s tap {path!r} cannot be read in training mode.",
            said,
            "Tap a module that runs in both modes, on batches of this size.",
        )  # fmt: skip
    elif seen is not None and len(seen) > 1:
        rows = seen.float().flatten(1)
        spread = float(rows.std(0).max())
        if spread <= 1e-6 * max(1.0, float(rows.abs().max())):
            yield Finding(
                "dead_tap", where,
                f"The {side}'s tap {path!r} says the same about every sample.",
                f"its largest standard deviation over {len(rows)} samples is {spread:.2g}.",
                "Tap a layer that is alive, or revive it (another initialisation, no dead ReLU).",
            )  # fmt: skip


def _batch(patient: Patient, where: str, loss: nn.Module) -> Iterator[Finding]:
    if not getattr(loss, "batch_coupled", False):
        return
    size = patient.recipe.train.batch_size
    if size < FEW:
        yield Finding(
            "small_batch", where,
            "The batch is too small for a loss that compares its samples.",
            f"batch_size is {size}: {size * (size - 1) // 2} pairs.",
            f"Raise batch_size to {FEW} or more (use `accumulate` if memory is short).",
        )  # fmt: skip
    if getattr(loss, "scope", "global") == "local":
        yield Finding(
            "depends_on_ranks", where,
            "The term, and so the meaning of its weight, changes with the number of processes.",
            "its scope is 'local': each process compares its own samples only.",
            "Leave `scope` at 'global', which is exact for any number of processes.",
        )  # fmt: skip


def _step(patient: Patient, arm: str, system: System) -> Iterator[Finding]:
    """One forward and backward: where the gradient goes, and how hard each term pulls."""
    batch = without_trace(patient.batch)
    try:
        batch = system.views(batch, START)
        taught = None if system.teacher is None else system.teacher(batch)
        student = system.observe(batch)
        total, terms = system.score(student, taught, batch, START)
    except (CongenerError, *BROKEN) as error:
        yield cannot_run(arm, error)
        return
    kind = answer_kind(patient.task, batch.get("labels"), student.logits)
    if kind is not None:  # no embedding, nor codes
        yield from _probabilities(arm, student, taught)
    if kind == "class":
        yield from _softened(patient, arm, system, taught)
    if kind == "tags":
        yield from _rivals(arm, system)
    if taught is not None and any(x.requires_grad for x in _tensors(taught)):
        yield Finding(
            "gradient_reaches_teacher", arm,
            "The teacher's answer carries a gradient back into it.",
            "its outputs require a gradient.",
            "Run it under torch.no_grad() (congener.teachers.FrozenTeacher does).",
        )  # fmt: skip
    yield from _leaves(patient, arm, system, total)
    weights = _weights(patient, system)
    labels = batch.get("labels")
    unlabelled = isinstance(labels, Tensor) and bool((labels < 0).all())
    yield from _signals(arm, system, terms, weights, unlabelled=unlabelled)
    yield from _pulls(arm, loss_balance(student, terms, weights))


def cannot_run(where: str, error: Exception) -> Finding:
    """What is told of anything that fails."""
    return Finding("cannot_run", where, "The first step fails.", _words(error), "Mend that first.")


def _words(error: Exception) -> str:
    told = " ".join(str(error).split())
    return told if isinstance(error, CongenerError) else f"{type(error).__name__}: {told}"


def _weights(patient: Patient, system: System) -> dict[str, float]:
    """Of each term the largest weight that a schedule gives it: a warm-up starts near 0."""
    config = patient.recipe.train
    training = patient.assembly.training(config, distilled=system.distils)
    epoch = steps_per_epoch(training.train, training.config, training.labelled)
    steps = training.config.steps or (training.config.epochs or 1) * epoch
    found: dict[str, float] = {}
    for step in {*range(0, steps, max(1, steps // 8)), steps - 1}:
        for name, weight in system.weights(Progress(step, steps, step // epoch)).items():
            found[name] = max(found.get(name, 0.0), weight, key=abs)
    return found


def _probabilities(arm: str, student: Outputs, teacher: Outputs | None) -> Iterator[Finding]:
    for who, outputs in (("student", student), ("teacher", teacher)):
        if outputs is None:
            continue
        rows = outputs.logits.detach().float()
        if bool(((rows >= 0) & (rows <= 1)).all()) and float(rows.max() - rows.min()) > 1e-6:
            yield Finding(
                "probabilities", f"{arm}, {who}",
                f"The {who} gives probabilities where logits are expected.",
                f"all values of {len(rows)} rows lie between 0 and 1, and a row sums to "
                f"{float(rows.sum(-1).mean()):.2f}.",
                "Remove the softmax or sigmoid at its end: losses apply it themselves.",
            )  # fmt: skip


def _softened(
    patient: Patient, arm: str, system: System, teacher: Outputs | None
) -> Iterator[Finding]:
    if teacher is None or not patient.taught:
        return
    for bound in getattr(system, "terms", []):
        temperature = getattr(bound.term.loss, "temperature", None)
        if not isinstance(temperature, int | float) or "teacher_logits" not in bound.words:
            continue
        rows = teacher.logits.detach().float()
        least = torch.log(torch.tensor(float(rows.shape[-1])))
        entropy = float(_entropy(rows / temperature).mean() / least)
        if entropy < 1e-3 or entropy > 1 - 1e-6:
            state = "certain" if entropy < 0.5 else "undecided"
            yield Finding(
                "temperature_without_effect", f"{arm}, term {bound.name!r}",
                f"At temperature {temperature:g} the teacher is wholly {state}, so its softened "
                "answer says nothing beyond the label.",
                f"mean entropy {entropy:.2g} of the largest possible; its logits spread over "
                f"{float(rows.std()):.2g}.",
                "Choose a temperature near the spread of its logits, or standardise them (lskd).",
            )  # fmt: skip


def _rivals(arm: str, system: System) -> Iterator[Finding]:
    for bound in getattr(system, "terms", []):
        if "teacher_logits" in bound.words and isinstance(bound.term.loss, Loss):
            if isinstance(bound.term.loss, MultiLabelKDLoss):
                continue
            yield Finding(
                "tags_as_rivals", f"{arm}, term {bound.name!r}",
                "The term takes the tags for classes, of which a sample has one.",
                f"{bound.term.loss.name!r} compares logits over all tags together, and a sample "
                "may have several.",
                "Use 'multilabel_kd', which compares each tag by itself.",
            )  # fmt: skip


def _entropy(logits: Tensor) -> Tensor:
    return -(logits.softmax(-1) * logits.log_softmax(-1)).nansum(-1)


def _leaves(patient: Patient, arm: str, system: System, total: Tensor) -> Iterator[Finding]:
    """Every tensor that the total depends on, and that the optimiser should know."""
    known = set(system.parameters())
    teacher = _taught_by(patient, system)
    lost = [leaf for leaf in _leaf_tensors(total) if leaf not in known]
    if any(leaf in teacher for leaf in lost):
        yield Finding(
            "gradient_reaches_teacher", arm,
            "The loss sends a gradient into the teacher.",
            f"{sum(leaf in teacher for leaf in lost)} of its parameters are in the graph.",
            "Detach the teacher's side inside the loss.",
        )  # fmt: skip
    lost = [leaf for leaf in lost if leaf not in teacher]
    for owner, module in (("student", system.student), ("loss", system)):
        found = _unregistered(module)
        hidden = [leaf for leaf in lost if leaf in found]
        lost = [leaf for leaf in lost if leaf not in found]
        if hidden:
            yield Finding(
                "student_part_not_trained" if owner == "student" else "projector_not_trained", arm,
                f"A trainable part of the {owner} is hidden from the optimiser.",
                f"{len(hidden)} tensors get a gradient but are no parameters of the system, the "
                f"first of shape {tuple(hidden[0].shape)}.",
                "Keep modules in an nn.ModuleList or as attributes, not in a plain list or dict.",
            )  # fmt: skip
    if lost:
        yield Finding(
            "part_not_trained", arm,
            "Something trainable is missing from the optimiser.",
            f"{len(lost)} tensors get a gradient but are no parameters of the system, the first "
            f"of shape {tuple(lost[0].shape)}.",
            "Make it a module of the student or of the loss.",
        )  # fmt: skip


def _leaf_tensors(total: Tensor) -> list[Tensor]:
    """The tensors that a value's graph ends in."""
    found: list[Tensor] = []
    todo: list[Any] = [total.grad_fn]
    seen: set[Any] = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(following for following, _ in node.next_functions)
    return found


def _unregistered(module: nn.Module) -> set[Tensor]:
    """Parameters of modules that are kept in plain lists, tuples and dicts of a module."""
    found: set[Tensor] = set()
    for part in module.modules():
        for value in vars(part).values():
            items = value.values() if isinstance(value, dict) else value
            for item in items if isinstance(items, list | tuple | type({}.values())) else ():
                if isinstance(item, nn.Module):
                    found |= set(item.parameters())
                elif isinstance(item, nn.Parameter):
                    found.add(item)
    return found - set(module.parameters())


def _signals(
    arm: str,
    system: System,
    terms: dict[str, Tensor],
    weights: dict[str, float],
    *,
    unlabelled: bool,
) -> Iterator[Finding]:
    parameters = [p for p in system.parameters() if p.requires_grad]
    for name, value in terms.items():
        weight = weights.get(name, 1.0)
        if name == "task" and (weight == 0 or unlabelled):
            continue  # a choice: distil only; or other batches have labels
        where = f"{arm}, term {name!r}"
        if not bool(value.isfinite()):
            yield Finding(
                "not_finite", where,
                "The term is infinite or no number before any training.",
                f"value {float(value.detach()):g} on the first batch.",
                "Look for a division by zero or a logarithm of zero in it.",
            )  # fmt: skip
            continue
        if float(value.detach().abs()) < 1e-12:
            yield Finding(
                "no_signal", where,
                "The term has nothing to say: its value is zero before any training.",
                f"value {float(value.detach()):.2g} on the first batch.",
                "Check that its taps are those of two different networks, and not masked away.",
            )  # fmt: skip
            continue
        pull = 0.0
        if value.requires_grad and weight:
            grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            pull = weight * sum(float(g.norm()) for g in grads if g is not None)
        if pull == 0:
            yield Finding(
                "no_gradient", where,
                "The term teaches nothing: its gradient at everything trainable is zero.",
                f"value {float(value.detach()):.2g}, weight {weight:g}, gradient 0.",
                "Check its weight, and that nothing on the student's side is detached or rounded.",
            )  # fmt: skip


def _pulls(arm: str, balance: dict[str, dict[str, Tensor]]) -> Iterator[Finding]:
    norms = {name: float(figures["gradient_norm"]) for name, figures in balance.items()}
    for name, norm in norms.items():
        rest = sum(other for key, other in norms.items() if key != name)
        if len(norms) > 1 and rest > 0 and norm > SWAMPS * rest:
            yield Finding(
                "swamps", f"{arm}, term {name!r}",
                "The term swamps all others.",
                f"its gradient where it reads the student is {norm / rest:.0f} times that of the "
                "others together.",
                f"Lower its weight by about {norm / rest:.0f}, or give the others more.",
            )  # fmt: skip


def _tensors(outputs: Outputs) -> list[Tensor]:
    return [outputs.logits, *outputs.features.values()]
