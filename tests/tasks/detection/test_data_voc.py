"""Pascal VOC's files, right and damaged."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from congener.errors import DataError
from congener.tasks.detection.data import voc
from congener.tasks.detection.data.splits import Splits

OBJECT = """
    <object>
        <name>{name}</name>
        <pose>Left</pose>
        <truncated>1</truncated>
        <difficult>{difficult}</difficult>
        <bndbox>
            <xmin>{0}</xmin>
            <ymin>{1}</ymin>
            <xmax>{2}</xmax>
            <ymax>{3}</ymax>
        </bndbox>
        <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>
        </bndbox></part>
    </object>"""
DOG = OBJECT.format(10, 5, 30, 20, name="dog", difficult=0)
PERSON = OBJECT.format(1, 1, 40, 20, name="person", difficult=1)


def annotate(root: Path, name: str, objects: str, size: tuple[int, int] = (40, 20)) -> None:
    (root / "Annotations" / f"{name}.xml").write_text(
        f"""<annotation>
    <folder>VOC2007</folder>
    <filename>{name}.jpg</filename>
    <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>
    <segmented>0</segmented>{objects}
</annotation>
"""
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name, objects in (("000005", DOG + PERSON), ("000002", ""), ("000001", DOG)):
        Image.new("RGB", (40, 20), (int(name), 0, 0)).save(
            tmp_path / "JPEGImages" / f"{name}.jpg", quality=100
        )
        annotate(tmp_path, name, objects)
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("000005\n000002\n")
    (lists / "test.txt").write_text("000001  1\n\n")
    return tmp_path


def test_original_layout(root: Path) -> None:
    splits = voc(root, size=20)
    assert len(splits.class_names) == 20
    assert splits.class_names[11] == "dog"
    assert (splits.size, splits.area_scale) == ((20, 20), 2.0)
    assert splits.train.labels.tolist() == [[11, 14], [-1, -1]]
    assert splits.train.crowd.tolist() == [[False, True], [False, False]]
    assert splits.train.boxes[0].tolist() == [[4.5, 2, 15, 10], [0, 0, 20, 10]]
    assert splits.test.boxes.tolist() == [[[4.5, 2, 15, 10]]]
    assert [path.stem for path in splits.train.paths] == [  # type: ignore[union-attr]
        "000005",
        "000002",
    ]
    assert splits.train[0]["image"].shape == (3, 20, 20)


def test_names_found_in_the_files(root: Path) -> None:
    annotate(root, "000002", OBJECT.format(1, 1, 9, 9, name="zebra", difficult=0))
    with pytest.raises(
        DataError, match=r"000002.xml has an object of the class 'zebra'; .*'found'"
    ):
        voc(root, size=20)
    splits = voc(root, size=20, class_names="found")
    assert splits.class_names == ("dog", "person", "zebra")
    assert splits.train.labels.tolist() == [[0, 1], [2, -1]]
    mine = voc(root, size=20, class_names=["zebra", "dog", "person"])
    assert mine.train.labels.tolist() == [[1, 2], [0, -1]]
    with pytest.raises(DataError, match="class_names='dog' is no list"):
        voc(root, size=20, class_names="dog")


def test_a_class_that_is_only_in_the_test_set(root: Path) -> None:
    annotate(root, "000001", OBJECT.format(1, 1, 9, 9, name="dogg", difficult=0))
    with pytest.raises(DataError, match=r"000001.xml has .*'dogg'; did you mean 'dog'\? Give"):
        voc(root, size=20, class_names="found")


def test_other_lists_and_kinds_of_images(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").rename(lists / "train.txt")
    (lists / "test.txt").rename(lists / "val.txt")
    Image.new("RGB", (40, 20), (99, 0, 0)).save(root / "JPEGImages" / "000005.png")
    (root / "JPEGImages" / "000005.jpg").unlink()
    splits = voc(root, size=20, train="train", test="val")
    assert splits.train[0]["image"][0, 0, 0] == 99
    (root / "JPEGImages" / "000005.png").unlink()
    with pytest.raises(DataError, match=r"list 'train' .* 1 of 2 images that are missing, .*5.jpg"):
        voc(root, size=20, train="train", test="val")


def test_without_difficult(root: Path) -> None:
    annotate(root, "000005", PERSON.replace("<difficult>1</difficult>", ""))
    annotate(root, "000001", PERSON.replace("<difficult>1", "<difficult>0"))
    splits = voc(root, size=20)
    assert splits.train.crowd.tolist() == [[False], [False]]
    assert splits.train.labels.tolist() == [[14], [-1]]


def put(root: Path, *box: float, **options: Any) -> Splits:
    annotate(root, "000005", DOG + OBJECT.format(*box, name="cat", difficult=0))
    return voc(root, size=40, **options)


def test_boxes_out_of_the_image(root: Path) -> None:
    assert put(root, 0.5, 1, 40.9, 20.5).train.boxes[0, 1].tolist() == [0, 0, 40, 20]
    with pytest.warns(
        UserWarning, match=r"1 of 2 boxes reach .* of 000005.jpg, object 2\."
    ) as told:
        assert put(root, 11, 11, 44, 44).train.boxes[0, 1].tolist() == [10, 10, 40, 20]
    assert told[0].filename == __file__


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((9, 9, 7, 12), "is inverted or has no area"),
        ((9, 9, 8, 12), "is inverted or has no area"),
        (("nan", 9, 8, 12), "is no number"),
        ((41, 1, 50, 12), "lies outside the image"),
    ],
)
def test_bad_boxes(root: Path, box: Any, reason: str) -> None:
    with pytest.raises(DataError, match=rf"000005.jpg, object 2 {reason}; .* 40 x 20"):
        put(root, *box)
    with pytest.warns(UserWarning, match="1 of 2 boxes are left out"):
        assert put(root, *box, skip_bad=True).train.labels.tolist() == [[11], [-1]]


def test_a_box_of_one_pixel_has_an_area(root: Path) -> None:
    assert put(root, 9, 9, 9, 9).train.boxes[0, 1].tolist() == [8, 8, 9, 9]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("</annotation>", "", r"000005.xml is no XML .* truncated"),
        ("<name>dog</name>", "", "<object> has no 'name'"),
        ("<xmin>10</xmin>", "", "<object> has no 'bndbox/xmin'"),
        ("<xmin>10</xmin>", "<xmin>ten</xmin>", "has bndbox/xmin = 'ten'; expected a number"),
        ("<width>40</width>", "", "<annotation> has no 'size/width'"),
        ("<width>40</width>", "<width>0</width>", "has the size 0 x 20"),
        ("<width>40</width>", "<width>nan</width>", "has the size nan x 20"),
        ("<height>20</height>", "<height>2.5</height>", "has the size 40 x 2.5"),
    ],
)
def test_annotations_that_cannot_be(root: Path, old: str, new: str, sentence: str) -> None:
    path = root / "Annotations" / "000005.xml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=sentence):
        voc(root, size=20)


def test_missing_files(root: Path) -> None:
    (root / "Annotations" / "000002.xml").unlink()
    with pytest.raises(DataError, match=r"names 1 of 2 images without annotations, .*2.xml"):
        voc(root, size=20)
    lists = root / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text("\n")
    with pytest.raises(DataError, match=r"trainval.txt names no image"):
        voc(root, size=20)
    with pytest.raises(DataError, match=r"There is no file .*nowhere.txt"):
        voc(root, size=20, train="nowhere")
