"""Reading tensors from inside a network, and leaving it as it was."""

import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from congener.errors import TapError
from congener.taps import Tail, Taps, bare, compiled, uncompiled


class Twice(nn.Module):
    """Uses one module twice, one never, one that returns a tuple and one that returns a record."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)
        self.memory = nn.LSTM(3, 3, batch_first=True)
        self.records = Record()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(x))
        x, _ = self.memory(x[:, None])
        return self.head(self.records(x)["x"][:, 0])


class Record(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}


def chain(*, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 2))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


X = torch.arange(15.0).reshape(5, 3) - 7


def test_reads_outputs_and_inputs_with_gradient() -> None:
    net = chain()
    result, seen = Taps(net, ["0", "1", "2:input", "0:input", "2:output"])(lambda: net(X))
    inner = net[0](X)
    assert torch.equal(seen["0"], inner)
    assert torch.equal(seen["1"], inner.clamp(min=0))
    assert seen["2:input"] is seen["1"]
    assert seen["0:input"] is X
    assert seen["2:output"] is result
    seen["1"].sum().backward()
    assert net[0].weight.grad is not None


def test_result_is_that_of_the_network_without_taps() -> None:
    net = chain()
    result, _ = Taps(net, ["0", "2:input"])(lambda: net(X))
    assert torch.equal(result, net(X))


def test_duplicates_are_read_once() -> None:
    net = chain()
    _, seen = Taps(net, ["1", "1"])(lambda: net(X))
    assert list(seen) == ["1"]


def test_no_tap_at_all() -> None:
    net = chain()
    assert Taps(net, [])(lambda: "anything") == ("anything", {})


def test_first_tensor_of_a_tuple() -> None:
    net = Twice()
    _, seen = Taps(net, ["memory"])(lambda: net(X))
    assert seen["memory"].shape == (5, 1, 3)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "shared.0",
            "The network has no module 'shared.0' to tap; did you mean 'shared' or 'head'?",
        ),
        (
            "recods",
            "The network has no module 'recods' to tap; did you mean 'records' or 'shared'?",
        ),
        (
            "",
            "The network has no module '' to tap; known: 'head', 'memory', 'records', 'shared', "
            "'unused'.",
        ),
        ("head:grad", "The tap 'head:grad' should end in ':input' or ':output', not ':grad'."),
    ],
)
def test_a_miss_names_the_nearest(path: str, sentence: str) -> None:
    with pytest.raises(TapError) as error:
        Taps(Twice(), [path])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "unused",
            "The tap 'unused' never fired: the network's forward does not call this module; "
            "tap one that it calls.",
        ),
        (
            "shared",
            "The tap 'shared' fired 2 times in one forward, because the network uses this module "
            "more than once; tap a module that runs once.",
        ),
        (
            "records",
            "The tap 'records' gives a dict, not a tensor; tap a module inside it that "
            "returns one.",
        ),
    ],
)
def test_a_tap_that_cannot_be_read(path: str, sentence: str) -> None:
    net = Twice()
    with pytest.raises(TapError) as error:
        Taps(net, ["head", path])(lambda: net(X))
    assert str(error.value) == sentence
    assert hooks(net) == 0


def test_a_tensor_changed_in_place_is_told() -> None:
    net = chain(inplace=True)
    with pytest.raises(TapError) as error:
        Taps(net, ["0"])(lambda: net(X))
    assert str(error.value) == (
        "The tensor at the tap '0' was changed in place after it was read (a later module has "
        "inplace=True); tap that later module, or build it with inplace=False."
    )
    _, seen = Taps(net, ["1"])(lambda: net(X))  # the later module is fine
    assert (seen["1"] >= 0).all()
    assert hooks(net) == 0


def test_an_input_changed_in_place_is_told() -> None:
    net = chain(inplace=True)
    with pytest.raises(TapError, match="The tensor at the tap '1:input' was changed in place"):
        Taps(net, ["1:input"])(lambda: net(X))


def test_hooks_are_there_only_while_the_network_runs() -> None:
    net = chain()
    taps = Taps(net, ["0", "2:input"])
    counts = [hooks(net)]

    def run() -> Tensor:
        counts.append(hooks(net))
        return net(X)

    taps(run)
    counts.append(hooks(net))
    assert counts == [0, 2, 0]


def test_hooks_go_when_the_network_fails() -> None:
    net = chain()
    taps = Taps(net, ["0"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        taps(lambda: net(torch.ones(5, 4)))
    assert hooks(net) == 0
    _, seen = taps(lambda: net(X))  # and the taps still work
    assert seen["0"].shape == (5, 4)


def test_a_call_keeps_nothing_of_the_one_before() -> None:
    net = chain()
    taps = Taps(net, ["0"])
    first, second = (taps(lambda: net(X))[1]["0"] for _ in range(2))
    assert first is not second
    assert taps._seen == {}


def test_a_copy_of_the_network_carries_no_hooks() -> None:
    net = chain()
    taps = Taps(net, ["0", "1:input"])
    taps(lambda: net(X))
    copies = [deepcopy(net)]
    assert hooks(copies[0]) == 0
    _, seen = taps(lambda: net(X))
    copies[0](X)
    assert set(seen) == {"0", "1:input"}


@pytest.fixture
def _compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, while it compiles
        yield
    torch._dynamo.reset()


def expected(net: nn.Module) -> dict[str, Tensor]:
    return Taps(net, ["0", "2:input"])(lambda: net(X))[1]


def compiled_whole(net: nn.Sequential) -> Any:
    return torch.compile(net, backend="aot_eager")


def compiled_in_place(net: nn.Sequential) -> Any:
    net.compile(backend="aot_eager")
    return net


def compiled_in_part(net: nn.Sequential) -> Any:
    net[0].compile(backend="aot_eager")
    return net


def compiled_inside_a_wrapper(net: nn.Sequential) -> Any:
    return nn.parallel.DataParallel(compiled_whole(net))


WAYS = [compiled_whole, compiled_in_place, compiled_in_part, compiled_inside_a_wrapper]


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("way", WAYS)
def test_compiled_network_tapped_plain_tapped(way: Callable[..., Any]) -> None:
    net = chain()
    wanted, plain = expected(net), net(X)
    compiled = way(net)
    with Taps(compiled, ["0", "2:input"]) as taps:
        for _ in range(2):
            result, seen = taps(lambda: compiled(X))
            torch.testing.assert_close(seen, wanted)
            torch.testing.assert_close(result, plain)
            torch.testing.assert_close(compiled(X), plain)  # between calls nothing is read
            assert taps._seen == {}
        seen["0"].sum().backward()
        assert net[0].weight.grad is not None
    assert hooks(net) == 0


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("way", WAYS)
def test_compiled_network_plain_tapped_plain(way: Callable[..., Any]) -> None:
    """The taps are made first, as a system does; the first call is not theirs."""
    net = chain()
    wanted, plain = expected(net), net(X)
    compiled = way(net)
    with Taps(compiled, ["0", "2:input"]) as taps:
        torch.testing.assert_close(compiled(X), plain)
        _, seen = taps(lambda: compiled(X))
        torch.testing.assert_close(seen, wanted)
        torch.testing.assert_close(compiled(X), plain)


@pytest.mark.usefixtures("_compiler")
def test_network_that_ran_compiled_before_its_taps_were_made() -> None:
    net = chain()
    compiled = torch.compile(net, backend="aot_eager")
    compiled(X)
    late = r"before its taps were set \(make the taps first\)"
    with Taps(compiled, ["0", "2:input"]) as taps, pytest.raises(TapError, match=late):
        taps(lambda: compiled(X))


@pytest.mark.usefixtures("_compiler")
def test_two_taps_on_one_compiled_network() -> None:
    net = chain()
    wanted = expected(net)
    compiled = torch.compile(net, backend="aot_eager")
    with Taps(compiled, ["0"]) as first, Taps(compiled, ["2:input"]) as second:
        _, seen = first(lambda: compiled(X))
        _, more = second(lambda: compiled(X))
    torch.testing.assert_close(seen | more, wanted)
    assert hooks(net) == 0


@pytest.fixture
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_world_of_one")
def test_network_inside_ddp() -> None:
    net = chain()
    wanted = expected(net)
    parallel = DistributedDataParallel(net)
    taps = Taps(parallel, ["0", "2:input"])
    _, seen = taps(lambda: parallel(X))
    torch.testing.assert_close(seen, wanted)
    seen["0"].sum().backward()
    assert hooks(net) == 0


def test_bare_is_the_network_inside_all_wrappers() -> None:
    net = chain()
    wrapped: Any = torch.compile(nn.parallel.DataParallel(net), backend="aot_eager")
    assert bare(wrapped) is net
    assert bare(net) is net


def test_a_summary_of_a_map_is_read() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU())
    images = torch.randn(2, 3, 4, 6)
    _, seen = Taps(net, ["0", "0:pooled", "0:gram"])(lambda: net(images))
    maps = seen["0"]
    torch.testing.assert_close(seen["0:pooled"], maps.mean((2, 3)))
    by_hand = torch.einsum("bchw,bdhw->bcd", maps, maps) / 24
    torch.testing.assert_close(seen["0:gram"], by_hand)


def test_tokens_are_read_as_a_map_and_then_summarised() -> None:
    net = nn.Sequential(nn.Linear(3, 5), nn.Identity())
    tokens = torch.randn(2, 1 + 6, 3)
    _, seen = Taps(net, ["0", "0:2x3:pooled"])(lambda: net(tokens))
    torch.testing.assert_close(seen["0:2x3:pooled"], seen["0"][:, 1:].mean(1))


def test_what_has_no_places_has_no_summary() -> None:
    net = nn.Sequential(nn.Linear(3, 5))
    with pytest.raises(TapError, match=r"'0:gram' gives \(2, 5\), which has no places"):
        Taps(net, ["0:gram"])(lambda: net(torch.randn(2, 3)))
    with pytest.raises(TapError, match="cannot run from a summary"):
        Tail(net, "0:pooled")


@pytest.mark.usefixtures("_compiler")
def test_compiled_for_a_while_with_taps_made_before_and_meanwhile() -> None:
    net = chain()
    wanted, plain = expected(net), net(X)
    graphs: list[None] = []

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        graphs.append(None)
        return graph.forward

    before = Taps(net, ["0"])
    assert torch.equal(before(lambda: net(X))[1]["0"], wanted["0"])
    with compiled([net], backend=backend):
        meanwhile = Taps(net, ["2:input"])
        for _ in range(3):
            for taps, path in ((before, "0"), (meanwhile, "2:input")):
                result, seen = taps(lambda: net(X))
                assert torch.equal(seen[path], wanted[path])
                assert torch.equal(result, plain)
        assert hooks(net) == 2
        assert "0.weight" in net.state_dict()
        assert hooks(deepcopy(net)) == 2
        assert deepcopy(net)._compiled_call_impl is None
    assert 0 < len(graphs) <= 4
    assert hooks(net) == 0
    assert net._compiled_call_impl is None
    assert torch.equal(before(lambda: net(X))[1]["0"], wanted["0"])
    assert hooks(net) == 0


@pytest.mark.usefixtures("_compiler")
def test_compiled_for_a_while_ends_with_an_error_and_leaves_the_owners_way() -> None:
    net = chain()
    net.compile(backend="eager")
    own = net._compiled_call_impl
    with pytest.raises(ZeroDivisionError), compiled([net], backend="aot_eager"):
        raise ZeroDivisionError
    assert net._compiled_call_impl is own


@pytest.mark.usefixtures("_compiler")
def test_uncompiled_is_the_network_itself_or_a_copy() -> None:
    net = chain()
    assert uncompiled(net) is net
    assert uncompiled(torch.compile(net, backend="eager")) is net  # type: ignore[arg-type]
    net[0].compile(backend="eager")
    copy = uncompiled(net)
    assert copy is not net
    assert not any(module._compiled_call_impl for module in copy.modules())
    assert net[0]._compiled_call_impl is not None
    assert torch.equal(copy(X), net(X))
