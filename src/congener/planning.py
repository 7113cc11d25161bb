"""What can be distilled between two networks, proposed from one batch: taps, losses, projectors.

Both networks run once in evaluation mode and are as before afterwards. Every loss that is proposed
was run on what its taps gave; where one cannot, the plan holds its reason.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from congener.anatomy import Anatomy, Place, dissect, undisturbed
from congener.catalogue import losses_by_name
from congener.errors import CongenerError, RecipeError
from congener.naming import accepted_names
from congener.systems.distillation import WORDS
from congener.taps import SIZE, Taps, bare
from congener.task import Task, answer_kind
from congener.types import Term

__all__ = ["Pair", "Plan", "Proposal", "fill_widths", "lacks_widths", "plan"]

PLAIN = r"[A-Za-z_][\w.]*"
"""A path that YAML reads as text without quotes."""
MOST_PAIRS = 4
"""Deepest stages that are paired: as many as the networks of ImageNet have; ours."""
MOST_WEIGHTS = 50_000_000
"""A projector of more is not proposed; ours."""
EMBEDDING = ("cckd", "compress", "embedding_mse", "neighbour_correlation", "pkt", "rkd")
"""Losses of the last vector, as RepDistiller feeds them (b84f547); the others take maps."""
WHOLE = ("crd", "neighbour_correlation")
"""Losses whose channels are all the numbers of a sample."""
APART = {
    "iusp": "it compares the frames of an utterance",
    "ft": "its paraphraser is trained in a stage of its own",
    "sskd": "it compares rotated views, which the system of that name makes",
}
"""Losses that the default system can call, but that mean something beside others only."""
WEIGHTS = {
    "kd": (0.9, "the recipes, beside a task weight of 0.1"),
    "nst": (50.0, "authors, RepDistiller"),
    "pkt": (30000.0, "RepDistiller"),
    "sp": (3000.0, "RepDistiller and the recipes"),
}
"""Weights of the terms, and their sources; 1, ours, for a loss not named."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A place in the student and one in the teacher that are compared."""

    student: Place
    teacher: Place


@dataclass(frozen=True, slots=True)
class Proposal:
    """A loss with its taps, or the reason why it cannot be used.

    Attributes:
        loss: its short name.
        student: taps in the student.
        teacher: taps in the teacher.
        arguments: what was found out for it: widths and shapes.
        parameters: numbers that its projectors learn.
        macs: multiply-accumulates of the loss and its projectors, for one sample.
        note: what lies between the taps, or why it cannot be used.
        fits: whether it can.
    """

    loss: str
    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0
    note: str = ""
    fits: bool = True

    @property
    def weight(self) -> float:
        """Of its term, as the recipes of this repository have it."""
        return WEIGHTS.get(self.loss, (1.0, "ours"))[0]

    @property
    def yaml(self) -> str:
        """The term as a recipe writes it; widths are filled in when it is built."""
        parts = [f"loss: {self.loss}", f"weight: {self.weight:g}"]
        for side, paths in (("student", self.student), ("teacher", self.teacher)):
            texts = ", ".join(p if re.fullmatch(PLAIN, p) else f"'{p}'" for p in paths)
            parts += [f"{side}: {texts if len(paths) == 1 else f'[{texts}]'}"] if paths else []
        return "{" + ", ".join(parts) + "}"

    def term(self) -> Term:
        """The term as an object, with a fresh loss."""
        loss = losses_by_name()[self.loss](**self.arguments)
        return Term(loss, self.weight, self.student or None, self.teacher or None)


@dataclass(frozen=True, slots=True)
class Plan:
    """What two networks have in common.

    Attributes:
        student: the student's stages.
        teacher: the teacher's stages.
        pairs: stages that are compared, shallow to deep.
        heads: what the two classifiers read, if both are vectors.
        proposals: every loss that was asked about.
        chosen: the proposals of the default, ``"auto"``.
        terms: the same as terms; each is a new object with a new loss in every plan.
    """

    student: Anatomy
    teacher: Anatomy
    pairs: tuple[Pair, ...]
    heads: Pair | None
    proposals: tuple[Proposal, ...]
    chosen: tuple[Proposal, ...]
    terms: tuple[Term, ...]

    @property
    def yaml(self) -> str:
        """The default proposal as lines of a recipe."""
        return "\n".join(["terms:", *(f"  - {proposal.yaml}" for proposal in self.chosen)])

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line on each term of the default."""
        why = {
            "kd": "kd: both networks give the same classes, so the student also learns from the "
            "teacher's probabilities",
            "multilabel_kd": "multilabel_kd: both networks tell the same tags, so the student also "
            "learns from the teacher's probability of each",
            "sp": "sp: which samples of a batch are alike, at the last pair of stages; it needs no "
            "projector whatever their shapes",
        }
        return tuple(
            f"{why[p.loss]} (weight {p.weight:g}: {WEIGHTS.get(p.loss, (1.0, 'ours'))[1]})."
            for p in self.chosen
        )

    def __str__(self) -> str:
        pairs = [f"  {p.student.path} – {p.teacher.path}" for p in self.pairs]
        heads = [f"  {self.heads.student.path} – {self.heads.teacher.path}"] if self.heads else []
        parts = [f"student {self.student}", f"teacher {self.teacher}"]
        parts += ["\n".join(["pairs:", *pairs, *heads]), self.yaml]
        return "\n\n".join(parts)


def plan(
    student: nn.Module,
    teacher: nn.Module,
    sample: Any,
    *,
    task: Task | None = None,
    losses: Sequence[str] | None = None,
) -> Plan:
    """Propose taps and terms for two networks.

    Stages are paired from the deepest: the last with the last, the others by resolution, each with
    the nearest (at most a factor of 2 apart); a network of blocks of one resolution, such as a ViT,
    or of vectors is paired by depth, which is counted in multiply-accumulates.

    Args:
        student: any network.
        teacher: any network; both are left as they are.
        sample: a batch that both take, (batch, channels, height, width), (batch, channels, length)
            or (batch, numbers); with a ``task``, its prepared batch.
        task: how the networks are called; default: ``network(sample)``, which gives logits or a
            record with the attribute ``logits``.
        losses: short names of the losses to ask about; default: all that read taps.

    Raises:
        RecipeError: a network that cannot run on the sample, or two with nothing to compare; the
            error holds their stages.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> found = plan(net, net, torch.zeros(2, 4))
    >>> [(pair.student.path, pair.teacher.path) for pair in found.pairs]
    [('1', '1')]
    >>> [(term.loss.name, term.student) for term in found.terms]
    [('kd', None), ('sp', ('1',))]
    """
    runs = {"student": _runner(student, sample, task), "teacher": _runner(teacher, sample, task)}
    mine, theirs = (
        _examined(who, network, runs[who])
        for who, network in (("student", student), ("teacher", teacher))
    )
    with undisturbed(student):
        logits = runs["student"]()
    if task is not None and logits.ndim != 2:
        raise RecipeError(
            "The plan reads networks of one input that give logits or an embedding, (batch, "
            f"numbers), but the student gives {tuple(logits.shape)}; write the terms by hand."
        )
    pairs = _pairs(mine, theirs)
    if not pairs:
        raise RecipeError(
            "The plan finds no places in the two networks to compare, since one has no module "
            "between its input and its logits that gives one tensor a forward; write the terms by "
            f"hand.\n\nstudent {mine}\n\nteacher {theirs}"
        )
    heads = Pair(mine.head, theirs.head) if mine.head and theirs.head else None
    features = [
        _read(network, runs[who], [getattr(p, who) for p in [*pairs, *([heads] if heads else [])]])
        for who, network in (("student", student), ("teacher", teacher))
    ]
    trial = _Trial(pairs, heads, features[0], features[1])
    with torch.random.fork_rng(devices=[]):
        proposals = [trial(name) for name in (_readers() if losses is None else losses)]
        default = trial("sp")
        answers = _answers(task, sample, logits) if mine.classes == theirs.classes else ()
        chosen = [*map(Proposal, answers), *([default] if default.fits else [])]
        terms = tuple(proposal.term() for proposal in chosen)
    return Plan(mine, theirs, pairs, heads, tuple(proposals), tuple(chosen), terms)


def _answers(task: Task | None, sample: Any, logits: Tensor) -> tuple[str, ...]:
    """The loss of what two networks of as many outputs say; none of embeddings."""
    labels = sample.get("labels") if isinstance(sample, Mapping) else None
    kind = "class" if task is None else answer_kind(task, labels, logits)
    return {"class": ("kd",), "tags": ("multilabel_kd",), None: ()}[kind]


def lacks_widths(loss: Callable[..., Any], given: Mapping[str, Any]) -> bool:
    """Whether a loss has widths or shapes of features that only the networks can tell."""
    accepted = accepted_names(loss)
    names = {f"{who}_{what}" for who in ("student", "teacher") for what in ("channels", "shape")}
    return any(
        name not in given and (accepted[name] or name.endswith("shape"))
        for name in names & accepted.keys()
    )


def fill_widths(
    loss: Callable[..., Any],
    given: Mapping[str, Any],
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
) -> dict[str, Any]:
    """The widths and shapes that a loss needs to build its projectors and was not given.

    Raises:
        RecipeError: pairs of other widths for a loss that has one projector.
    """
    accepted = accepted_names(loss)
    features = {"student": student_features, "teacher": teacher_features}
    found: dict[str, Any] = {}
    for who, tensors in features.items():
        name = f"{who}_channels"
        if accepted.get(name) and name not in given:
            whole = getattr(loss, "name", None) in WHOLE
            widths = [math.prod(x.shape[1:]) if whole else x.shape[1] for x in tensors]
            found[name] = widths if _takes_lists(loss) else _one(loss, who, widths)
    shapes = [f"{who}_shape" for who in features]
    if set(shapes) <= accepted.keys() and not set(shapes) & given.keys():
        sizes = {who: [tuple(x.shape[1:]) for x in tensors] for who, tensors in features.items()}
        if sizes["student"] != sizes["teacher"]:
            found |= {f"{who}_shape": _one(loss, who, sizes[who]) for who in features}
    return found


def _one(loss: Any, who: str, widths: list[Any]) -> Any:
    if len(set(widths)) > 1:
        raise RecipeError(
            f"The loss {getattr(loss, 'name', loss)!r} has one projector, but the {who}'s taps "
            f"have the widths {', '.join(map(str, widths))}; write one term for each pair."
        )
    return widths[0]


class _Trial:
    """Runs losses on what the taps gave."""

    def __init__(
        self, pairs: Sequence[Pair], heads: Pair | None,
        mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.pairs, self.heads, self.mine, self.theirs = pairs, heads, mine, theirs

    def __call__(self, name: str) -> Proposal:
        """The first of the places that suit a loss where it runs, or why it does not at the first.

        Raises:
            RecipeError: a loss that reads no taps, or more than taps.
        """
        loss = losses_by_name().get(name)
        if loss is None or loss.name not in _readers():
            raise RecipeError(
                f"The plan has no taps for the loss {name!r}; it can place {', '.join(_readers())}."
            )
        if loss.name in APART:
            return Proposal(loss.name, note=APART[loss.name], fits=False)
        tried = [self._attempt(loss, *places) for places in self._places(loss)]
        return next((proposal for proposal in tried if proposal.fits), tried[0])

    def _places(self, loss: Any) -> list[tuple[Sequence[Pair], bool]]:
        """Pairs to try in order, and whether they are read as maps."""
        pairs = self.pairs if _takes_lists(loss) else self.pairs[-1:]
        heads = [([self.heads], False)] if self.heads else []
        maps = loss.family == "feature"  # tokens have no channels for it; relations need none
        stages = [(pairs, maps), (pairs, not maps)]
        return [*heads, *stages] if loss.name in EMBEDDING else [*stages, *heads]

    def _attempt(self, loss: Any, pairs: Sequence[Pair], as_map: bool) -> Proposal:
        student = tuple(p.student.as_map if as_map else p.student.path for p in pairs)
        teacher = tuple(p.teacher.as_map if as_map else p.teacher.path for p in pairs)
        mine, theirs = ([self.mine[p] for p in student], [self.theirs[p] for p in teacher])
        try:
            arguments = fill_widths(loss, {}, mine, theirs)
            with torch.device("meta"):
                size = sum(weight.numel() for weight in loss(**arguments).parameters())
            if size > MOST_WEIGHTS:
                raise RecipeError(
                    f"its projector would have {size:,} weights; take taps of nearer sizes."
                )
            built = loss(**arguments).eval()
            macs = _macs(partial(_call, built, mine, theirs)) // len(mine[0])
        except (CongenerError, ValueError) as error:
            return Proposal(loss.name, student, teacher, note=_short(error), fits=False)
        note = _note([*student, *teacher], mine[-1], theirs[-1], size)
        return Proposal(loss.name, student, teacher, arguments, size, macs, note)


def _call(loss: nn.Module, mine: list[Tensor], theirs: list[Tensor]) -> None:
    """Run a loss; a value that is not finite is no loss."""
    lists = {"student_features": mine, "teacher_features": theirs}
    pairs = [lists] if _takes_lists(type(loss)) else [
        {"student_feature": s, "teacher_feature": t} for s, t in zip(mine, theirs, strict=True)
    ]  # fmt: skip
    for pair in pairs:
        if not torch.isfinite(loss(**pair)):
            raise RecipeError("its value on the sample is not finite.")


def _macs(run: Callable[[], None]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops()) // 2


def _note(taps: Sequence[str], mine: Tensor, theirs: Tensor, size: int) -> str:
    """What lies between the taps, in words."""
    shapes = [" × ".join(map(str, x.shape[1:])) for x in (mine, theirs)]
    words = [f"projector {shapes[0]} → {shapes[1]}"] if size else []
    if any(re.search(SIZE, tap) for tap in taps):
        words.append("tokens or channels-last read as maps")
    if not size and mine.dim() == theirs.dim() == 4 and mine.shape[2:] != theirs.shape[2:]:
        words.append("sizes differ: flattened or pooled by the loss")
    return ", ".join(words) or "nothing between the taps"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0]


def _readers() -> list[str]:
    """Losses that the default system can feed from taps alone."""
    found = []
    for loss in set(losses_by_name().values()):
        words = inspect.signature(loss.forward).parameters.values()
        needed = {word.name for word in words if word.default is word.empty} - {"self"}
        if needed <= WORDS and any("feature" in word for word in needed):
            found.append(str(loss.name))
    return sorted(found)


def _takes_lists(loss: Any) -> bool:
    return "student_features" in inspect.signature(loss.forward).parameters


def _runner(network: nn.Module, sample: Any, task: Task | None) -> Callable[[], Tensor]:
    """Calls a network on the sample, on its device, and returns the logits."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    batch = {"image": sample} if isinstance(sample, Tensor) else dict(sample)
    batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def run() -> Tensor:
        result = network(batch["image"]) if task is None else task.call(network, batch)
        if task is not None:
            return task.logits(result)
        logits = result if isinstance(result, Tensor) else getattr(result, "logits", None)
        if not isinstance(logits, Tensor):
            raise RecipeError(
                f"{type(network).__name__} gives a {type(result).__name__}; expected a tensor of "
                "logits, or a record with the attribute 'logits'."
            )
        return logits

    return run


def _examined(who: str, network: nn.Module, run: Callable[[], Tensor]) -> Anatomy:
    """The network's anatomy; what it cannot run on is told in one sentence."""
    try:
        return dissect(network, run)
    except CongenerError:
        raise
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise RecipeError(
            f"The {who}, {type(bare(network)).__name__}, cannot run on the sample ({reason}); give "
            "one of the shape that it takes."
        ) from error


def _read(
    network: nn.Module, run: Callable[[], Tensor], places: Sequence[Place]
) -> dict[str, Tensor]:
    """What the taps give, by the rules of :class:`congener.Taps`."""
    paths = {path for place in places for path in (place.path, place.as_map)}
    with undisturbed(network), Taps(network, sorted(paths)) as taps:
        return {path: tensor.cpu() for path, tensor in taps(run)[1].items()}


def _pairs(mine: Anatomy, theirs: Anatomy) -> tuple[Pair, ...]:
    """Stages that belong together, shallow to deep."""
    if not mine.stages or not theirs.stages:
        return ()
    if mine.isotropic or theirs.isotropic or len(_axes(mine)) != len(_axes(theirs)):
        return _by_depth(mine, theirs)
    pairs = [Pair(mine.stages[-1], theirs.stages[-1])]
    left = list(theirs.stages[:-1])
    for stage in reversed(mine.stages[:-1]):
        near = min(reversed(left), key=lambda place: _ratio(stage, place), default=None)
        if near is not None and _ratio(stage, near) <= math.log(2) + 1e-9:
            pairs.append(Pair(stage, near))
            left = left[: left.index(near)]
    return tuple(reversed(pairs[:MOST_PAIRS]))


def _axes(anatomy: Anatomy) -> tuple[int, ...]:
    return anatomy.stages[-1].size


def _ratio(first: Place, second: Place) -> float:
    """How far two resolutions are apart: the logarithm of the ratio of their sides."""
    axes = max(len(first.size), 1)
    return abs(math.log(math.prod(first.size) / math.prod(second.size))) / axes


def _by_depth(mine: Anatomy, theirs: Anatomy) -> tuple[Pair, ...]:
    """Pairs at the depths of the stages of the one network that has any, else evenly spaced."""
    count = min(len(mine.stages), len(theirs.stages), MOST_PAIRS)
    staged = next((a for a in (mine, theirs) if not a.isotropic), None)
    depths = [k / count for k in range(1, count + 1)]
    if staged is not None:
        depths = [stage.depth for stage in staged.stages[-count:]]
    return tuple(map(Pair, _at(mine.stages, depths), _at(theirs.stages, depths)))


def _at(stages: Sequence[Place], depths: Sequence[float]) -> list[Place]:
    """The stage nearest to each depth, each once and in order; the last is the last."""
    chosen = [len(stages) - 1]
    for left in range(len(depths) - 1, 0, -1):
        free = range(left - 1, chosen[-1])
        chosen.append(min(free, key=lambda i: (abs(stages[i].depth - depths[left - 1]), -i)))
    return [stages[i] for i in reversed(chosen)]
