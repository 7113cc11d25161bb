"""Sources of what losses of detectors ask for: which places of a map, or locations, count."""

from typing import Any, ClassVar, final
from zlib import crc32

from torch import Tensor

from congener.errors import RecipeError
from congener.losses import fgd_foreground, fgfi_near_object, mgd_visible
from congener.systems.probe import first_sample
from congener.systems.sources import Pair, Seen, Source

__all__ = ["Foreground", "Locations", "NearObject", "Visible"]


class _OfMaps(Source):
    """Looks at maps."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        if pair.student_feature.dim() != 4:
            raise RecipeError(
                f"The term {pair.term!r} reads maps (batch, channels, height, width), but its "
                f"student tap gives {tuple(pair.student_feature.shape)}; tap a pyramid's level."
            )


class _OfObjects(_OfMaps):
    """Reads where the objects are; of an image whose objects are not known, there are none."""

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.task = pair.task
        if self.task.objects(first_sample(self.task)) is None:
            raise RecipeError(
                f"The term {pair.term!r} asks where the objects are, and the task "
                f"{type(self.task).__name__} has none; take the task 'detection'."
            )

    def _objects(self, now: Seen) -> list[Tensor]:
        found = self.task.objects(now.batch)
        assert found is not None
        return list(found)


@final
class Foreground(_OfObjects):
    """FGD's mask of the objects."""

    words: ClassVar = ("foreground",)

    def forward(self, now: Seen) -> dict[str, Any]:
        """The mask at the size of the student's map."""
        objects = self._objects(now)
        size = tuple(now.batch["image"].shape[-2:])
        shape = now.student_feature.shape[-2:]
        return {"foreground": fgd_foreground(objects, [size] * len(objects), shape)}


@final
class NearObject(_OfObjects):
    """FGFI's mask of the places one of whose reference boxes meets an object."""

    words: ClassVar = ("near_object",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        if self.task.anchors(pair.student_feature) is None:
            raise RecipeError(
                f"The term {pair.term!r} asks for reference boxes, and the task "
                f"{type(self.task).__name__} has none."
            )

    def forward(self, now: Seen) -> dict[str, Any]:
        """The mask at the size of the student's map."""
        anchors = self.task.anchors(now.student_feature)
        assert anchors is not None
        return {"near_object": fgfi_near_object(anchors, self._objects(now))}


@final
class Locations(Source):
    """The locations where an object is to be found, each a sample of LD, with the student's scores.

    Its taps give the distributions, (batch, locations, 4 edges, bins), which take the place of the
    logits.
    """

    words: ClassVar = ("location_weights",)

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.task = pair.task
        logits = pair.teacher_logits.cpu()
        if self.task.locations(logits, logits, first_sample(self.task)) is None:
            raise RecipeError(
                f"The term {pair.term!r} asks where a detector is to find objects; take the task "
                "'detection' with the detector 'fcos'."
            )
        student, teacher = tuple(pair.student_feature.shape), tuple(pair.teacher_feature.shape)
        if student != teacher or student[1:3] != (logits.shape[1], 4) or len(student) != 4:
            raise RecipeError(
                f"The term {pair.term!r} compares distributions of edges, (batch, "
                f"{logits.shape[1]}, 4, bins), but its taps give {student} and {teacher}; build "
                "both networks with `bins: 17` and tap head.regression_head.distribution."
            )

    def forward(self, now: Seen) -> dict[str, Any]:
        """The distributions at those locations of all images, and their weights."""
        known = self.task.locations(now.student_logits, now.teacher_logits, now.batch)
        assert known is not None
        found, scores = known
        return {
            "student_logits": now.student_feature[found],
            "teacher_logits": now.teacher_feature[found],
            "location_weights": scores[found],
        }


@final
class Visible(_OfMaps):
    """The places of the student's map that MGD leaves, drawn anew in each step."""

    words: ClassVar = ("visible",)

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self._loss = (pair.loss,)  # in a tuple, since it is held by the system
        self._seed = crc32(f"{pair.term} {pair.tap}".encode())  # others draw other places

    def forward(self, now: Seen) -> dict[str, Any]:
        """The mask at the size of the student's map."""
        return {
            "visible": mgd_visible(
                now.batch["index"],
                now.student_feature.shape[-2:],
                mask_ratio=getattr(self._loss[0], "mask_ratio", 0.65),
                seed=self._seed,
                step=now.progress.step,
            )
        }
