"""``congener plan``: what two networks have in common, and the lines of a recipe for it."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from congener.anatomy import Anatomy
    from congener.planning import Plan

__all__ = ["plan"]

SAMPLES = 4


def plan(
    student: Annotated[str, typer.Option(help="A network's name, as timm:resnet18.")],
    teacher: Annotated[str, typer.Option(help="Likewise.")],
    size: Annotated[int, typer.Option(min=1, help="Height and width of the images.")] = 224,
    channels: Annotated[int, typer.Option(min=1, help="Channels of the images.")] = 3,
    classes: Annotated[int, typer.Option(min=2, help="Classes to tell apart.")] = 10,
) -> None:
    """Propose taps, losses and projectors for two networks, from one batch of noise."""
    import torch

    from congener.planning import plan as make_plan
    from congener.tasks.image_classification import models

    shape = (channels, size, size)
    given = {
        "num_classes": classes, "in_channels": channels, "input_shape": shape,
        "in_features": channels * size * size,
    }  # fmt: skip
    torch.manual_seed(0)
    built = [models.build(name, {}, given) for name in (student, teacher)]
    _show(make_plan(built[0], built[1], torch.randn(SAMPLES, *shape)))


def _show(found: "Plan") -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(_stages("student", found.student), _stages("teacher", found.teacher))
    console.print("[bold]pairs[/]")
    for pair in [*found.pairs, *([found.heads] if found.heads else [])]:
        console.print(f"  {escape(pair.student.path)}  –  {escape(pair.teacher.path)}")
    console.print("\n[bold]losses that read taps[/]")
    for proposal in found.proposals:
        if proposal.fits:
            cost = f"{_count(proposal.parameters)} weights, {_count(proposal.macs)} MACs a sample"
            console.print(f"  [bold]{proposal.loss}[/]  {cost}; {escape(proposal.note)}")
            console.print(f"    - {escape(proposal.yaml)}")
        else:
            console.print(f"  [dim]{proposal.loss}: not here: {escape(proposal.note)}[/]")
    console.print("\n[bold]proposed[/]")
    for reason in found.reasons:
        console.print(f"  {escape(reason)}")
    console.print(escape(found.yaml))


def _stages(who: str, anatomy: "Anatomy") -> Table:
    size = f"{_count(anatomy.parameters)} weights, {_count(anatomy.macs)} MACs a sample"
    table = Table(
        "tap", "kind", "shape", "depth", box=box.SIMPLE_HEAD, pad_edge=False,
        title=f"{who}: {escape(anatomy.name)}, {size}", title_justify="left",
    )  # fmt: skip
    for place in [*anatomy.stages, *([anatomy.head] if anatomy.head else [])]:
        table.add_row(*(escape(cell) for cell in place.row()))
    return table


def _count(number: int) -> str:
    """A number with a unit, as in 11.7 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return str(number)
