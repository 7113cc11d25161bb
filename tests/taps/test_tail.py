"""Running a network from a tap: exactly what it does to the tensor there, and no more work."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from congener.errors import TapError
from congener.taps import Tail, Taps


class Block(nn.Module):
    """A residual block that uses one ReLU twice."""

    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Net(nn.Module):
    def __init__(self, *, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 3, 3)
        self.blocks = nn.Sequential(Block(inplace=inplace), Block(inplace=inplace))
        self.head = nn.Linear(3, 2)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        return self.head(self.blocks(x).mean((2, 3)))


class Skip(nn.Module):
    """What runs before the tap ``deep`` is needed behind it, or only its sign is."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.early, self.deep, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.how = how
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        return self.head(self.how(self.deep(early), early))


def calls(net: nn.Module) -> dict[str, int]:
    """Counts, from now on, how often the forward of each module runs."""
    counts: dict[str, int] = {}

    def count(name: str, forward: Any) -> Any:
        def counted(*args: Any) -> Any:
            counts[name] = counts.get(name, 0) + 1
            return forward(*args)

        return counted

    for name, module in net.named_modules():
        if name:
            module.forward = count(name, module.forward)
    return counts


def patched(net: nn.Module) -> int:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules())
    return hooks + sum("forward" in vars(m) for m in net.modules())


SHAPE = torch.Size((4, 3, 4, 4))  # of every tap below
X = torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(2))
PATHS = (
    "stem", "blocks", "blocks.0", "blocks.0.bn1", "blocks.0.conv1:input", "blocks.1.conv2",
    "blocks.1.bn2", "blocks.1:input", "blocks.1.conv2:input",
)  # fmt: skip


def by_hand(net: Net, path: str, value: Tensor) -> Tensor:
    """The network with the value put in place of what is tapped, by a hook of the test's own."""
    name, _, side = path.partition(":")
    module = net.get_submodule(name)
    if side:
        handle = module.register_forward_pre_hook(lambda *_: (value.clone(),))
    else:
        handle = module.register_forward_hook(lambda *_: value.clone())
    with handle:
        return net(X)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_value_and_gradient_are_those_of_the_network_with_the_value_put_in(
    path: str, inplace: bool
) -> None:
    net = Net(inplace=inplace)
    value = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    before = value.detach().clone()
    tail = Tail(net, path)
    wanted = by_hand(net, path, value)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), value)
    for _ in range(2):  # the first call learns, the second has learnt
        result = tail(value, lambda: net(X))
        assert torch.equal(result, wanted)
        assert torch.equal(torch.autograd.grad(result.square().sum(), value)[0], gradient)
    assert torch.equal(value, before)
    assert patched(net) == 0


def test_the_tensor_that_is_there_gives_the_result_that_is_there() -> None:
    net = Net()
    _, seen = Taps(net, ["blocks.0"])(lambda: net(X))
    assert torch.equal(Tail(net, "blocks.0")(seen["blocks.0"], lambda: net(X)), net(X))


@pytest.mark.parametrize(
    ("path", "runs"),
    [
        ("blocks.0", {"blocks", "blocks.1", "head"}),
        ("blocks.1:input", {"blocks", "blocks.1", "head"}),
        ("blocks", {"head"}),
        ("stem", {"blocks", "blocks.0", "blocks.1", "head"}),
    ],
)
def test_what_ran_before_does_not_run_again(path: str, runs: set[str]) -> None:
    net = Net()
    counts = calls(net)
    tail, value = Tail(net, path), torch.zeros(SHAPE)
    tail(value, lambda: net(X))
    counts.clear()
    tail(value, lambda: net(X))
    assert {name for name in counts if name.count(".") < 2} == runs


def test_a_ragged_batch_needs_no_second_look() -> None:
    net = Net()
    tail, value = Tail(net, "blocks.0"), torch.ones(SHAPE)
    whole = tail(value, lambda: net(X))
    counts = calls(net)
    part = tail(value[:3], lambda: net(X[:3]))
    assert torch.equal(part, whole[:3])
    assert "stem" not in counts


class Sizes(nn.Module):
    """The size of what runs before the tap counts behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.deep = nn.Tanh(), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        return self.deep(early).sum() + 10 * early.shape[0] + 100 * early.shape[1]


def test_another_shape_is_learnt_anew_and_another_number_of_rows_needs_not() -> None:
    net = Sizes()
    counts = calls(net)
    tail = Tail(net, "deep")
    for rows, width, learns in ((4, 3, True), (2, 3, False), (2, 5, True)):
        counts.clear()
        zeros = torch.zeros(rows, width)
        result = tail(zeros, partial(net, zeros))
        assert result.item() == 10 * rows + 100 * width
        assert ("early" in counts) == learns


def test_the_batch_that_was_learnt_from_is_no_accident() -> None:
    """What is needed of another batch only is needed."""
    net = Skip(lambda deep, early: deep + early.relu())
    tail, value = Tail(net, "deep"), torch.ones(2, 3)
    for bias in (-100.0, 100.0):
        net.early.bias.fill_(bias)
        wanted = net.head(value + net.early(value).relu())
        assert torch.equal(tail(value, lambda: net(value)), wanted)


@pytest.mark.parametrize(
    "how",
    [
        lambda deep, early: deep.masked_fill(early == 0, -1.0),
        lambda deep, early: torch.where(early > 50, 2 * deep, deep),
        lambda deep, early: torch.where(early < -50, 2 * deep, deep),
    ],
)
def test_what_is_compared_is_needed(how: Any) -> None:
    """A comparison with NaN is false, and so it is for the batch that was learnt from."""
    net = Skip(how)
    net.early.weight.zero_()
    net.early.bias.fill_(1.0)
    tail, value = Tail(net, "deep"), torch.ones(2, 3)
    for bias in (1.0, 0.0, 100.0, -100.0):
        net.early.bias.fill_(bias)
        wanted = net.head(how(value, net.early(value)))
        assert torch.equal(tail(value, lambda: net(value)), wanted)


def test_a_value_that_goes_in_is_not_changed_in_place() -> None:
    net = nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True))
    value = torch.tensor([[-1.0, 2.0]])
    for _ in range(2):
        Tail(net, "1:input")(value, lambda: net(torch.ones(1, 2)))
        assert value.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize(
    "how",
    [
        lambda deep, early: deep + early,
        lambda deep, early: torch.where(early > 0, deep, -deep),
        lambda deep, early: deep.abs() if early.mean().item() > -9 else deep,
        lambda deep, early: deep * int(early.norm()),
        lambda deep, early: deep.nan_to_num(0) + early.nan_to_num(0),
    ],
)
def test_what_is_needed_behind_the_tap_runs_again(how: Any) -> None:
    net, x = Skip(how), torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])
    value = torch.tensor([[1.0, 2.0, -3.0], [-1.0, 1.0, 0.5]]).requires_grad_()
    tail = Tail(net, "deep")
    wanted = net.head(how(value, net.early(x)))
    for _ in range(2):
        assert torch.equal(tail(value, lambda: net(x)), wanted)


def test_a_module_used_before_and_behind_the_tap_runs() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(nn.Tanh(), shared, nn.Sigmoid(), shared)
    wanted = shared(torch.ones(2, 3))
    counts = calls(net)
    tail, value = Tail(net, "2"), torch.ones(2, 3)
    for _ in range(2):
        counts.clear()
        assert torch.equal(tail(value, lambda: net(torch.zeros(2, 3))), wanted)
    assert counts == {"1": 2}


def test_of_a_tuple_the_first_tensor_is_replaced() -> None:
    class Memory(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory = nn.LSTM(3, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, (h, _) = self.memory(x)
            return y[:, -1] + h[0]

    net, x = Memory(), torch.ones(2, 4, 3)
    value = torch.ones(2, 4, 3)
    for path in ("memory", "memory:input"):
        tail = Tail(net, path)
        hidden = net.memory(x)[1][0][0]
        wanted = value[:, -1] + hidden if path == "memory" else net(value)
        for _ in range(2):
            assert torch.equal(tail(value, lambda: net(x)), wanted)


def test_the_network_is_left_as_it_was_when_it_fails() -> None:
    net = Net()
    tail = Tail(net, "blocks.0")
    tail(torch.ones(SHAPE), lambda: net(X))
    with pytest.raises(RuntimeError, match="stop"):
        tail(torch.ones(SHAPE), lambda: fail(net))
    assert patched(net) == 0
    own = net.stem.forward
    net.stem.forward = own  # as mixed precision wrappers do
    tail(torch.ones(SHAPE), lambda: net(X))
    assert vars(net.stem)["forward"] == own


def fail(net: nn.Module) -> Tensor:
    net(X)
    raise RuntimeError("stop")


def test_a_module_that_fires_twice_is_told() -> None:
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, shared)
    with pytest.raises(TapError) as error:
        Tail(net, "0")(torch.ones(2, 3), lambda: net(torch.ones(2, 3)))
    assert str(error.value) == (
        "The tap '0' fired 2 times in one forward; to run from it, tap a module that runs once."
    )
    with pytest.raises(TapError, match="fired 0 times"):
        Tail(net, "0")(torch.ones(2, 3), lambda: torch.ones(2, 3))


def test_a_path_that_does_not_exist() -> None:
    with pytest.raises(TapError, match="no module 'block' to tap; did you mean 'blocks'"):
        Tail(Net(), "block")


def test_tokens_read_as_a_map_are_refused() -> None:
    with pytest.raises(TapError) as error:
        Tail(Net(), "blocks:4x4")
    assert str(error.value) == (
        "A network cannot run from tokens that are read as a map, as at 'blocks:4x4'; tap a "
        "module that gives a map."
    )


def test_a_compiled_network_is_refused() -> None:
    net = torch.compile(Net(), backend="aot_eager")
    with pytest.raises(TapError) as error:
        Tail(net, "stem")
    assert str(error.value) == (
        "A compiled network cannot run from a tap such as 'stem'; give it as it was before "
        "torch.compile."
    )
