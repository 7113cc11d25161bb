"""Small data sets of boxes in the folders of COCO and Pascal VOC."""

import json
from pathlib import Path

from PIL import Image

SIDE = 64


def save_coco(root: Path, count: int) -> None:
    """So many images of two classes in each of train2017 and val2017."""
    (root / "annotations").mkdir(parents=True)
    for part in ("train2017", "val2017"):
        (root / part).mkdir()
        images, boxes = [], []
        for number in range(1, count + 1):
            name = f"{number:012}.jpg"
            Image.new("RGB", (SIDE, SIDE), (number, 90, 40)).save(root / part / name)
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            box = {"id": number, "image_id": number, "category_id": 1 + number % 2, "iscrowd": 0}
            boxes.append(box | {"bbox": [4, 4, 20 + number, 30]})
        classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        content = {"images": images, "annotations": boxes, "categories": classes}
        file = root / "annotations" / f"instances_{part}.json"
        file.write_text(json.dumps(content), encoding="utf-8")


def save_voc(root: Path, count: int) -> None:
    """So many images with a dog, of which the last four are the test set."""
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "Annotations", root / "JPEGImages"):
        folder.mkdir(parents=True)
    names = [f"{number:06}" for number in range(1, count + 1)]
    (lists / "trainval.txt").write_text("\n".join(names[:-4]) + "\n")
    (lists / "test.txt").write_text("\n".join(names[-4:]) + "\n")
    for name in names:
        Image.new("RGB", (SIDE, SIDE), (int(name), 30, 90)).save(
            root / "JPEGImages" / f"{name}.jpg"
        )
        corners = "".join(
            f"<{key}>{value}</{key}>"
            for key, value in {"xmin": 3, "ymin": 5, "xmax": 40, "ymax": 44}.items()
        )
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>"
            f"<object><name>dog</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
            "</annotation>"
        )
