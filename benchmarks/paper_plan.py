"""A plan on paper: what a store costs for 1.3 M and 100 M images and for 100 B tokens.

Everything is arithmetic on the assumptions below; change a line, run ``python benchmarks/page.py``,
and read ``docs/performance.md``. Bytes of a sample are what the store itself says they are.
"""

import math
from dataclasses import dataclass

from congener.teachers.formats import Field

HOUR, DAY = 3600.0, 86400.0


@dataclass(frozen=True)
class Assumption:
    """A number that is not ours to know."""

    what: str
    value: float
    unit: str
    why: str


# What a machine does and costs. None of these was measured here; put in your own.
PEAK = Assumption("peak of an accelerator, bf16", 1e15, "FLOP/s", "about an H100's data sheet")
SHARE = Assumption("share of the peak that is reached", 0.35, "", "assumed")
RANK_HOUR = Assumption("an accelerator for an hour", 3.0, "$", "assumed")
DISK_MONTH = Assumption("a GB on disk for a month", 0.1, "$", "assumed")
DISK = Assumption("read from a disk, for each rank", 1e9, "B/s", "assumed: 8 ranks on 8 GB/s")
MONTHS = Assumption("months for which a store is kept", 1.0, "months", "assumed")
DAYS = Assumption("days that training may take", 7.0, "days", "assumed")
BACKWARD = Assumption("student step in forward passes", 3.0, "", "forward, and backward as two")
ASSUMPTIONS = [PEAK, SHARE, RANK_HOUR, DISK_MONTH, DISK, MONTHS, DAYS, BACKWARD]


@dataclass(frozen=True)
class Plan:
    """A training that might keep what its teacher says.

    Attributes:
        name: for the tables.
        samples: images, or tokens.
        epochs: passes over them.
        views: views of each sample that are kept; the teacher runs for no more.
        teacher: floating-point operations of a forward of a sample.
        student: likewise.
        fields: what may be kept, by name.
        networks: which networks these are, in words.
    """

    name: str
    samples: float
    epochs: int
    views: int
    teacher: float
    student: float
    fields: dict[str, Field]
    networks: str


def images(classes: int, width: int, places: int, *, largest: int = 64) -> dict[str, Field]:
    """The formats that a store of images may have."""
    return {
        "logits, fp32": Field("logits", (classes,), "float32", "fp32"),
        "logits, fp16": Field("logits", (classes,), "float32", "fp16"),
        f"logits, top {largest}, fp16": Field("logits", (classes,), "float32", "fp16", largest),
        "pooled feature, fp16": Field("pool", (width,), "float32", "fp16"),
        "last map, fp16": Field("map", (width, places), "float32", "fp16"),
    }


PLANS = [
    Plan("1.3 M images", 1.3e6, 100, 8, 8.2e9, 3.6e9, images(1000, 2048, 49),
         "ResNet-50 to ResNet-18 at 224 pixels: 4.1 and 1.8 G multiply-adds, 2048 x 7 x 7"),
    Plan("100 M images", 1e8, 10, 1, 1.23e11, 9.2e9, images(21_841, 1024, 196),
         "ViT-L/16 to ViT-S/16 at 224 pixels: 61.6 and 4.6 G multiply-adds, 196 x 1024"),
    Plan("100 B tokens", 1e11, 1, 1, 2 * 8e9, 2 * 1e9, {
            "logits, fp32": Field("logits", (128_256,), "float32", "fp32"),
            "logits, fp16": Field("logits", (128_256,), "float32", "fp16"),
            "logits, top 64, fp16": Field("logits", (128_256,), "float32", "fp16", 64),
            "last hidden state, fp16": Field("hidden", (4096,), "float32", "fp16"),
         }, "8 B to 1 B parameters, 2 operations a parameter and token, 128,256 words"),
]  # fmt: skip


def bytes_of(field: Field) -> int:
    """Of one sample in one view, with its witness."""
    return sum(part.nbytes for part in field.parts) + 4


def speed() -> float:
    """What a rank computes, FLOP/s."""
    return PEAK.value * SHARE.value


def hours(operations: float) -> float:
    """Of one rank."""
    return operations / speed() / HOUR


def rate(plan: Plan) -> float:
    """Samples a second that a rank trains on, when the teacher does not run."""
    return speed() / (BACKWARD.value * plan.student)


def ranks(plan: Plan) -> int:
    """That train in the given time, when the teacher does not run."""
    student = BACKWARD.value * plan.student * plan.samples * plan.epochs
    return math.ceil(hours(student) / (DAYS.value * DAY / HOUR))


def tables() -> str:
    """The plan in Markdown."""
    return "\n\n".join([_assumptions(), _trainings(), *(_formats(plan) for plan in PLANS)])


def _assumptions() -> str:
    rows = [f"| {a.what} | {a.value:g} {a.unit} | {a.why} |" for a in ASSUMPTIONS]
    rows += [
        f"| {plan.name} | {plan.epochs} epochs, {plan.views} views | {plan.networks} |"
        for plan in PLANS
    ]
    return "\n".join(["| assumption | value | why |", "|---|---|---|", *rows])


def _trainings() -> str:
    head = (
        "| training | teacher live, rank hours a run | teacher once a view | student | teacher's "
        "share of a live run | ranks for the student in the given days |\n|---|---|---|---|---|---|"
    )
    rows = []
    for plan in PLANS:
        live, once, student = costs(plan)
        rows.append(
            f"| {plan.name} | {live:,.1f} | {once:,.1f} | {student:,.1f} | "
            f"{live / (live + student):.0%} | {ranks(plan)} |"
        )
    return "\n".join([head, *rows])


def costs(plan: Plan) -> tuple[float, float, float]:
    """Rank hours: of the live teacher in a run, of the teacher once a view, of the student."""
    return (
        hours(plan.samples * plan.epochs * plan.teacher),
        hours(plan.samples * plan.views * plan.teacher),
        hours(plan.samples * plan.epochs * plan.student * BACKWARD.value),
    )


def pays_from(plan: Plan, field: Field) -> int | None:
    """The number of runs (seeds, students, searches) from which keeping is cheaper; or never.

    Live, a run costs its teacher. Kept, the first costs the teacher once a view and the disk, and
    each the time that its ranks wait for the disk.
    """
    live, once, student = (RANK_HOUR.value * each for each in costs(plan))
    disk = bytes_of(field) * plan.samples * plan.views / 1e9 * DISK_MONTH.value * MONTHS.value
    waits = max(0.0, demand(plan, field) / DISK.value - 1) * student
    return math.ceil((once + disk) / (live - waits)) if live > waits else None


def demand(plan: Plan, field: Field) -> float:
    """Bytes a second that a rank reads, when it never waits."""
    return bytes_of(field) * rate(plan)


def _formats(plan: Plan) -> str:
    head = (
        f"**{plan.name}**: {plan.networks}. A rank trains on {rate(plan):,.0f} a second; the live "
        f"teacher of a run costs ${costs(plan)[0] * RANK_HOUR.value:,.2f}.\n\n"
        "| kept | bytes a sample and view | store | a rank reads | of its disk | a live teacher is "
        "faster than a disk below | the disk, $ | keeping pays from |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    rows = []
    for name, field in plan.fields.items():
        total = bytes_of(field) * plan.samples * plan.views
        runs = pays_from(plan, field)
        rows.append(
            f"| {name} | {bytes_of(field):,} | {_size(total)} | {_size(demand(plan, field))}/s | "
            f"{demand(plan, field) / DISK.value:.0%} | "
            f"{_size(bytes_of(field) * speed() / plan.teacher)}/s | "
            f"{total / 1e9 * DISK_MONTH.value * MONTHS.value:,.2f} | "
            f"{'never' if runs is None else f'{runs:,} run' + 's' * (runs > 1)} |"
        )
    return "\n".join([head, *rows])


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"
