"""The figures of COCO: by hand, against pycocotools itself, in any order, on several ranks."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.trajectory.processes import in_processes, in_two_processes
from torch import Tensor

from congener.errors import DataError
from congener.tasks.detection.metrics import BoxMetrics

CPU = torch.device("cpu")
Object = tuple[int, tuple[float, ...]]
Found = tuple[int, float, tuple[float, ...]]


def answer(*found: Found) -> dict[str, Tensor]:
    """Boxes as (class, score, box)."""
    return {
        "boxes": torch.tensor([box for _, _, box in found], dtype=torch.float32).view(-1, 4),
        "scores": torch.tensor([score for _, score, _ in found]),
        "labels": torch.tensor([label for label, _, _ in found], dtype=torch.int64),
    }


def batch(*images: list[Object] | None, crowd: tuple[tuple[int, int], ...] = ()) -> dict[str, Any]:
    """Objects as (class, box); None: not annotated. ``crowd``: (image, object)."""
    most = max(1, *(len(objects or ()) for objects in images)) + 1
    boxes = torch.zeros(len(images), most, 4)
    labels = torch.full((len(images), most), -1)
    for row, objects in enumerate(images):
        if objects is None:
            labels[row] = -100
        for place, (label, box) in enumerate(objects or ()):
            boxes[row, place], labels[row, place] = torch.tensor(box), label
    regions = torch.zeros_like(labels, dtype=torch.bool)
    for image, place in crowd:
        regions[image, place] = True
    index = torch.arange(len(images)) + 10
    return {"boxes": boxes, "labels": labels, "crowd": regions, "index": index}


def figures(result: list[dict[str, Tensor]], given: dict[str, Any], **how: Any) -> dict[str, float]:
    measured = BoxMetrics(CPU, num_classes=3, **how)
    measured.update(result, given)
    return measured.compute()


def square(left: float, top: float, side: float) -> tuple[float, ...]:
    return (left, top, left + side, top + side)


A, B, C = square(0, 0, 20), square(40, 0, 20), square(0, 40, 20)


def test_what_is_found_exactly() -> None:
    found = figures([answer((1, 0.9, A), (0, 0.2, B))], batch([(1, A), (0, B)]))
    assert found == {"map": 1, "map_50": 1, "map_75": 1, "map_small": 1, "mar_100": 1}


def test_average_precision_by_hand() -> None:
    """Right, wrong, right of two objects: precision 1 up to a recall of .5, then 2/3.

    Of the 101 recalls 0, .01 … 1, the first 51 have a precision of 1.
    """
    found = figures(
        [answer((0, 0.9, A), (0, 0.8, square(70, 70, 20)), (0, 0.7, B))], batch([(0, A), (0, B)])
    )
    wanted = (51 + 50 * 2 / 3) / 101
    assert found == pytest.approx(
        {"map": wanted, "map_50": wanted, "map_75": wanted, "map_small": wanted, "mar_100": 1}
    )


def test_classes_weigh_the_same_and_one_without_objects_does_not_count() -> None:
    """Class 0 has three objects, all found; class 1 has one, found as class 2."""
    found = figures(
        [answer((0, 0.9, A), (0, 0.8, B), (0, 0.7, C), (2, 0.9, square(70, 70, 20)))],
        batch([(0, A), (0, B), (0, C), (1, square(70, 70, 20))]),
    )
    assert found["map"] == 0.5
    assert found["mar_100"] == 0.5


def test_overlaps_by_hand() -> None:
    """Of width 20 and 17, the overlap is .85: right at 8 of the 10 thresholds, .85 included."""
    found = figures([answer((0, 0.9, (0.0, 0.0, 17.0, 20.0)))], batch([(0, A)]))
    assert found["map"] == pytest.approx(0.8)
    assert found["map_75"] == found["map_50"] == 1
    low = figures([answer((0, 0.9, (0.0, 0.0, 11.0, 20.0)))], batch([(0, A)]))
    assert low["map"] == pytest.approx(0.2)  # .55 is reached exactly
    assert low["map_50"] == 1
    assert low["map_75"] == 0


def test_a_recall_that_is_reached_exactly_counts() -> None:
    """Three of ten are found first, then only what is wrong: 31 of 101 recalls, 0 … .30."""
    objects = [square(30.0 * place, 0, 20) for place in range(10)]
    found = figures(
        [answer(*((0, 0.9, box) for box in objects[:3]), (0, 0.1, square(0, 60, 20)))],
        batch([(0, box) for box in objects]),
    )
    assert found["map"] == pytest.approx(31 / 101)


def test_sizes() -> None:
    """32² and 96² part them; without an object of a size, there is no figure of it."""
    small, medium, large = square(0, 0, 31), square(100, 0, 40), square(0, 200, 100)
    given = batch([(0, small), (0, medium), (0, large)])
    result = [answer((0, 0.9, small), (0, 0.8, large))]
    found = figures(result, given)
    assert found["map_small"] == 1
    assert found["map_medium"] == 0
    assert found["map_large"] == 1
    assert list(found) == [
        "map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar_100",
    ]  # fmt: skip
    scaled = figures(result, given, area_scale=2.0)  # 62, 80 and 200
    assert scaled["map_medium"] == pytest.approx(51 / 101)
    assert "map_small" not in scaled
    assert {name: scaled[name] for name in ("map", "map_50", "map_75", "mar_100")} == {
        name: found[name] for name in ("map", "map_50", "map_75", "mar_100")
    }


def test_what_is_told_depends_on_the_objects_alone() -> None:
    given = batch([(0, square(0, 0, 40))], [])
    large = square(0, 0, 200)
    for result in (
        [answer(), answer()],
        [answer((0, 0.9, large)), answer((1, 0.5, A))],
        [answer((2, 0.9, A)), answer()],
    ):
        assert list(figures(result, given)) == ["map", "map_50", "map_75", "map_medium", "mar_100"]


def test_an_image_without_objects_counts_against_what_is_found_there() -> None:
    given = batch([(0, A)], [])
    right = answer((0, 0.5, A))
    assert figures([right, answer()], given)["map"] == 1
    assert figures([right, answer((0, 0.4, A))], given)["map"] == 1  # after all is found
    assert figures([right, answer((0, 0.9, A))], given)["map"] == pytest.approx(0.5)
    assert figures([right, answer((1, 0.9, A))], given)["map"] == 1  # a class without objects


def test_images_that_are_not_annotated_are_left_out() -> None:
    given = batch([(0, A)], None)
    result = [answer((0, 0.5, A)), answer((0, 0.9, A), (1, 0.9, B))]
    assert figures(result, given) == figures(result[:1], batch([(0, A)]))
    result[1]["scores"] *= torch.nan
    assert figures(result, given)["map"] == 1


def test_crowds_count_neither_for_nor_against() -> None:
    crowd = square(30, 30, 60)
    objects: list[Object] = [(0, A), (0, crowd)]
    given = batch(objects, crowd=((0, 1),))
    inside = [(0, 0.9, square(30.0 + 20 * place, 30, 20)) for place in range(3)]
    assert figures([answer((0, 0.5, A), *inside)], given)["map"] == 1
    assert figures([answer((0, 0.5, A))], given)["mar_100"] == 1
    assert figures([answer((0, 0.5, A), *inside)], batch(objects))["map"] < 0.5
    other = [(1, 0.9, square(30, 30, 20))]
    both = batch([*objects, (1, C)], crowd=((0, 1),))  # a crowd of its own class only
    assert figures([answer((0, 0.5, A), (1, 0.5, C), *other)], both)["map"] == pytest.approx(0.75)
    alone = figures([answer(*inside)], batch([(0, crowd)], crowd=((0, 0),)))
    assert alone == {"map": 0}


@pytest.mark.parametrize("images", [([],), (None,), ([], None)])
def test_without_any_object(images: tuple[Any, ...]) -> None:
    for found in ((), ((0, 0.9, A),)):
        assert figures([answer(*found)] * len(images), batch(*images)) == {"map": 0}
    assert BoxMetrics(CPU, num_classes=3).compute() == {"map": 0}


def test_more_than_a_hundred_boxes() -> None:
    """The best hundred count, and nobody is warned."""
    many = [(0, 0.9 - place / 1000, square(3.0 * place, 100, 2)) for place in range(100)]
    given = batch([(0, A)])
    assert figures([answer(*many[:99], (0, 0.1, A))], given)["mar_100"] == 1
    assert figures([answer(*many, (0, 0.1, A))], given)["mar_100"] == 0


def test_figures_can_be_read_twice() -> None:
    measured = BoxMetrics(CPU, num_classes=3)
    measured.update([answer((0, 0.5, A))], batch([(0, A), (0, B)]))
    first = measured.compute()
    assert measured.compute() == first
    more = batch([(0, A)])
    measured.update([answer()], more | {"index": torch.tensor([99])})
    assert measured.compute()["mar_100"] == pytest.approx(1 / 3)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    figures([answer((0, 0.9, A))], batch([(0, A)]))
    assert capfd.readouterr() == ("", "")


# errors


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", ["scores", "boxes"])
def test_what_is_no_number(bad: float, column: str) -> None:
    result = [answer((0, 0.5, A)), answer((0, 0.5, A), (0, 0.5, B))]
    result[1][column].view(-1)[-1] = bad
    with pytest.raises(DataError, match=r"found a box .* with score .* of index 11; expected fin"):
        figures(result, batch([(0, A)], []))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_class_that_there_is_not(label: int) -> None:
    result = [answer((0, 0.5, A)), answer((label, 0.5, A))]
    line = rf"found class {label} in the image of index 11; expected 0 \(cat\) to 2 \(eel\)"
    with pytest.raises(DataError, match=line):
        figures(result, batch([(0, A)], []), class_names=("cat", "dog", "eel"))
    with pytest.raises(DataError, match=r"expected 0 \(0\) to 2 \(2\)"):
        figures(result, batch([(0, A)], []))


def test_another_number_of_answers() -> None:
    with pytest.raises(DataError, match="answered for 1 images of 2; expected one mapping"):
        figures([answer()], batch([], []))


# drawn scenes


def drawn(seed: int, images: int = 12) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    """Scenes with tied scores, boxes near the true ones, crowds, and empty images."""
    some = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=some))

    truth: list[list[Object] | None] = []
    result, crowd = [], []
    for image in range(images):
        objects: list[Object] = []
        found: list[Found] = []
        for place in range(between(0, 5)):
            side = float(2 ** between(3, 8))
            box = square(between(0, 100), between(0, 100), side)
            objects.append((between(0, 3), box))
            if between(0, 6) == 0:
                crowd.append((image, place))
            for _ in range(between(0, 4)):
                moved = tuple(edge + side * between(-2, 3) / 16 for edge in box[:2])
                near = (*moved, box[2], box[3])
                label = objects[-1][0] if between(0, 4) else between(0, 3)
                found.append((label, between(1, 6) / 8, near))
        truth.append(objects)
        result.append(answer(*found))
    return result, batch(*truth, crowd=tuple(crowd))


def part(given: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {name: value[rows] for name, value in given.items()}


@pytest.mark.parametrize("seed", range(4))
def test_pycocotools_says_the_same(seed: int, tmp_path: Path) -> None:
    """From files in COCO's own format, read by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    result, given = drawn(seed)
    objects, boxes = [], []
    for row, image in enumerate(given["index"].tolist()):
        known = given["labels"][row] >= 0
        for box, label, crowd in zip(
            given["boxes"][row][known].tolist(), given["labels"][row][known].tolist(),
            given["crowd"][row][known].tolist(), strict=True,
        ):  # fmt: skip
            wide, high = box[2] - box[0], box[3] - box[1]
            objects.append({
                "id": len(objects) + 1, "image_id": image, "category_id": label + 1,
                "bbox": [box[0], box[1], wide, high], "area": wide * high, "iscrowd": int(crowd),
            })  # fmt: skip
        for box, score, label in zip(*(v.tolist() for v in result[row].values()), strict=True):
            wide, high = box[2] - box[0], box[3] - box[1]
            boxes.append({
                "image_id": image, "category_id": label + 1, "score": score,
                "bbox": [box[0], box[1], wide, high],
            })  # fmt: skip
    told = {
        "info": {},
        "images": [{"id": image, "width": 400, "height": 400} for image in given["index"].tolist()],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(3)],
        "annotations": objects,
    }
    (tmp_path / "truth.json").write_text(json.dumps(told))
    (tmp_path / "found.json").write_text(json.dumps(boxes))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judge = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = judge.stats
    names = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
    wanted = dict(zip(names, stats[:6], strict=True)) | {"mar_100": stats[8]}
    found = figures(result, given)
    assert found == pytest.approx({k: v for k, v in wanted.items() if v >= 0}, abs=1e-7)
    assert 0.1 < found["map"] < 0.9
    assert len(found) == 7


def test_neither_batches_nor_their_order_count() -> None:
    result, given = drawn(0)
    wanted = figures(result, given)
    for seed in range(3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed)).tolist()
        measured = BoxMetrics(CPU, num_classes=3)
        for rows in (order[:5], order[5:6], [], order[6:]):
            measured.update([result[row] for row in rows], part(given, rows))
        assert measured.compute() == wanted


def _of_a_share(rank: int, shares: list[list[int]], spoilt: bool) -> Any:
    torch.distributed.init_process_group("gloo")
    result, given = drawn(1)
    if spoilt:
        next(each["scores"] for each in result if len(each["scores"]))[0] = torch.nan
    given["labels"][7] = -100
    measured = BoxMetrics(CPU, num_classes=3)
    for row in shares[rank]:
        measured.update([result[row]], part(given, [row]))
    try:
        return measured.compute()
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("first", [[0, 3, 5, 11], [], list(range(12))])
def test_two_processes_measure_as_one(first: list[int], tmp_path: Path) -> None:
    shares = [first, [row for row in range(12) if row not in first]]
    result, given = drawn(1)
    given["labels"][7] = -100
    wanted = figures(result, given)
    assert in_two_processes(tmp_path, _of_a_share, shares, False) == [wanted, wanted]


def test_each_process_tells_what_is_no_number(tmp_path: Path) -> None:
    shares = [[0, 1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 11]]
    told = in_processes(3, tmp_path, _of_a_share, shares, True)
    assert told[0] == told[1] == told[2]
    assert "expected finite numbers" in told[0]
