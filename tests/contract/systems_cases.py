"""The table of the public systems. What is not listed here fails the build."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from tests.systems.scenes import LEVEL, TinyScenes, detecting_teacher, detector
from tests.systems.texts import TextTask, writer, writing_teacher
from tests.systems.tiny import (
    TinyPairTask,
    TinyPictureTask,
    TinyTask,
    TinyTextTask,
    TwoViewTask,
    conv_net,
    conv_teacher,
    coupled_net,
    coupled_teacher,
    student_net,
    teacher_net,
    text_net,
    text_teacher,
)
from torch import nn

from congener.losses import (
    AdaINLoss,
    CRDLoss,
    DetectionKDLoss,
    FGFILoss,
    KDLoss,
    MGDLoss,
    MultiLabelKDLoss,
    NDLoss,
    OFDLoss,
    SPLoss,
    SRRLLoss,
)
from congener.system import System
from congener.systems import (
    DML,
    IKD,
    MHKD,
    SKD,
    SSKD,
    STKD,
    BackwardKD,
    Distillation,
    MixKD,
    MMHashing,
    PseudoLabel,
    SimKD,
    TwoViewCSKD,
)
from congener.task import Task
from congener.types import Term


@dataclass(frozen=True)
class SystemCase:
    """One public system in a tiny setting.

    ``build`` makes it from a task, a student and a teacher; ``student`` makes the bare student
    (and takes ``norm=False``), ``teacher`` the untrained teacher. ``figure``: the task's loss among
    its figures. ``ranks``: whether two processes
    train as one does, or only run (what couples samples within a process says so in ``why``), and
    ``rtol`` how nearly: the sign of a gradient, as in an attack, turns rounding into steps.
    """

    covers: tuple[str, ...]
    build: Callable[[Task, nn.Module, nn.Module], System]
    student: Callable[..., nn.Module] = student_net
    teacher: Callable[[], nn.Module] = teacher_net
    task: Callable[..., Task] = TinyTask
    ranks: Literal["exact", "run"] = "exact"
    why: str = ""
    lr: float = 2e-2
    figure: str = "cross_entropy"
    rtol: float = 1e-5


def distillation(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    terms = [Term(KDLoss(temperature=4), 0.5), Term(SPLoss(), 10.0, "hidden", "hidden")]
    return Distillation(student, teacher, terms, task=task, task_weight=0.5)


def alone(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return Distillation(student, None, [], task=task)


def kd_plus_plus(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    terms = [Term(KDLoss(temperature=4), 0.2), Term(NDLoss(), 0.5, "pooled", "pooled")]
    return Distillation(student, teacher, terms, task=task)


def adain_kd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    taps = ("layer1", "layer2")
    return Distillation(student, teacher, [Term(AdaINLoss(), 0.1, taps, taps)], task=task)


def crd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    loss = CRDLoss(16, 24, samples=50, width=16, negatives=16)
    terms = [Term(loss, 0.05, "pooled", "pooled"), Term(KDLoss(temperature=4), 0.2)]
    return Distillation(student, teacher, terms, task=task)


def srrl(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    terms = [Term(SRRLLoss(16, 24), 0.1, "layer2", "layer2")]
    return Distillation(student, teacher, terms, task=task)


def ofd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    layers = ("layer1", "layer2")
    mine = tuple(f"{layer}.{len(getattr(student, layer)) - 2}" for layer in layers)
    term = Term(OFDLoss((8, 16), (12, 24)), 1.0, mine, ("layer1.1", "layer2.1"))
    return Distillation(student, teacher, [term], task=task)


def sskd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    taps = {"student_tap": "pooled", "teacher_tap": "layer2"}
    return SSKD(student, teacher, task=task, **taps, crop=1, head={"steps": 20})


def backward_kd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return BackwardKD(student, teacher, task=task, ascent={"steps": 2}, warm_start=0)


def backward_kd_by_epochs(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    ascent = {"normalise": "l2", "step_size": 0.5}
    return BackwardKD(student, teacher, task=task, ascent=ascent, mode="epoch")


def stkd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return STKD(student, teacher, task=task)


def stkd_of_three(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return STKD(
        student, teacher, task=task, n_mix=3, lambda_per="sample", teacher_target="interpolated",
        add_clean_terms=True,
    )  # fmt: skip


PAIRS = "partners are of the same process' share of the batch, and each process draws its own"


def mhkd(task: Task, student: nn.Module, teacher: nn.Module, regime: Any = "two-step") -> System:
    taps = ("layer1", "layer2")
    return MHKD(
        student, teacher, task=task, student_taps=taps, teacher_taps=taps, width=8, regime=regime
    )


def simkd(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return SimKD(student, teacher, task=task, student_tap="layer2", teacher_tap="layer2")


def dml(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return DML(student, teacher, task=task)


def cskd_two_view(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return TwoViewCSKD(student, teacher, task=task)


def mm_hashing(task: Task, student: nn.Module, teacher: nn.Module, **options: Any) -> System:
    return MMHashing(student, teacher, task=task, **options)


def mixkd(task: Task, student: nn.Module, teacher: nn.Module, **options: Any) -> System:
    return MixKD(student, teacher, task=task, **options)


def skd(task: Task, student: nn.Module, teacher: nn.Module, **options: Any) -> System:
    return SKD(student, teacher, task=task, **options)


def ikd(task: Task, student: nn.Module, teacher: nn.Module, **options: Any) -> System:
    terms = [
        Term(DetectionKDLoss(), 0.5),
        Term(MGDLoss(32, 32), 1.0, LEVEL, LEVEL),
        Term(FGFILoss(32, 32), 1.0, LEVEL, LEVEL),
    ]
    options = {"alpha": 1e-3, "attack": {"steps": 2}} | options
    return IKD(student, teacher, terms, task=task, **options)


def at_regions(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    terms = [
        Term(SPLoss(), 10.0, LEVEL, LEVEL, at="objects"),
        Term(MultiLabelKDLoss(), 0.5, at="proposals"),
    ]
    return Distillation(student, teacher, terms, task=task)


def texts(build: Callable[..., System], *covers: str) -> SystemCase:
    return SystemCase(
        covers, build, student=text_net, teacher=text_teacher, task=TinyTextTask, lr=0.05
    )


def pseudo_label(task: Task, student: nn.Module, teacher: nn.Module) -> System:
    return PseudoLabel(student, teacher, task=task)


def scenes(build: Callable[..., System], *covers: str) -> SystemCase:
    return SystemCase(
        covers, build, student=detector, teacher=detecting_teacher, task=TinyScenes, lr=5e-3,
        figure="loss",
    )  # fmt: skip


def coupled(build: Callable[..., System], *covers: str) -> SystemCase:
    return SystemCase(
        covers, build, student=coupled_net, teacher=coupled_teacher, task=TinyPairTask,
        figure="hashing",
    )  # fmt: skip


SYSTEMS: dict[str, SystemCase] = {
    "cskd, two views": SystemCase(("TwoViewCSKD",), cskd_two_view, task=TwoViewTask),
    "distillation": SystemCase(("Distillation",), distillation),
    "distillation, student alone": SystemCase((), alone),
    "distillation, KD++": SystemCase(
        (),
        kd_plus_plus,
        student=conv_net,
        teacher=conv_teacher,
        task=TinyPictureTask,
        ranks="run",
        why="its projector has dropout, which each process draws",
    ),
    "distillation, KD++ of one width": SystemCase(
        (), kd_plus_plus, student=partial(conv_net, 12), teacher=conv_teacher, task=TinyPictureTask
    ),
    "distillation, adain": SystemCase(
        (), adain_kd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "distillation, crd": SystemCase(
        (), crd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "distillation, srrl": SystemCase(
        (), srrl, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "distillation, ofd": SystemCase(
        (), ofd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "sskd": SystemCase(
        ("SSKD",), sskd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "backward_kd": SystemCase(("BackwardKD",), backward_kd),
    "backward_kd, by epochs": SystemCase((), backward_kd_by_epochs),
    "stkd": SystemCase(("STKD",), stkd, ranks="run", why=PAIRS, lr=0.1),
    "stkd, three images": SystemCase((), stkd_of_three, ranks="run", why=PAIRS, lr=0.1),
    "mhkd": SystemCase(
        ("MHKD",), mhkd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "mhkd, joint": SystemCase(
        (),
        partial(mhkd, regime="joint"),
        student=conv_net,
        teacher=conv_teacher,
        task=TinyPictureTask,
    ),
    "distillation, regions": replace(scenes(at_regions), task=partial(TinyScenes, augment="none")),
    "ikd": scenes(ikd, "IKD"),
    "ikd, online": replace(scenes(partial(ikd, online=True)), rtol=1e-4),
    "pseudo_label": scenes(pseudo_label, "PseudoLabel"),
    "simkd": SystemCase(
        ("SimKD",), simkd, student=conv_net, teacher=conv_teacher, task=TinyPictureTask
    ),
    "dml": SystemCase(("DML",), dml),
    "mixkd": texts(mixkd, "MixKD"),
    "mixkd, with terms": texts(
        partial(mixkd, distance="kl", temperature=2, kd_weight=0.5, mixing={"per": "example"})
    ),
    "mixkd, mixed labels alone": texts(partial(mixkd, alpha_tmkd=0.0)),
    "skd": SystemCase(
        ("SKD",),
        partial(skd, top_k=3, share=0.8, warm_up=0.1),
        student=writer,
        teacher=writing_teacher,
        task=partial(TextTask, digits=2),
        lr=1e-2,
    ),
    "mm_hashing": coupled(mm_hashing, "MMHashing"),
    "mm_hashing, listed pairs": coupled(partial(mm_hashing, sampling="list")),
    "mm_hashing, aligned": coupled(partial(mm_hashing, pairs="aligned", sampling="list")),
}
