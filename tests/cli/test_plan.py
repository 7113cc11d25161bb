"""``congener plan`` prints stages, pairs, losses and lines to paste."""

import re
import sys

import pytest
from ruamel.yaml import YAML
from tests.cli.refusal import refused

SMALL = ("--size", "32", "--classes", "5")


def test_a_plan(congener) -> None:
    said = congener("plan", "--student", "timm:lcnet_050", "--teacher", "resnet20", *SMALL)
    assert (said.code, said.err) == (0, "")
    assert "student: MobileNetV3, 606 k weights" in said.out
    assert "teacher: Sequential" in said.out
    assert re.search(r"layer3\s+map\s+64 × 8 × 8\s+100 %", said.out)
    assert re.search(r"vid  [\d.]+ k weights, [\d.]+ [kM] MACs a sample; projector", said.out)
    assert "cwd: not here:" in said.out
    assert "weight 3000: RepDistiller" in said.out
    terms = YAML(typ="safe").load(said.out[said.out.rindex("terms:") :])["terms"]
    assert [term["loss"] for term in terms] == ["kd", "sp"]
    assert terms[1]["teacher"] == "layer3"


@pytest.mark.parametrize(("student", "sentence"), [
    ("resnet2O", "There is no network named 'resnet2O'; did you mean .*'resnet20'"),
    ("timm:lcnet_051", "timm has no network named 'lcnet_051'; did you mean .*'lcnet_050'"),
    ("torchvison:vgg11", "no library of networks named 'torchvison'; did you mean 'torchvision'"),
    ("cnn1d", "The network 'cnn1d' cannot be built"),
])  # fmt: skip
def test_a_typo_is_one_sentence(congener, student, sentence) -> None:
    refused(congener("plan", "--student", student, "--teacher", "resnet20", *SMALL), sentence)


def test_a_network_of_transformers(congener) -> None:
    pytest.importorskip("transformers")
    said = congener("plan", "--student", "mlp", "--teacher", "transformers:resnett", *SMALL)
    refused(said, "transformers has no image classifier named 'resnett'; did you mean 'resnet'")


def test_a_library_that_is_missing_says_how_to_install_it(congener, monkeypatch) -> None:
    for library, extra in (("transformers", "transformers"), ("timm", "image")):
        monkeypatch.setitem(sys.modules, library, None)
        said = congener("plan", "--student", "mlp", "--teacher", f"{library}:vit", *SMALL)
        assert said.code == 2
        assert said.err == (
            f"error: {library}:vit needs the package '{library}'; install it with: "
            f'pip install "congener[{extra}]"\n'
        )
