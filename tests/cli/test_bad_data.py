"""Data that is missing, damaged or of no use is refused before anything is written."""

import gzip
import shutil
from pathlib import Path

import pytest
from tests.cli.refusal import names, refused
from tests.tasks.image_classification.conftest import idx, write_cifar10, write_cifar100

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def cut(path: Path, *, to: int) -> None:
    path.write_bytes(path.read_bytes()[:to])


def relabel(folder: Path, labels: bytes) -> None:
    (folder / LABELS).write_bytes(idx(labels, 30))


def gzipped(folder: Path) -> None:
    packed = gzip.compress((folder / IMAGES).read_bytes())
    (folder / IMAGES).unlink()
    (folder / f"{IMAGES}.gz").write_bytes(packed[:-9])


MNIST = [
    ("image file missing", lambda f: (f / IMAGES).unlink(),
     rf"There is no file .*{IMAGES}\(\.gz\); put the four original idx files"),
    ("image file cut", lambda f: cut(f / IMAGES, to=5000),
     rf"{IMAGES} holds 5000 bytes, but its header announces 30 x 28 x 28 .*fetch it again"),
    ("header cut", lambda f: cut(f / IMAGES, to=9), r"ends within its header after 9 bytes"),
    ("empty file", lambda f: cut(f / LABELS, to=0), rf"{LABELS} starts with the bytes nothing"),
    ("other format", lambda f: (f / IMAGES).write_bytes(b"\x89PNG" + bytes(5000)),
     r"starts with the bytes 89 50 4e 47; expected 00 00 08 03"),
    ("cut gzip", gzipped, r"gz cannot be unzipped \(.*\); the file is truncated"),
    ("a label out of range", lambda f: relabel(f, bytes(range(30))),
     r"has the label 10 at sample 10, outside the range 0 to 9 of its 10 classes"),
    ("one class", lambda f: relabel(f, bytes([3] * 30)),
     r"training set of MNIST has only the class 3; .*takes two or more"),
    ("no samples", lambda f: [(f / IMAGES).write_bytes(idx(b"", 0, 28, 28)),
                              (f / LABELS).write_bytes(idx(b"", 0))],
     r"training set of MNIST is empty; at least one sample is needed"),
    ("fewer labels", lambda f: (f / LABELS).write_bytes(idx(bytes(20), 20)),
     r"has 30 images but 20 labels"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "sentence"), [c[1:] for c in MNIST], ids=[c[0] for c in MNIST])
def test_damaged_idx_files(damage, sentence, recipe, text, digits, congener) -> None:
    folder = Path("copy")
    shutil.copytree(digits, folder)
    damage(folder)
    recipe.write_text(text.replace(str(digits), str(folder)))
    refused(congener("run", recipe), r"recipe.yaml, line 2: .*" + sentence)
    assert names() == ["copy", "recipe.yaml"]


CIFAR = [
    ("cifar10", "missing", lambda f: (f / "data_batch_3.bin").unlink(),
     r"There is no file .*data_batch_3.bin; unpack the binary version of CIFAR again"),
    ("cifar10", "cut", lambda f: cut(f / "data_batch_3.bin", to=5000),
     r"data_batch_3.bin holds 5000 bytes, .*not a whole number of samples of 3073 bytes"),
    ("cifar10", "label", lambda f: (f / "test_batch.bin").write_bytes(bytes([10] * 3073)),
     r"test_batch.bin has the label 10 at sample 0, outside the range 0 to 9"),
    ("cifar10", "folder", shutil.rmtree,
     r"There is no file test_batch.bin in .*; unpack the binary version \(cifar-10-binary.tar.gz"),
    ("cifar100", "cut", lambda f: cut(f / "train.bin", to=3073),
     r"train.bin holds 3073 bytes, .*of 3074 bytes; the file is truncated"),
    ("cifar100", "names", lambda f: (f / "fine_label_names.txt").write_text("apple\n"),
     r"fine_label_names.txt names 1 classes; expected 100"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "damage", "sentence"),
    [(c[0], *c[2:]) for c in CIFAR],
    ids=["-".join(c[:2]) for c in CIFAR],
)
def test_damaged_cifar_files(data, damage, sentence, recipe, congener) -> None:
    {"cifar10": write_cifar10, "cifar100": write_cifar100}[data](Path("copy"))
    damage(Path("copy"))
    said = congener("run", recipe, f"task.data={{name: {data}, root: copy}}")
    refused(said, r"recipe.yaml, line 2: .*" + sentence)
    assert not Path("runs").exists()


def test_missing_fashion_mnist_names_the_debian_package(recipe, congener, monkeypatch) -> None:
    from congener.tasks.image_classification.data import files

    monkeypatch.setattr(files, "_FASHION_ROOT", "/nowhere")
    said = congener("run", recipe, "task.data=fashion_mnist")
    refused(said, r"no file /nowhere/.*apt-get install dataset-fashion-mnist, or give its folder")
    assert not Path("runs").exists()


def test_a_folder_of_images_that_are_none(recipe, congener) -> None:
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            Path("pets", part, name).mkdir(parents=True)
            Path("pets", part, name, "1.png").write_text("no image")
    said = congener("run", recipe, "task.data={name: image_folder, root: pets, size: 8}")
    refused(said, r"1.png cannot be read as an image \(.*\); fix or delete it")
    shutil.rmtree("pets/test/dog")
    said = congener("run", recipe, "task.data={name: image_folder, root: pets, size: 8}")
    refused(said, r"2 classes but .* has 1; only in one of them: dog")
    assert not Path("runs").exists()
