"""Detectors: torchvision's own, on any body, so that plain torchvision can load what was trained.

FCOS's head normalises groups of 8 channels, 32 of them at the 256 channels of torchvision, which
at fewer channels keeps 32 groups and there would compute something else.

A network is named after its body; how it detects, its design, is the task's, the same for all
networks of a run. ``__all__`` is the list of the bodies that are no other library's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead

from congener.errors import CongenerError, RecipeError, did_you_mean
from congener.naming import accepted_names, bind, resolve

from . import backbones, two_stage
from .backbones import Maps, Pyramid, small_cnn
from .heads import BinnedRegressionHead

__all__ = ["DESIGNS", "Design", "anchors_of", "build", "small_cnn"]

Design = Literal["fcos", "retinanet", "ssdlite", "faster_rcnn"]
DESIGNS: tuple[Design, ...] = ("fcos", "retinanet", "ssdlite", "faster_rcnn")
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of anchors."""
ANCHOR_SCALE = 4.0
"""Side of the smallest anchors in strides: RetinaNet's in torchvision and in the paper; Faster
R-CNN's has there 8, from stride 4 on, and so the same 32 pixels."""
GROUPS = 32
"""Of the normalisation in torchvision's FCOS head."""
LIBRARIES: dict[str, Callable[..., Maps]] = {
    "timm": backbones.timm_body, "torchvision": backbones.torchvision_body,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Upon:
    """What stands on a body; see :func:`build`."""

    channels: int
    convolutions: int = 4
    extra: bool = False
    bins: int = 0
    box_width: int = 1024

    def __post_init__(self) -> None:
        if min(self.channels, self.convolutions, self.box_width) < 1:
            raise RecipeError(
                f"channels={self.channels}, convolutions={self.convolutions} and "
                f"box_width={self.box_width} of a detector must be 1 or more."
            )
        if self.bins < 0 or self.bins == 1:
            raise RecipeError(f"bins={self.bins} of a detector must be 0, for none, or 2 or more.")


def build(
    name: str, arguments: Mapping[str, Any], *, design: Design, num_classes: int,
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...],
    anchor_scale: float = ANCHOR_SCALE, proposals: int = two_stage.KEPT,
) -> nn.Module:  # fmt: skip
    """A detector on a body.

    Args:
        name: ``small_cnn``, ``torchvision:NAME`` of a residual network, or ``timm:NAME``.
        arguments: of the body, and of the detector: ``channels`` of the pyramid (default: 64 on
            small_cnn, 256 elsewhere; of ``fcos`` a multiple of 32), ``convolutions`` of each
            branch of the head (4), ``extra``, two coarser levels (false), and of ``fcos`` ``bins``
            (0; authors': 17), by which LD compares boxes, see :mod:`.heads`. Of ``faster_rcnn``
            ``convolutions`` (1) are those of the RPN, and ``box_width`` that of the second stage's
            layers (256 on small_cnn, 1024 elsewhere). ``ssdlite`` has no pyramid and takes none.
        design: how it detects.
        num_classes: of objects.
        size: (height, width) of the images.
        mean: of each channel, by which plain torchvision will normalise.
        std: likewise.
        anchor_scale: of ``retinanet`` and ``faster_rcnn``, the side of the smallest anchors in
            strides.
        proposals: of ``faster_rcnn``, from how many of an image the second stage learns.

    Raises:
        RecipeError: an unknown name or argument, or maps that do not fit the images.
    """
    of_detector = accepted_names(_Upon)
    own = {key: value for key, value in arguments.items() if key in of_detector}
    given = {key: value for key, value in arguments.items() if key not in of_detector}
    if design == "ssdlite" and own:
        raise RecipeError(
            f"The design 'ssdlite' has no pyramid and one convolution, and takes no "
            f"{min(own)!r}; remove it."
        )
    for only, key in (("fcos", "bins"), ("faster_rcnn", "box_width")):
        if own.get(key) and design != only:
            raise RecipeError(f"Only {only!r} takes `{key}`, not {design!r}; remove it.")
    width = {"channels": 256 if ":" in name else 64, "box_width": 1024 if ":" in name else 256}
    width |= {"convolutions": 1} if design == "faster_rcnn" else {}
    upon = _Upon(**bind("detector", name, _Upon, own, defaults=width))
    shared: dict[str, Any] = {"image_mean": list(mean), "image_std": list(std)}
    try:
        maps = _maps(name, given, list(of_detector))
        if design == "ssdlite":
            return _ssdlite(maps, num_classes, size, shared)
        shared |= {"min_size": min(size), "max_size": max(size), "size_divisible": 1}
        pyramid = Pyramid(maps, upon.channels, extra=upon.extra)
        anchors = anchors_of(design, _strides(pyramid, size), anchor_scale)
        if design == "faster_rcnn":
            return two_stage.build(
                pyramid, num_classes, anchors, convolutions=upon.convolutions,
                box_width=upon.box_width, kept=proposals,
                shared=shared | {"box_score_thresh": SCORE},
            )  # fmt: skip
        shared["score_thresh"] = SCORE
        make: Callable[..., nn.Module] = _retinanet
        if design == "fcos":
            make = partial(_fcos, bins=upon.bins)
        return make(pyramid, num_classes, anchors, upon.convolutions, shared)
    except CongenerError:
        raise
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        told = "".join(f", {key}={value!r}" for key, value in arguments.items())
        raise RecipeError(
            f"The detector {name!r}{told} cannot be built for images of {size[0]} x {size[1]}: "
            f"{str(error).rstrip('.')}."
        ) from error


SCORE = 0.05
"""Least score of what a detector answers: torchvision's RetinaNet; its FCOS has 0.2, which would
cut the curve that mAP measures."""


def _maps(name: str, given: Mapping[str, Any], further: list[str]) -> Maps:
    """The body; ``further`` is what a detector takes beside its arguments."""
    library, _, inner = name.partition(":")
    if inner:
        function = resolve("library of networks", library, LIBRARIES)
        given = {"name": inner} | dict(given)
    else:
        function = resolve("network", name, {"small_cnn": small_cnn})
    accepted = accepted_names(function)
    others = {key: value for key, value in given.items() if key not in accepted}
    if others and function is not backbones.timm_body:
        key = min(others)
        raise RecipeError(
            f"The network {name!r} takes no argument {key!r}; "
            f"{did_you_mean(key, [*accepted, *further])}"
        )
    mine = {key: value for key, value in given.items() if key in accepted}
    maps: Maps = function(**bind("network", name, function, mine), **others)
    return maps


def _strides(backbone: nn.Module, size: tuple[int, int]) -> list[int]:
    """How many pixels apart the places of each level are, found by a run."""
    was = backbone.training
    with torch.no_grad():
        maps = list(backbone.eval()(torch.zeros(1, 3, *size)).values())
    backbone.train(was)
    for each in maps:
        places = each.shape[2:]
        if any(side % count for side, count in zip(size, places, strict=True)):
            raise RecipeError(
                f"A level has {places[0]} x {places[1]} places on images of {size[0]} x {size[1]} "
                "pixels, which is no even division; take images whose sides are multiples of its "
                "stride, or other levels."
            )
    return [size[0] // each.shape[2] for each in maps]


def anchors_of(
    design: Design, strides: list[int], anchor_scale: float = ANCHOR_SCALE
) -> AnchorGenerator:
    """The reference boxes of levels by their strides.

    FCOS has squares of the stride; RetinaNet three sizes, from ``anchor_scale`` strides on, in
    three shapes; Faster R-CNN one size in three shapes.
    """
    if design == "fcos":
        return AnchorGenerator(tuple((s,) for s in strides), ((1.0,),) * len(strides))
    steps = range(3 if design == "retinanet" else 1)
    sizes = tuple(
        tuple(int(anchor_scale * s * 2 ** (third / 3)) for third in steps) for s in strides
    )
    return AnchorGenerator(sizes, (RATIOS,) * len(strides))


def _fcos(
    pyramid: Pyramid,
    num_classes: int,
    anchors: AnchorGenerator,
    convolutions: int,
    shared: dict[str, Any],
    bins: int = 0,
) -> nn.Module:
    channels = pyramid.out_channels
    if channels % GROUPS:
        raise RecipeError(
            f"channels={channels} of 'fcos' must be a multiple of {GROUPS}, the groups that "
            "torchvision's head normalises."
        )
    head = FCOSHead(channels, 1, num_classes, convolutions)
    if bins:
        head.regression_head = BinnedRegressionHead(channels, convolutions, bins)
    for layer in _begun(head):
        if isinstance(layer, nn.GroupNorm):  # of a single channel it would lose what that says
            layer.num_groups = max(1, min(layer.num_groups, channels // 8))
    if not bins:  # sides behind a ReLU start from one stride, where it is alive (ours); else 0
        nn.init.ones_(head.regression_head.bbox_reg.bias)
    found: nn.Module = FCOS(pyramid, num_classes, anchor_generator=anchors, head=head, **shared)
    return found


def _begun(head: nn.Module) -> list[nn.Module]:
    """The layers of both branches, begun as He et al. (2015) do.

    torchvision begins them with deviations of 0.01, made for 256 channels and weeks of SGD: with
    fewer channels signals vanish, and a step of Adam is a third of a weight (ours).
    """
    branches = (head.classification_head, head.regression_head)
    layers = [layer for branch in branches for layer in branch.conv.modules()]  # type: ignore[union-attr]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers


def _retinanet(
    pyramid: Pyramid,
    num_classes: int,
    anchors: AnchorGenerator,
    convolutions: int,
    shared: dict[str, Any],
) -> nn.Module:
    head = RetinaNetHead(pyramid.out_channels, anchors.num_anchors_per_location()[0], num_classes)
    for branch in (head.classification_head, head.regression_head):
        if convolutions > len(branch.conv):
            raise RecipeError(
                f"convolutions={convolutions} of RetinaNet's branches; expected 1 to "
                f"{len(branch.conv)}, as torchvision builds them."
            )
        branch.conv = branch.conv[:convolutions]
    _begun(head)
    found: nn.Module = RetinaNet(
        pyramid, num_classes, anchor_generator=anchors, head=head, **shared
    )
    return found


def _ssdlite(
    maps: Maps, num_classes: int, size: tuple[int, int], shared: dict[str, Any]
) -> nn.Module:
    boxes = DefaultBoxGenerator([[2, 3]] * len(maps.out_channels), min_ratio=0.2, max_ratio=0.95)
    anchors = boxes.num_anchors_per_location()
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)  # torchvision's ssdlite320
    head = SSDLiteHead(maps.out_channels, anchors, num_classes + 1, norm)
    found: nn.Module = SSD(
        maps, boxes, (size[1], size[0]), num_classes + 1, head=head, score_thresh=SCORE,
        detections_per_img=100, nms_thresh=0.55, **shared,
    )  # fmt: skip
    return found
