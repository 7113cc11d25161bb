"""The pictures that detection adds to a report: what is found, where networks look, attacks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib as mpl
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import ImageFont
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision.utils import draw_bounding_boxes

from congener.ops.adversarial import Attack, attacked
from congener.ops.boxes import box_overlaps
from congener.taps import still
from congener.types import Batch, Exhibit, Panel

if TYPE_CHECKING:
    from .task import Detection

__all__ = ["adversarial", "detections"]

SHOWN = 4
"""How many images are shown."""
ASKED, BLOCK, ENOUGH = 256, 64, 6
"""Among how many test images they are looked for, how many are read at once, and of how many
objects on an image more would be hard to tell apart."""
LEAST_SCORE, LEAST_OVERLAP = 0.3, 0.5
"""Of a box that is shown, and of one that is right. Ours; the overlap is that of AP50."""
SIDE, LINE, LETTERS = 384, 3, 22
"""Pixels of a picture's longer side, of a line, of the height of letters."""
TRUE, RIGHT, WRONG, NEITHER = "#f0e442", "#3cc79a", "#ff8a3d", "#c8c8c8"
"""Colours of boxes, which are told apart with any colour vision."""


class Boxes(NamedTuple):
    """Some boxes of one image, in its pixels."""

    boxes: Tensor  # (boxes, 4)
    labels: Tensor  # (boxes,)
    scores: Tensor  # (boxes,), 1 of true ones


class Scene(NamedTuple):
    """An image to show: as a prepared batch of one, as pixels, and what is truly there."""

    batch: Batch
    picture: Tensor  # (3, height, width), uint8
    scale: float  # pixels of the picture for one of the image
    truth: Boxes
    crowds: Boxes


def detections(
    task: "Detection", networks: Mapping[str, nn.Module], _taps: Mapping[str, str | None]
) -> Sequence[Exhibit]:
    """What each network finds on some test images, and where each looks on the first of them.

    Of the first 256 annotated test images those with most objects are shown, of these (six count
    as more) those whose sizes differ most.

    Args:
        task: whose test set it is.
        networks: by name, as in the report.

    Returns:
        Two exhibits, with a ``teacher`` a third, of its adversarial images; none where no image is
        annotated.
    """
    scenes = [_scene(task, place) for place in _telling(task)]
    if not scenes or not networks:
        return ()
    names = task.categories
    found = {name: [_panel(_found(task, net, s), s, names) for s in scenes]
             for name, net in networks.items()}  # fmt: skip
    true = {"truth": [_true_panel(scene, names) for scene in scenes]}
    looks = {name: _attention(task, net, scenes[0]) for name, net in networks.items()}
    shown = [
        Exhibit(
            "What is found",
            "Test images with many objects of differing size: first the truth, then what each "
            f"network finds with a score of {LEAST_SCORE} or more. Green boxes are right, of the "
            f"right class with an overlap (IoU) of {LEAST_OVERLAP} or more; orange ones are "
            "wrong, grey ones lie in a region that does not count.",
            true | found,
        ),
        Exhibit(
            "Where each network looks",
            "For each level of the pyramid, the mean magnitude over the channels at each place of "
            "an image (the spatial attention of FGD), laid over it with the true boxes: "
            "bright is strong. Each picture has a scale of its own.",
            {"truth": true["truth"][:1]} | looks,
        ),
    ]
    if "teacher" in networks:
        shown.append(_attack(task, networks["teacher"], scenes))
    return shown


def _attack(task: "Detection", teacher: nn.Module, scenes: Sequence[Scene]) -> Exhibit:
    """What IKD's attack adds to the images that are shown."""
    batches = [_here(teacher, scene.batch) for scene in scenes]

    def harder(batch: Batch) -> Tensor:
        def loss(images: Tensor) -> Tensor:
            said = task.logits(task.call(teacher, batch | {"image": images}))
            return task.class_loss(said, batch)

        return attacked(batch["image"], loss, batch["index"], seed=0, settings=Attack())

    with still(teacher):
        after = torch.cat([harder(batch) for batch in batches])
    before = torch.cat([batch["image"] for batch in batches])
    mean, std = task.normalisation or ((0.0,), (1.0,))
    return adversarial(before, after, mean=mean, std=std)


def adversarial(
    images: Tensor, copies: Tensor, *, mean: Sequence[float], std: Sequence[float]
) -> Exhibit:
    """Images, their adversarial copies, and what was added to them, magnified.

    Args:
        images: normalised, (images, 3, height, width).
        copies: the same after the attack.
        mean: by which each channel was normalised.
        std: likewise.
    """
    images, copies = images[:SHOWN], copies[:SHOWN]
    before, after = (_pixels(each, mean, std) for each in (images, copies))
    deviation = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)
    added = (copies - images).detach().float().cpu() * deviation
    most = max(float(added.abs().max()), 1 / 512)
    # The largest power of two with which the largest difference stays within the colours.
    factor = 2.0 ** max(0, math.floor(math.log2(0.5 / most)))
    seen = (0.5 + factor * added).clamp(0, 1)
    words = [f"at most {255 * float(each.abs().max()):.1f} of 255 levels" for each in added]
    nothing = [""] * len(words)
    return Exhibit(
        "What the attack adds",
        "Images, their adversarial copies, on which the teacher tells classes worse (the attack of "
        f"IKD), and the difference of the two, magnified {factor:g} times around grey.",
        {
            "image": _panels(before, nothing),
            "attacked": _panels(after, nothing),
            f"difference × {factor:g}": _panels(seen, words),
        },
    )


def _panels(pictures: Tensor, words: Sequence[str]) -> list[Panel]:
    return [
        Panel(caption, _shown(_enlarged(picture)[0]), "scene")
        for picture, caption in zip(pictures, words, strict=True)
    ]


def _telling(task: "Detection") -> list[int]:
    """Positions in the test set of the images to show."""
    test = task.splits["test"]
    some = Subset(test, range(min(ASKED, len(test))))  # type: ignore[arg-type]
    ranks: list[tuple[int, float, int]] = []
    for batch in DataLoader(some, BLOCK, collate_fn=task.collate):
        sides = batch["boxes"][..., 2:] - batch["boxes"][..., :2]
        areas = sides.prod(-1).clamp(min=1e-6).log()
        real = (batch["labels"] >= 0) & ~batch["crowd"]
        annotated = (batch["labels"] != task.ignore_label).all(1)
        spread = areas.where(real, -99).amax(1) - areas.where(real, 99).amin(1)
        values = zip(real.sum(1).tolist(), spread.tolist(), annotated.tolist(), strict=True)
        first = len(ranks)
        for place, (count, differ, known) in enumerate(values):
            ranks.append((-min(count, ENOUGH) if known else 1, -differ, first + place))
    return [place for count, _, place in sorted(ranks)[:SHOWN] if count <= 0]


def _scene(task: "Detection", place: int) -> Scene:
    (raw,) = DataLoader(Subset(task.splits["test"], [place]), 1, collate_fn=task.collate)
    batch = task.prepare(raw, train=False, seed=0, epoch=0)
    mean, std = task.normalisation or ((0.0,), (1.0,))
    picture, scale = _enlarged(_pixels(batch["image"], mean, std)[0])
    boxes, labels, crowd = (batch[name][0] for name in ("boxes", "labels", "crowd"))
    parts = [
        Boxes(boxes[rows], labels[rows], torch.ones(int(rows.sum())))
        for rows in ((labels >= 0) & ~crowd, (labels >= 0) & crowd)
    ]
    return Scene(batch, (255 * picture).round().byte(), scale, *parts)


def _pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images as pixels in [0, 1], (images, 3, height, width)."""
    centre, width = (torch.tensor(each, dtype=torch.float32).view(-1, 1, 1) for each in (mean, std))
    return (images.detach().float().cpu() * width + centre).clamp(0, 1)


def _enlarged(image: Tensor) -> tuple[Tensor, float]:
    """Pixels, (3, height, width), each as a square of some; a large image becomes smaller."""
    longer = max(image.shape[1:])
    factor = SIDE // longer
    if factor:
        return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2), float(factor)
    size = [max(1, round(side * SIDE / longer)) for side in image.shape[1:]]
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    return small.clamp(0, 1), SIDE / longer


def _shown(picture: Tensor) -> Tensor:
    """Pixels as a panel has them, (height, width, 3), uint8."""
    levels = picture if picture.dtype == torch.uint8 else (255 * picture).round().byte()
    return levels.permute(1, 2, 0).contiguous()


def _here(network: nn.Module, batch: Batch) -> Batch:
    """A batch where the network is."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def _found(task: "Detection", network: nn.Module, scene: Scene) -> Boxes:
    """What a network finds with a score that is shown, best first."""
    with still(network), torch.no_grad():
        (answer,) = task.respond(network, _here(network, scene.batch))
    boxes, labels, scores = (answer[name].cpu() for name in Boxes._fields)
    order = scores.argsort(descending=True, stable=True)
    kept = order[scores[order] >= LEAST_SCORE]
    return Boxes(boxes[kept].float(), labels[kept], scores[kept].float())


def _right(found: Boxes, truth: Boxes) -> Tensor:
    """Which boxes are right, (found,): each object is found once, by the best, as in AP50."""
    same = found.labels[:, None] == truth.labels
    overlaps = box_overlaps(found.boxes, truth.boxes).where(same, 0)
    right = torch.zeros(len(found.labels), dtype=torch.bool)
    for row in range(len(right) if len(truth.labels) else 0):
        overlap, best = overlaps[row].max(0)
        right[row] = overlap >= LEAST_OVERLAP
        if right[row]:
            overlaps[:, best] = 0
    return right


def _uncounted(found: Boxes, crowds: Boxes) -> Tensor:
    """Which boxes lie in a crowd region of their class, by so much of their area, (found,)."""
    low = torch.maximum(found.boxes[:, None, :2], crowds.boxes[:, :2])
    high = torch.minimum(found.boxes[:, None, 2:], crowds.boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1, keepdim=True)
    same = found.labels[:, None] == crowds.labels
    return (same & (shared >= LEAST_OVERLAP * area) & (shared > 0)).any(1)


def _panel(found: Boxes, scene: Scene, names: Sequence[str]) -> Panel:
    right = _right(found, scene.truth)
    neither = _uncounted(found, scene.crowds) & ~right
    colours = [
        RIGHT if good else NEITHER if open_ else WRONG
        for good, open_ in zip(right.tolist(), neither.tolist(), strict=True)
    ]
    there, hits = len(scene.truth.labels), int(right.sum())
    wrong = len(colours) - hits - int(neither.sum())
    caption = f"{hits} of {there} found" + (f", {wrong} wrong" if wrong else "")
    words = [
        f"{names[label]}: {100 * score:.0f}%"
        for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
    ]
    picture = _drawn(scene, found, words, colours)
    return Panel(caption, picture, "scene", hit=hits == there and not wrong)


def _true_panel(scene: Scene, names: Sequence[str]) -> Panel:
    both = Boxes(*(torch.cat(pair) for pair in zip(scene.truth, scene.crowds, strict=True)))
    there, regions = len(scene.truth.labels), len(scene.crowds.labels)
    words = [names[label] for label in both.labels.tolist()]
    picture = _drawn(scene, both, words, [TRUE] * there + [NEITHER] * regions)
    caption = f"{there} object" + "s" * (there != 1)
    return Panel(caption + (f", {regions} uncounted" if regions else ""), picture, "scene")


def _drawn(scene: Scene, found: Boxes, words: Sequence[str], colours: Sequence[str]) -> Tensor:
    """The picture with boxes, and their words above them."""
    boxes = _outlined(scene, found)
    if not len(boxes):
        return _shown(scene.picture)
    width = scene.picture.shape[2]
    file = str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    font = ImageFont.truetype(file, LETTERS)
    lengths = torch.tensor([font.getlength(each) for each in words])
    lines = draw_bounding_boxes(scene.picture, boxes, colors=list(colours), width=LINE)
    boxes[:, 0] = torch.minimum(boxes[:, 0], width - LINE - lengths).clamp(min=0)
    boxes[:, 1] = (boxes[:, 1] - LETTERS - LINE).clamp(min=0)
    picture = draw_bounding_boxes(
        lines, boxes, list(words), colors=list(colours), width=0, font=file, font_size=LETTERS,
        label_colors="black", fill_labels=True,
    )  # fmt: skip
    return _shown(picture)


def _outlined(scene: Scene, found: Boxes) -> Tensor:
    """Boxes in pixels of the picture, (boxes, 4)."""
    height, width = scene.picture.shape[1:]
    edge = torch.tensor([width, height, width, height]) - 1
    return torch.minimum((found.boxes * scene.scale).clamp(min=0), edge)


def _attention(task: "Detection", network: nn.Module, scene: Scene) -> list[Panel]:
    """A panel for each level that has more than one place."""
    with still(network), torch.no_grad():
        maps = task.call(network, _here(network, scene.batch)).maps
    grey = scene.picture.float().mean(0) / 255
    objects = _outlined(scene, scene.truth)
    panels = []
    for each in maps:
        height, width = each.shape[2:]
        if height * width == 1:
            continue
        strength = each[0].float().abs().mean(0).cpu()
        low, high = strength.aminmax()
        heat = (strength - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        laid = F.interpolate(heat[None, None], grey.shape, mode="nearest-exact")[0, 0]
        colour = torch.from_numpy(colormaps["inferno"](laid.numpy())[..., :3]).float()
        picture = (0.6 * colour + 0.4 * grey[..., None]).movedim(2, 0)
        if len(objects):
            picture = draw_bounding_boxes(picture, objects, colors="white")
        panels.append(Panel(f"{height} × {width}", _shown(picture), "scene"))
    return panels
