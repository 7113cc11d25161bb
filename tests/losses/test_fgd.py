"""FGD: focal terms, attention, global relations, and the marks of objects."""

from math import ceil, exp, floor

import pytest
import torch
from tests.losses import golden
from tests.losses.test_cwd import maps
from torch import Tensor

from congener.errors import ShapeError
from congener.losses import FGDLoss, fgd_foreground, fgd_loss

Nested = list[list[list[float]]]
WEIGHTS = (0.3, 0.2, 0.5, 0.1)


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [exp(z - top) for z in row]
    return [w / sum(weights) for w in weights]


def attention(image: Nested, tau: float) -> tuple[list[list[float]], list[float]]:
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    flat = [
        sum(abs(image[c][i][j]) for c in range(channels)) / channels / tau
        for i in range(height)
        for j in range(width)
    ]
    shares = [height * width * p for p in softmax(flat)]
    places = [shares[i * width : (i + 1) * width] for i in range(height)]
    means = [
        sum(abs(x) for row in image[c] for x in row) / (height * width) for c in range(channels)
    ]
    return places, [channels * p for p in softmax([m / tau for m in means])]


def of_image(
    student: Nested,
    teacher: Nested,
    marks: list[list[float]],
    tau: float,
    contexts: tuple[list[float], list[float]] | None = None,
) -> list[float]:
    """Foreground, background, attention and global term of one image, without weights."""
    channels, height, width = len(teacher), len(teacher[0]), len(teacher[0][0])
    cells = [(i, j) for i in range(height) for j in range(width)]
    behind = sum(marks[i][j] == 0 for i, j in cells)
    places, shares = attention(teacher, tau)
    own_places, own_shares = attention(student, tau)
    terms = [0.0, 0.0, 0.0, 0.0]
    for i, j in cells:
        terms[2] += abs(places[i][j] - own_places[i][j])
        for c in range(channels):
            square = places[i][j] * shares[c] * (teacher[c][i][j] - student[c][i][j]) ** 2
            terms[0] += marks[i][j] * square
            terms[1] += square / behind if marks[i][j] == 0 else 0
            extra = contexts[1][c] - contexts[0][c] if contexts else 0
            terms[3] += (teacher[c][i][j] - student[c][i][j] + extra) ** 2
    terms[2] += sum(abs(a - b) for a, b in zip(shares, own_shares, strict=True))
    return terms


def oracle(
    student: Tensor, teacher: Tensor, marks: Tensor, weights: tuple[float, ...], tau: float,
    contexts: tuple[Tensor, Tensor] | None = None,
) -> float:  # fmt: skip
    total = 0.0
    for n in range(len(student)):
        extra = (contexts[0][n].tolist(), contexts[1][n].tolist()) if contexts else None
        terms = of_image(student[n].tolist(), teacher[n].tolist(), marks[n].tolist(), tau, extra)
        total += sum(w * x for w, x in zip(weights, terms, strict=True))
    return total / len(student)


BOXES = [
    torch.tensor([[10.0, 5, 30, 25], [20, 10, 45, 20]]),
    torch.zeros(0, 4),
    torch.tensor([[0.0, 0, 50, 30]]),
]


def marks() -> Tensor:
    """Two objects, none, and one as large as the image, on a map (3, 5)."""
    return fgd_foreground(BOXES, [(30, 50)] * 3, (3, 5)).double()


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("part", [0, 1, 2, 3, None])
def test_oracle(tau: float, part: int | None) -> None:
    student, teacher = maps(0)
    weights = WEIGHTS if part is None else tuple(float(k == part) for k in range(4))
    loss = fgd_loss(student, teacher, marks(), weights=weights, temperature=tau)
    assert golden.close(loss, oracle(student, teacher, marks(), weights, tau), 1e-10)


@pytest.mark.parametrize(
    ("weights", "numbers"),
    [
        ("one_stage", (1e-3, 5e-4, 5e-4, 5e-6)),
        ("two_stage", (5e-5, 2.5e-5, 5e-5, 5e-7)),
        ("anchor_free", (1.6e-3, 8e-4, 8e-4, 8e-6)),
    ],
)
def test_published_weights(weights: str, numbers: tuple[float, ...]) -> None:
    student, teacher = maps(1)
    expected = oracle(student, teacher, marks(), numbers, 0.5)
    assert golden.close(fgd_loss(student, teacher, marks(), weights=weights), expected, 1e-10)  # type: ignore[arg-type]
    module = FGDLoss(4, 4, weights).double()  # type: ignore[arg-type]
    assert golden.close(module(student, teacher, marks()), expected, 1e-10)
    if weights == "one_stage":
        assert golden.close(fgd_loss(student, teacher, marks()), expected, 1e-10)


def test_contexts_enter_the_global_term() -> None:
    student, teacher = maps(2)
    mine, theirs = maps(3)[0][:, :, 0, 0], maps(3)[1][:, :, 0, 0]
    expected = oracle(student, teacher, marks(), WEIGHTS, 0.5, (mine, theirs))
    loss = fgd_loss(student, teacher, marks(), mine, theirs, weights=WEIGHTS)
    assert golden.close(loss, expected, 1e-10)


def test_at_match_only_contexts_that_differ_remain() -> None:
    _, teacher = maps(4)
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert fgd_loss(teacher, teacher, marks()) == 0
    assert fgd_loss(teacher, teacher, marks(), zero + 1, zero + 1) == 0
    apart = fgd_loss(teacher, teacher, marks(), zero, zero + 1, weights=(1, 1, 1, 0.5))
    assert golden.close(apart, 0.5 * 4 * 3 * 5)


def test_without_objects_the_background_is_everything() -> None:
    student, teacher = maps(5)
    none = torch.zeros(3, 3, 5, dtype=torch.float64)
    loss = fgd_loss(student, teacher, none, weights=(9.0, 1.0, 0.0, 0.0))
    terms = fgd_loss(student, teacher, none + 1 / 15, weights=(1.0, 9.0, 0.0, 0.0))
    torch.testing.assert_close(loss, terms)  # all foreground: each mark is 1 / HW as well


def test_the_teachers_attention_weighs_the_students_does_not() -> None:
    student, teacher = maps(6)
    student.requires_grad_()
    fgd_loss(student, teacher, marks(), weights=(1.0, 0.0, 0.0, 0.0)).backward()
    places, shares = zip(*(attention(x, 0.5) for x in teacher.tolist()), strict=True)
    focus = torch.tensor(places, dtype=torch.float64) * marks()
    expected = 2 / 3 * (student - teacher).detach() * focus[:, None]
    expected = expected * torch.tensor(shares, dtype=torch.float64)[:, :, None, None]
    torch.testing.assert_close(student.grad, expected)


def test_signs_do_not_reach_attention() -> None:
    student, teacher = maps(7)
    only = (0.0, 0.0, 1.0, 0.0)
    expected = fgd_loss(student, teacher, marks(), weights=only)
    torch.testing.assert_close(fgd_loss(-student, teacher, marks(), weights=only), expected)
    assert fgd_loss(-teacher, teacher, marks(), weights=only) == 0
    assert 0 < expected <= 2 * 15 + 2 * 4  # each attention has mean 1


def test_the_module_aligns_and_learns_its_contexts() -> None:
    torch.manual_seed(0)
    module = FGDLoss(2, 4, weights=WEIGHTS).double()
    student, teacher = maps(8)
    teacher.requires_grad_()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    values = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = module(student[:, :2], teacher, marks())
        loss.backward()
        values.append(loss.item())
        optimizer.step()
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    assert teacher.grad is None
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"align", "contexts"}


def test_a_context_is_a_bottleneck_of_an_average() -> None:
    torch.manual_seed(1)
    block = FGDLoss(4, 4).double().contexts.teacher  # type: ignore[union-attr]
    feature = maps(9)[0]
    assert (block(feature) == 0).all()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        first, norm, _, last = block.transform
        for image, context in zip(feature.tolist(), block(feature), strict=True):
            cells = [(i, j) for i in range(3) for j in range(5)]
            weight = block.shares.weight.flatten().tolist()
            scores = [sum(weight[c] * image[c][i][j] for c in range(4)) for i, j in cells]
            shares = softmax(scores)
            pooled = [
                sum(p * image[c][i][j] for p, (i, j) in zip(shares, cells, strict=True))
                for c in range(4)
            ]
            hidden = first.weight @ torch.tensor(pooled, dtype=torch.float64) + first.bias
            assert len(hidden) == 2
            centred = hidden - hidden.mean()
            normal = centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias
            torch.testing.assert_close(context, last.weight @ normal.clamp(min=0) + last.bias)


def test_the_two_blocks_are_apart() -> None:
    module = FGDLoss(4, 4).double()
    contexts = module.contexts
    with torch.no_grad():
        contexts.teacher.transform[3].bias.fill_(1.0)  # type: ignore[union-attr, index]
    _, teacher = maps(10)
    assert golden.close(module(teacher, teacher, marks()), 5e-6 * 4 * 15)


def test_masked_images_do_not_reach_the_parameters() -> None:
    module = FGDLoss(2, 4, weights=WEIGHTS).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    student, teacher = maps(11)
    places, mask = marks(), torch.tensor([True, False, True])
    module(student[mask][:, :2], teacher[mask], places[mask]).backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    student[1], teacher[1], places[1] = torch.nan, torch.inf, torch.nan
    module(student[:, :2], teacher, places, mask).backward()
    for parameter, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_masked_contexts_get_no_gradient() -> None:
    student, teacher = maps(13)
    context = torch.ones(3, 4, dtype=torch.float64)
    context[1], student[1] = torch.nan, torch.nan
    context.requires_grad_()
    mask = torch.tensor([True, False, True])
    fgd_loss(student, teacher, marks(), context, context.detach(), mask=mask).backward()
    assert context.grad is not None
    assert (context.grad[1] == 0).all()
    assert context.grad[mask].abs().min() > 0
    assert context.grad.isfinite().all()


def test_foreground_is_a_constant() -> None:
    student, teacher = maps(14)
    places = marks().requires_grad_()
    fgd_loss(student.requires_grad_(), teacher, places).backward()
    assert places.grad is None


def test_the_smallest_context_has_one_hidden_channel_and_no_idle_bias() -> None:
    block = FGDLoss(1, 1).double().contexts.teacher  # type: ignore[union-attr]
    assert block.transform[0].out_features == 1  # type: ignore[union-attr, index]
    assert block.shares.bias is None  # type: ignore[union-attr]


def test_foreground_by_hand() -> None:
    found = marks()
    # image 1 on a map of 10-pixel places: columns 1…3, rows 0…3 (12 places, one row outside the
    # map), and columns 2…5, rows 1…2 (8 places): the smaller object wins where both lie.
    first = [
        [0, 1 / 12, 1 / 12, 1 / 12, 0],
        [0, 1 / 12, 1 / 8, 1 / 8, 1 / 8],
        [0, 1 / 12, 1 / 8, 1 / 8, 1 / 8],
    ]
    torch.testing.assert_close(
        found[0], torch.tensor(first, dtype=torch.float64), rtol=1e-6, atol=0
    )
    assert (found[1] == 0).all()
    torch.testing.assert_close(found[2], torch.full((3, 5), 1 / 24).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_foreground_oracle(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(6, 2, 2, generator=generator, dtype=torch.float64)
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    boxes = torch.cat((low, high), dim=1) * torch.tensor([70.0, 40, 70, 40]).double()
    found = fgd_foreground([boxes], [(40, 70)], (6, 9))[0]
    expected = [[0.0] * 9 for _ in range(6)]
    for x1, y1, x2, y2 in boxes.tolist():
        columns = floor(x1 / 70 * 9), ceil(x2 / 70 * 9)
        rows = floor(y1 / 40 * 6), ceil(y2 / 40 * 6)
        share = 1 / ((rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1))
        for i in range(rows[0], rows[1] + 1):
            for j in range(columns[0], columns[1] + 1):
                if i < 6 and j < 9:
                    expected[i][j] = max(expected[i][j], share)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_foreground_of_nothing_and_of_whole_numbers() -> None:
    assert fgd_foreground([], [], (3, 5)).shape == (0, 3, 5)
    whole = fgd_foreground([BOXES[0].long()], [(30, 50)], (3, 5))
    torch.testing.assert_close(whole, fgd_foreground(BOXES[:1], [(30, 50)], (3, 5)))
    assert fgd_foreground([BOXES[0].half()], [(30, 50)], (3, 5)).dtype == torch.float32


def test_refusals() -> None:
    student, teacher = maps(12)
    with pytest.raises(ShapeError, match=r"foreground \(3, 5, 3\) must be .* \(3, 3, 5\)"):
        fgd_loss(student, teacher, marks().transpose(1, 2))
    with pytest.raises(ValueError, match="foreground must be floating point"):
        fgd_loss(student, teacher, marks() > 0)
    with pytest.raises(ShapeError, match=r"a context \(3, 5\) must be .* \(3, 4\)"):
        fgd_loss(student, teacher, marks(), torch.zeros(3, 5))
    with pytest.raises(ShapeError, match=r"teacher_feature \(3, 4, 3, 5\) must be \(batch, 5,"):
        FGDLoss(4, 5).double()(student, teacher, marks())
    with pytest.raises(ValueError, match="weights must be four numbers"):
        FGDLoss(4, 4, (1.0, 2.0))
    with pytest.raises(ValueError, match="weights must be one of 'one_stage'"):
        FGDLoss(4, 4, "three_stage")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="image_sizes of 2"):
        fgd_foreground(BOXES, [(30, 50)] * 2, (3, 5))
    with pytest.raises(ShapeError, match=r"boxes \(2, 5\) must be"):
        fgd_foreground([torch.zeros(2, 5)], [(30, 50)], (3, 5))
