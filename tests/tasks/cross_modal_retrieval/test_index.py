"""Packed codes, distances and search; and what is exported for a search service."""

from pathlib import Path

import pytest
import torch
from tests.tasks.cross_modal_retrieval.conftest import mixed, small_task

from congener.errors import CheckpointError, DataError, ShapeError
from congener.tasks.cross_modal_retrieval import Coupled, CrossModalRetrieval, export, load
from congener.tasks.cross_modal_retrieval.exhibits import codes_of
from congener.tasks.cross_modal_retrieval.index import (
    build_index,
    hamming,
    pack_codes,
    search,
    unpack_codes,
)

LENGTHS = [1, 3, 7, 8, 9, 12, 16, 31, 63, 64, 65, 100, 128]


def codes(count: int, bits: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, bits, generator=generator).sub(0.5).sign()


@pytest.mark.parametrize("bits", LENGTHS)
def test_distances_are_half_of_bits_minus_product(bits: int) -> None:
    one, other = codes(7, bits), codes(5, bits, 1)
    expected = (bits - one @ other.T) / 2
    assert torch.equal(hamming(pack_codes(one), pack_codes(other)), expected.long())
    counted = [[int((a != b).sum()) for b in other] for a in one]
    assert hamming(pack_codes(one), pack_codes(other)).tolist() == counted


@pytest.mark.parametrize("bits", LENGTHS)
def test_codes_survive_packing_and_pad_bits_are_zero(bits: int) -> None:
    one = codes(6, bits)
    packed = pack_codes(one)
    assert packed.dtype == torch.uint8
    assert packed.shape == (6, -(-bits // 8))
    assert torch.equal(unpack_codes(packed, bits), one)
    by_hand = [
        [sum(int(row[8 * byte + i] > 0) << i for i in range(8) if 8 * byte + i < bits)
         for byte in range(packed.shape[1])]
        for row in one
    ]  # fmt: skip
    assert packed.tolist() == by_hand


def test_packing_keeps_leading_axes_and_reads_zero_as_a_zero_bit() -> None:
    both = codes(12, 10).view(4, 3, 10)
    assert torch.equal(pack_codes(both)[2, 1], pack_codes(both[2, 1]))
    assert pack_codes(torch.tensor([0.0, -0.0, 1e-9, -1e-9])).tolist() == [4]


def test_codes_of_another_length() -> None:
    with pytest.raises(ShapeError, match="1 and of 2 bytes"):
        hamming(pack_codes(codes(2, 8)), pack_codes(codes(2, 9)))
    with pytest.raises(ShapeError, match="2 bytes hold no codes of 8 bits"):
        unpack_codes(pack_codes(codes(2, 9)), 8)


@pytest.mark.parametrize("bits", [5, 32, 70])
def test_faiss_finds_the_nearest(bits: int) -> None:
    database, asked = codes(200, bits), codes(9, bits, 1)
    index = build_index(pack_codes(database))
    distances, places = search(index, pack_codes(asked), 12)
    every = hamming(pack_codes(asked), pack_codes(database))
    assert torch.equal(distances, every.sort(1).values[:, :12])
    assert torch.equal(every.gather(1, places), distances)
    assert all(len(set(row)) == 12 for row in places.tolist())


def test_search_gives_all_where_there_are_fewer() -> None:
    index = build_index(pack_codes(codes(3, 8)))
    distances, places = search(index, pack_codes(codes(2, 8, 1)), 10)
    assert distances.shape == (2, 3)
    assert sorted(places[0].tolist()) == [0, 1, 2]


def test_search_refuses_codes_of_another_length() -> None:
    index = build_index(pack_codes(codes(3, 8)))
    with pytest.raises(DataError, match="codes of 1 bytes; 10 neighbours of codes of 2 bytes"):
        search(index, pack_codes(codes(2, 9)))
    with pytest.raises(DataError, match="0 neighbours"):
        search(index, pack_codes(codes(2, 8)), 0)


def network(task: CrossModalRetrieval, seed: int = 0, bits: int = 12) -> Coupled:
    torch.manual_seed(seed)
    built = task.build_model("coupled", bits=bits, first="mlp", second="mlp")
    assert isinstance(built, Coupled)
    return built


def test_an_export_searches_as_the_network_does(tmp_path: Path) -> None:
    task = small_task()
    trained = network(task).train()
    folder = export(trained, task, tmp_path / "out")
    assert trained.training
    assert {path.name for path in folder.iterdir()} == {
        "first.safetensors", "second.safetensors", "first.faiss", "second.faiss", "items.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    back = load(network(task, seed=1), folder)
    assert not back.network.training
    mine = codes_of(trained.eval(), task, task.divided.test)
    assert torch.equal(codes_of(back.network, task, task.divided.test), mine)
    packed = pack_codes(mine)
    database = task.divided.test.query.logical_not()
    every = hamming(packed[:9, 0], packed[database][:, 1])
    assert torch.equal(search(back.indexes[1], packed[:9, 0], 5)[0], every.sort(1).values[:, :5])
    every = hamming(packed[:9, 1], packed[database][:, 0])
    assert torch.equal(search(back.indexes[0], packed[:9, 1], 5)[0], every.sort(1).values[:, :5])
    assert back.items["names"] == [f"item {place}" for place in range(9, 21)]
    assert back.items["labels"][:4] == [["0"], ["1"], ["2"], ["0"]]
    raw, scale = task.divided.test.pairs.first, back.items["scales"]["first"]
    inputs = (raw - torch.tensor(scale["mean"])) / torch.tensor(scale["std"])
    with torch.no_grad():
        assert torch.equal(pack_codes(back.network.first(inputs)), packed[:, 0])


def test_an_export_names_what_it_found(tmp_path: Path) -> None:
    task = CrossModalRetrieval(mixed())
    torch.manual_seed(0)
    encoders = {"first": "cnn", "second": {"name": "ngrams", "buckets": 16}}
    built = task.build_model("coupled", bits=8, **encoders)
    assert isinstance(built, Coupled)
    back = load(built, export(built, task, tmp_path / "out"))
    assert back.items["names"][0] == "red rose"
    assert back.items["labels"][:2] == [["warm"], ["cold"]]
    assert list(back.items["scales"]) == ["first"]


def test_bad_exports(tmp_path: Path) -> None:
    task = small_task()
    folder = export(network(task), task, tmp_path / "out")
    with pytest.raises(DataError, match="out exists; export into a new folder"):
        export(network(task), task, folder)
    with pytest.raises(CheckpointError, match="no export of such a network"):
        load(network(task, bits=8), folder)
    with pytest.raises(CheckpointError, match="no export"):
        load(network(task), tmp_path)
    (folder / "items.json").write_text('{"names": ["one"]}')
    with pytest.raises(CheckpointError, match="differ in length"):
        load(network(task), folder)
    (folder / "items.json").write_text('{"names": [')
    with pytest.raises(CheckpointError, match="damaged"):
        load(network(task), folder)
    (folder / "first.faiss").write_bytes(b"IBxF")
    with pytest.raises(CheckpointError, match="damaged"):
        load(network(task), folder)
