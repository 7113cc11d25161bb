"""Which places are paired, which losses are proposed for them, and what is refused."""

import math
from typing import Any

import pytest
import torch
from tests.planning.pairs import build
from tests.planning.test_anatomy import Aux, Last, Vit
from torch import Tensor, nn

import congener
from congener.catalogue import losses_by_name
from congener.errors import RecipeError, TapError
from congener.losses import ATLoss, FitNetsLoss, NeighbourCorrelationLoss, ReviewKDLoss, VIDLoss
from congener.planning import Plan, fill_widths, lacks_widths, plan
from congener.recipe import parse_recipe
from congener.taps import Taps

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cnn(widths: list[int], *, strides: list[int] | None = None, classes: int = 5) -> nn.Module:
    """A stage for each width, each halving the map unless told otherwise."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 3
    for after, stride in zip(widths, strides or [2] * len(widths), strict=True):
        layers.append(nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.ReLU(inplace=True)))
        before = after
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
    return nn.Sequential(*layers, *pool)


def mlp(*widths: int, inputs: int = 768) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip([inputs, *widths[:-1]], widths, strict=True):
        layers.append(nn.Sequential(nn.Linear(before, after), nn.ReLU()))
    return nn.Sequential(*layers, nn.Linear(widths[-1], 5))


def paired(found: Plan) -> list[tuple[str, str]]:
    return [(pair.student.path, pair.teacher.path) for pair in found.pairs]


def proposal(found: Plan, loss: str) -> Any:
    return next(each for each in found.proposals if each.loss == loss)


def test_stages_of_one_resolution_are_paired() -> None:
    found = plan(cnn([4, 6, 8]), cnn([8, 12, 16]), IMAGES, losses=())
    assert paired(found) == [("0", "0"), ("1", "1"), ("2", "2")]
    assert [pair.student.size for pair in found.pairs] == [(8, 8), (4, 4), (2, 2)]
    assert found.heads is not None
    assert (found.heads.student.path, found.heads.teacher.path) == ("5:input", "5:input")


def test_other_resolutions_are_paired_with_the_nearest_from_the_end() -> None:
    # 8, 2 beside 8, 4, 2: by resolution, not by position.
    found = plan(cnn([4, 6], strides=[2, 4]), cnn([8, 12, 16]), IMAGES, losses=())
    assert paired(found) == [("0", "0"), ("1", "2")]
    # 8, 4, 2 beside 16, 8, 4: the last with the last; those before it are a factor of 2 apart.
    found = plan(cnn([4, 6, 8]), cnn([8, 12, 16], strides=[1, 2, 2]), IMAGES, losses=())
    assert paired(found) == [("0", "0"), ("1", "1"), ("2", "2")]
    # 8, 2 beside 2: a factor of 4 is too much for any but the last.
    found = plan(cnn([4, 6], strides=[2, 4]), cnn([8], strides=[8]), IMAGES, losses=())
    assert paired(found) == [("1", "0")]


def test_a_deep_network_gives_its_last_four_stages() -> None:
    images = torch.randn(2, 3, 64, 64)
    found = plan(cnn([2] * 5), cnn([3] * 5), images, losses=())
    assert paired(found) == [(str(i), str(i)) for i in range(1, 5)]


def test_a_vit_is_paired_by_depth() -> None:
    convolutional, tokens = cnn([4, 8, 8]), Vit(depth=12)
    found = plan(convolutional, tokens, IMAGES, losses=())
    blocks = {place.path: place.depth for place in found.teacher.stages}
    assert len(found.pairs) == 3
    for pair in found.pairs[:-1]:
        nearest = min(blocks.values(), key=lambda depth: abs(depth - pair.student.depth))
        assert pair.teacher.depth == nearest
    assert paired(found)[-1] == ("2", "blocks.11")


def test_vits_are_paired_by_relative_depth() -> None:
    found = plan(Vit(depth=4), Vit(depth=12), IMAGES, losses=())
    assert len(found.pairs) == 4
    for anatomy, who in ((found.student, "student"), (found.teacher, "teacher")):
        for k, pair in enumerate(found.pairs, start=1):
            distances = [abs(place.depth - k / 4) for place in anatomy.stages]
            nearest = anatomy.stages[distances.index(min(distances))]
            assert getattr(pair, who) == (nearest if k < 4 else anatomy.stages[-1])


def test_the_shorter_network_decides_how_many_pairs_there_are() -> None:
    found = plan(Vit(depth=2), cnn([4, 6, 8]), IMAGES, losses=())
    assert paired(found) == [("blocks.0", "1"), ("blocks.1", "2")]
    found = plan(mlp(8), Vit(depth=4), IMAGES, losses=())
    assert paired(found) == [("1", "blocks.3")]


def test_a_perceptron_and_a_network_of_lines() -> None:
    lines = torch.randn(4, 1, 40)
    student = build("mlp", (1, 40))
    found = plan(student, build("cnn1d", (1, 40)), lines)
    assert paired(found) == [("hidden.0", "layer2"), ("hidden", "layer3")]
    fitting = {each.loss for each in found.proposals if each.fits}
    assert {"sp", "rkd", "pkt", "cckd"} <= fitting
    assert not {"at", "nst", "vid"} & fitting


def test_the_default_is_kd_and_sp() -> None:
    found = plan(cnn([4, 6]), cnn([8, 12]), IMAGES, losses=())
    kd, sp = found.terms
    assert (kd.loss.name, kd.weight, kd.student, kd.loss.temperature) == ("kd", 0.9, None, 4.0)
    assert (sp.loss.name, sp.weight, sp.student, sp.teacher) == ("sp", 3000.0, ("1",), ("1",))
    assert len(found.reasons) == 2
    assert "RepDistiller" in found.reasons[1]
    assert found.terms is not plan(cnn([4]), cnn([4]), IMAGES, losses=()).terms


def test_other_classes_leave_out_kd() -> None:
    found = plan(cnn([4, 6]), cnn([8, 12], classes=7), IMAGES, losses=())
    assert [term.loss.name for term in found.terms] == ["sp"]


def test_the_lines_are_those_of_a_recipe() -> None:
    from ruamel.yaml import YAML

    found = plan(cnn([4, 6]), Vit(), IMAGES)
    read = YAML(typ="safe").load(found.yaml)["terms"]
    read += [YAML(typ="safe").load(each.yaml) for each in found.proposals if each.fits]
    rest = {"task": {"name": "x"}, "student": "y", "train": {"steps": 1}}
    rest["teacher"] = {"name": "z", "checkpoint": "w"}
    terms = parse_recipe(rest | {"terms": read}).terms
    expected = [*found.chosen, *(each for each in found.proposals if each.fits)]
    assert [t.loss.name for t in terms] == [each.loss for each in expected]
    for term, each in zip(terms, expected, strict=True):
        assert (term.student, term.teacher, term.weight) == (
            each.student, each.teacher, each.weight,
        )  # fmt: skip


@pytest.mark.parametrize("teacher", [cnn([8, 12, 16]), Vit(), Last()], ids=["cnn", "vit", "last"])
def test_what_is_proposed_runs_on_its_taps(teacher) -> None:
    student = cnn([4, 6, 8])
    found = plan(student, teacher, IMAGES)
    fitting = [each for each in found.proposals if each.fits]
    assert {"sp", "at", "nst", "vid", "fitnets", "rkd"} <= {each.loss for each in fitting}
    for each in fitting:
        term = each.term()
        _, mine = Taps(student, each.student)(lambda: student(IMAGES))
        _, theirs = Taps(teacher, each.teacher)(lambda: teacher(IMAGES))
        loss = term.loss.train()
        if "student_features" in losses_by_name()[each.loss].forward.__annotations__:
            value = loss(list(mine.values()), list(theirs.values()))
        else:
            value = loss(next(iter(mine.values())), next(iter(theirs.values())))
        assert torch.isfinite(value), each.loss
        assert each.parameters == sum(p.numel() for p in loss.parameters()), each.loss
    for each in found.proposals:
        assert each.fits or each.note


def test_maps_are_made_of_tokens_where_a_loss_wants_maps() -> None:
    found = plan(cnn([4, 6, 8]), Vit(), IMAGES, losses=("fitnets", "sp", "reviewkd", "rkd", "at"))
    fitnets = proposal(found, "fitnets")
    assert (fitnets.student, fitnets.teacher) == (("2",), ("blocks.3:4x4",))
    assert fitnets.arguments == {"student_shape": (8, 2, 2), "teacher_shape": (8, 4, 4)}
    # A transposed convolution 4 × 4 with its bias, and batch normalisation.
    assert fitnets.parameters == 8 * 8 * 16 + 8 + 16
    assert fitnets.macs == 8 * 8 * 16 * 4
    assert fitnets.note == "projector 8 × 2 × 2 → 8 × 4 × 4, tokens or channels-last read as maps"
    assert proposal(found, "sp").teacher == ("blocks.3",)  # relations need no map
    assert proposal(found, "rkd").teacher == ("head:input",) or not found.heads
    reviewkd = proposal(found, "reviewkd")
    assert len(reviewkd.student) == len(reviewkd.teacher) == len(found.pairs)
    assert reviewkd.arguments["student_channels"] == [4, 6, 8]
    assert "flattened or pooled" in proposal(found, "at").note


def test_a_loss_that_cannot_run_says_why() -> None:
    found = plan(cnn([4, 6]), cnn([8, 12]), IMAGES, losses=("cwd", "ft", "sskd"))
    assert not any(each.fits for each in found.proposals)
    assert "must have one shape" in proposal(found, "cwd").note
    assert "paraphraser" in proposal(found, "ft").note


def test_a_projector_beyond_measure_is_not_built(monkeypatch) -> None:
    monkeypatch.setattr("congener.planning.MOST_WEIGHTS", 10)
    found = plan(cnn([4, 6]), cnn([8, 12]), IMAGES, losses=("vid", "at"))
    assert "its projector would have" in proposal(found, "vid").note
    assert proposal(found, "at").fits


def test_the_random_numbers_go_on_as_they_would_have() -> None:
    state = torch.get_rng_state()
    plan(cnn([4]), Vit(), IMAGES)  # the networks draw, the plan does not
    cnn([4])
    torch.set_rng_state(state)
    student, teacher = cnn([4]), Vit()
    state = torch.get_rng_state()
    plan(student, teacher, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


def test_both_networks_are_as_before() -> None:
    student, teacher = Aux(), Vit().eval()
    plan(student, teacher, IMAGES)
    assert student.training
    assert not teacher.training
    for net in (student, teacher):
        assert all(parameter.requires_grad for parameter in net.parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_network_without_inner_places_is_refused_with_both_tables() -> None:
    with pytest.raises(RecipeError) as caught:
        plan(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), Vit(), IMAGES)
    said = str(caught.value)
    assert said.startswith("The plan finds no places in the two networks to compare")
    assert "student Sequential:" in said
    assert "teacher Vit:" in said
    assert "blocks.3" in said


class Record(nn.Module):
    def __init__(self, key: str) -> None:
        super().__init__()
        self.net, self.key = cnn([4, 6]), key

    def forward(self, x: Tensor) -> Any:
        return type("Answer", (), {self.key: self.net(x)})()


@pytest.mark.parametrize(("student", "sample", "sentence"), [
    (Record("answer"), IMAGES, "Record gives a Answer; expected a tensor of logits, or a record "),
    (cnn([4]), IMAGES[:, :2], r"The student, Sequential, cannot run on the sample \(Given groups"),
    (cnn([4]), IMAGES[:1], "a batch of at least 2 samples"),
])  # fmt: skip
def test_what_cannot_be_planned_is_said(student, sample, sentence) -> None:
    with pytest.raises(RecipeError, match=sentence):
        plan(student, cnn([4]), sample)


def test_records_of_logits_are_read() -> None:
    assert paired(plan(Record("logits"), cnn([4, 6]), IMAGES, losses=()))[-1] == ("net.1", "1")


def test_an_unknown_loss_is_refused() -> None:
    for name in ("kd", "nonsense"):
        with pytest.raises(RecipeError, match=f"no taps for the loss '{name}'; it can place ab, "):
            plan(cnn([4]), cnn([4]), IMAGES, losses=(name,))


def test_widths_are_filled_in() -> None:
    mine, theirs = [torch.zeros(2, 4, 8, 8)], [torch.zeros(2, 6, 4, 4)]
    assert fill_widths(VIDLoss, {}, mine, theirs) == {"student_channels": 4, "teacher_channels": 6}
    assert fill_widths(VIDLoss, {"student_channels": 9}, mine, theirs) == {"teacher_channels": 6}
    whole = {"student_channels": 4 * 64, "teacher_channels": 6 * 16}
    assert fill_widths(NeighbourCorrelationLoss, {}, mine, theirs) == whole
    lists = {"student_channels": [4, 4], "teacher_channels": [6, 6]}
    assert fill_widths(ReviewKDLoss, {}, mine * 2, theirs * 2) == lists
    shapes = {"student_shape": (4, 8, 8), "teacher_shape": (6, 4, 4)}
    assert fill_widths(FitNetsLoss, {}, mine, theirs) == shapes
    assert fill_widths(FitNetsLoss, {}, mine, mine) == {}  # of one shape, no projector
    assert fill_widths(FitNetsLoss, {"student_shape": (1, 1, 1)}, mine, theirs) == {}
    assert fill_widths(ATLoss, {}, mine, theirs) == {}
    assert lacks_widths(VIDLoss, {"student_channels": 9})
    assert not lacks_widths(VIDLoss, {"student_channels": 9, "teacher_channels": 9})
    assert lacks_widths(FitNetsLoss, {})
    assert not lacks_widths(ATLoss, {})


def test_one_projector_takes_one_width() -> None:
    mine = [torch.zeros(2, width, 8, 8) for width in (4, 5)]
    with pytest.raises(RecipeError, match="'vid' has one projector, but the student's taps have "):
        fill_widths(VIDLoss, {}, mine, mine)


def test_the_plan_reads_well() -> None:
    text = str(plan(cnn([4, 6]), Vit(), IMAGES, losses=()))
    for part in ("student Sequential:", "teacher Vit:", "pairs:\n  0 – blocks.", "terms:\n  - {"):
        assert part in text
    assert congener.plan is plan
    assert math.isclose(
        plan(Vit(), Vit(), IMAGES, losses=()).pairs[-1].student.depth, 1, abs_tol=0.1
    )


def test_a_view_of_tokens_or_of_channels_last() -> None:
    net, last = Vit(2), Last()
    _, seen = Taps(net, ["blocks.0", "blocks.0:4x4"])(lambda: net(IMAGES))
    tokens = seen["blocks.0"]
    for row in range(4):
        for column in range(4):
            expected = tokens[:, 2 + 4 * row + column]
            assert torch.equal(seen["blocks.0:4x4"][:, :, row, column], expected)
    _, seen = Taps(last, ["second", "second:4x4"])(lambda: last(IMAGES))
    assert torch.equal(seen["second:4x4"], seen["second"].permute(0, 3, 1, 2))
    assert seen["second:4x4"].requires_grad


@pytest.mark.parametrize(("path", "sentence"), [
    ("blocks.0:5x4", r"\(4, 17, 8\), which is no map of 5x4: expected .* with 20 tokens or more"),
    ("head:4x4", r"\(4, 5\), which is no map of 4x4"),
    ("blocks.0:0x4", r"should end in ':input' or ':output', not ':0x4'"),
    ("blok.0:4x4", r"no module 'blok.0' to tap; did you mean 'blocks.0'"),
])  # fmt: skip
def test_a_view_that_does_not_fit_is_refused(path, sentence) -> None:
    net = Vit()
    with pytest.raises(TapError, match=sentence):
        Taps(net, [path])(lambda: net(IMAGES))
