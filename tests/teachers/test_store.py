"""A store gives back what was written, or says why not."""

import errno
import json
import os
import shutil
from contextlib import AbstractContextManager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.teachers.stores import FIELDS, IDENTITY, SAMPLES, answers, built, create, right, write

from congener.errors import DataError, RunError, StaleCache
from congener.teachers import Field, TeacherStore
from congener.teachers import store as stores
from congener.teachers.shards import BLOCK, Layout, ShardFile
from congener.teachers.store import WITNESS


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("shard_bytes", [1, 300, 1 << 20])
def test_gives_back_what_was_written(tmp_path, shard_bytes) -> None:
    store = built(tmp_path / "store", shard_bytes=shard_bytes)
    everything = torch.arange(SAMPLES)
    for ids in (
        everything, everything.flip(0), torch.tensor([22, 0, 0, 9, 22]), torch.tensor([4]),
        everything.int(), everything[:0], everything[::3],
    ):  # fmt: skip
        for view in (0, 1, 2, 7):
            assert right(store, ids, view)
            assert right(TeacherStore.open(store.folder), ids, view)


def test_a_part_of_the_fields_is_enough(tmp_path) -> None:
    found = built(tmp_path).read(["layer1"], torch.tensor([3]), 1)
    assert list(found) == ["layer1"]
    assert torch.equal(found["layer1"], answers(1)["layer1"][3:4])


def test_what_was_read_is_the_readers(tmp_path) -> None:
    store, ids = built(tmp_path), torch.tensor([3, 4])
    store.read(["logits", "pooled"], ids, 0)["logits"].zero_()
    assert right(store, ids, 0)


def test_files_are_what_the_library_says_they_are(tmp_path) -> None:
    store = built(tmp_path)
    shard = store.shards[-1]
    path = store.path(shard)
    assert path == tmp_path / "view-1" / "21-22.safetensors"
    found = load_file(path)
    said = answers(1)
    assert torch.equal(found["logits"], said["logits"][21:])
    assert torch.equal(found["layer1"], said["layer1"][21:].half())
    assert torch.equal(found["pooled"], said["pooled"][21:])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "store": store.key, "view": "1", "first row": "21", "last row": "22",
        }  # fmt: skip


def test_the_size_is_known_before(tmp_path) -> None:
    store = create(tmp_path)
    assert not files(tmp_path)
    needed = store.nbytes
    built(tmp_path)
    assert sum(path.stat().st_size for path in files(tmp_path)) == needed


def test_a_row_costs_hardly_more_than_what_is_kept(tmp_path) -> None:
    fields = [Field("logits", (1000,), "float32", "fp16")]
    store = create(tmp_path, fields=fields, samples=50_000, views=1, shard_bytes=64 << 20)
    assert store.nbytes <= 1.01 * 50_000 * 1000 * 2  # the centre and the witness: six bytes


def test_what_is_missing(tmp_path) -> None:
    store = create(tmp_path)
    assert store.missing() == store.shards
    assert [(s.view, s.first, s.last) for s in store.shards[:5]] == [
        (0, 0, 6), (0, 7, 13), (0, 14, 20), (0, 21, 22), (1, 0, 6),
    ]  # fmt: skip
    assert write(store, store.shards[2])
    assert store.missing() == [s for s in store.shards if s != store.shards[2]]
    assert right(store, torch.tensor([14, 20]), 0)
    with pytest.raises(DataError, match=r"0-6.safetensors is missing; run `congener cache build`"):
        right(store, torch.tensor([0]), 0)
    assert store.info()["missing"] == 7
    assert len(store.verify()) == 7


def test_says_what_it_is(tmp_path) -> None:
    store = built(tmp_path)
    assert store.info() == {
        "folder": str(tmp_path), "bytes": store.nbytes, "samples": 23, "views": 2, "shards": 8,
        "missing": 0, "identity": IDENTITY, "versions": {"torch": "2"}, "exact": False,
        "fields": {
            "logits": "float32 [5] kept as fp32", "layer1": "float32 [2, 3] kept as fp16",
            "pooled": "bfloat16 [4] kept as bf16", WITNESS: "float32 [] kept as fp32",
        },
    }  # fmt: skip
    json.dumps(store.info())


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"identity": IDENTITY | {"teacher weights": "91bc"}},
     "its teacher weights is 3f2a91, and now it is 91bc; remove that folder and run `congener "),
    ({"identity": IDENTITY | {"loader": "new"}}, "its loader is none, and now it is new"),
    ({"identity": {"teacher weights": "3f2a91", "training views": "07bc11"}},
     "its seed of the views is 0, and now it is none"),
    ({"views": 3}, "its views is 2, and now it is 3"),
    ({"samples": 24}, "its samples is 23, and now it is 24"),
    ({"fields": FIELDS[:2]}, r"its tensor 'pooled' is bfloat16 \[4\] kept as bf16, and now it is "),
    ({"fields": (Field("logits", (5,), "float32", "fp16"), *FIELDS[1:])},
     r"its tensor 'logits' is float32 \[5\] kept as fp32, and now it is float32 \[5\] kept as fp1"),
])  # fmt: skip
def test_a_store_of_something_else_is_refused(tmp_path, changes, sentence) -> None:
    built(tmp_path)
    with pytest.raises(StaleCache, match=sentence):
        create(tmp_path, **changes)
    assert create(tmp_path).missing() == []


def test_long_lines_are_told_from_where_they_differ(tmp_path) -> None:
    words = "crop 32 with padding 4, then " * 3
    create(tmp_path, identity={"transform": f"{words}flip, then normalise by mean and deviation"})
    with pytest.raises(StaleCache) as error:
        create(tmp_path, identity={"transform": f"{words}blur, then normalise by mean"})
    assert "flip, then" in str(error.value)
    assert "blur, then" in str(error.value)
    assert len(str(error.value)) < 320


def test_other_versions_and_sizes_of_files_are_no_other_store(tmp_path) -> None:
    built(tmp_path)
    store = create(tmp_path, versions={"torch": "3"}, shard_bytes=1 << 20)
    assert store.versions == {"torch": "2"}
    assert right(store, torch.tensor([9]), 0)


@pytest.mark.parametrize("id_", [-1, 23, -(1 << 62)])
def test_an_id_that_there_is_not(tmp_path, id_) -> None:
    store = built(tmp_path)
    with pytest.raises(DataError, match=rf"has the samples 0 to 22, not {id_}; ids are positions"):
        store.read(["logits"], torch.tensor([3, id_]), 0)


def test_a_tensor_that_there_is_not(tmp_path) -> None:
    with pytest.raises(StaleCache, match="does not hold 'layer2'; did you mean 'layer1'"):
        built(tmp_path).read(["layer2"], torch.tensor([3]), 0)


def test_no_store_at_all(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no teacher store; run `congener cache build` first"):
        TeacherStore.open(tmp_path)
    with pytest.raises(DataError, match="holds no teacher store"):
        TeacherStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"store": "x"}', '"\udc80"', "null"])
def test_a_damaged_manifest(tmp_path, text) -> None:
    built(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(text, errors="surrogateescape")
    for reader in (TeacherStore.open, create):
        with pytest.raises(
            DataError, match=r"manifest.json is .*damaged.*remove that file and run"
        ):
            reader(tmp_path)
    path.unlink()  # as the sentence says
    assert right(create(tmp_path), torch.arange(SAMPLES), 1)


def test_a_manifest_that_was_edited(tmp_path) -> None:
    built(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"views": 2', '"views": 1'))
    with pytest.raises(DataError, match="is damaged: it is not what was written"):
        TeacherStore.open(tmp_path)


def test_a_store_of_another_format(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stores, "FORMAT", "0")
        built(tmp_path)
    with pytest.raises(StaleCache, match="of the format 0, and this congener has 1; remove it"):
        TeacherStore.open(tmp_path)


def flip(path: Path, place: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def test_every_bit_of_a_file_counts(tmp_path) -> None:
    store = built(tmp_path, views=1, samples=3, shard_bytes=1 << 20)
    (path,) = files(tmp_path)
    sound = path.read_bytes()
    said = answers(0, 3)
    for place in range(0, len(sound), 3):
        flip(path, place, place % 8)
        with pytest.raises(
            DataError, match=r"0-2.safetensors .*; remove that file and run `congen"
        ):
            TeacherStore.open(tmp_path).read(list(store.fields), torch.arange(3), 0)
        assert len(store.verify()) == 1
        path.write_bytes(sound)
    found = TeacherStore.open(tmp_path).read(["logits"], torch.arange(3), 0)
    assert torch.equal(found["logits"], said["logits"])


def test_only_what_is_read_is_checked_and_once(tmp_path) -> None:
    rows = 3 * BLOCK // (5 * 4)
    fields, samples = [Field("logits", (5,), "float32")], rows
    store = create(tmp_path, fields=fields, samples=samples, views=1, shard_bytes=1 << 20)
    value = torch.randn(samples, 5)
    with store.claim(store.shards[0]) as draft:
        store.write(draft, {"logits": value, WITNESS: value[:, 0]})
    (path,) = files(tmp_path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    last = path.stat().st_size - 4 * samples - 1  # of the logits; the witness is behind them
    assert last > header
    flip(path, last)
    assert torch.equal(store.read(["logits"], torch.tensor([0]), 0)["logits"], value[:1])
    with pytest.raises(
        DataError, match=rf"is damaged: 'logits' of its rows \d+ to {samples - 1} is"
    ):
        store.read(["logits"], torch.tensor([0, samples - 1]), 0)
    assert torch.equal(
        store.read([WITNESS], torch.tensor([samples - 1]), 0)[WITNESS], value[-1:, 0]
    )
    (sentence,) = store.verify()
    assert "'logits'" in sentence


@pytest.mark.parametrize("forgotten", [False, True])
def test_large_rows(tmp_path, monkeypatch, forgotten) -> None:
    monkeypatch.setattr(stores, "_memory", lambda: 1e3 if forgotten else 1e12)
    fields = [Field("layer1", (1025,), "float32")]
    for shard_bytes in (1 << 20, 5 * 4104):
        folder = tmp_path / str(shard_bytes)
        store = create(folder, fields=fields, samples=20, views=1, shard_bytes=shard_bytes)
        value = torch.randn(20, 1025)
        for shard in store.missing():
            with store.claim(shard) as draft:
                rows = value[shard.first : shard.last + 1]
                store.write(draft, {"layer1": rows, WITNESS: rows[:, 0]})
        ids = torch.tensor([19, 3, 3, 0, 11])
        for _ in range(2):
            assert torch.equal(store.read(["layer1"], ids, 0)["layer1"], value[ids])
        assert torch.equal(store.read(["layer1"], torch.arange(20), 0)["layer1"], value)
        assert torch.equal(store.read(["layer1"], ids, 0)["layer1"], value[ids])


@pytest.mark.parametrize("forgotten", [False, True])
def test_what_was_checked_is_not_checked_again(tmp_path, monkeypatch, forgotten) -> None:
    monkeypatch.setattr(stores, "_memory", lambda: 1e3 if forgotten else 1e12)
    store, calls = built(tmp_path), []
    for owner, name in ((Layout, "checksum"), (ShardFile, "_fetch")):
        whole = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *given, name=name, whole=whole: calls.append(name) or whole(*given)
        )
    assert right(store, torch.arange(SAMPLES), 0)
    assert calls.count("checksum") == 4 * len(store.fields)  # of each file
    calls.clear()
    assert right(store, torch.arange(SAMPLES), 0)
    assert calls == (["_fetch"] * 4 * len(store.fields) if forgotten else [])


def test_numbers_are_aligned(tmp_path) -> None:
    fields = [Field("layer1", (3,), "float32", "fp16"), Field("logits", (5,), "float32")]
    store = create(tmp_path, fields=fields, samples=7, shard_bytes=1 << 20)
    layout = store._layout(store.shards[0])
    assert len(layout.header) % 8 == 0
    assert all(layout.places[p.name][0] % p.dtype.itemsize == 0 for p in store._parts)


def test_truncated(tmp_path) -> None:
    store = built(tmp_path)
    path = store.path(store.shards[0])
    sound = path.read_bytes()
    for size in (len(sound) - 1, len(sound) // 2, 9, 8, 1):
        path.write_bytes(sound[:size])
        with pytest.raises(
            DataError, match=rf"truncated: expected {len(sound)} bytes, came {size};"
        ):
            right(TeacherStore.open(tmp_path), torch.tensor([0]), 0)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"0-6.safetensors cannot be read"):
        right(TeacherStore.open(tmp_path), torch.tensor([0]), 0)
    path.write_bytes(sound + b"x")
    with pytest.raises(DataError, match="is too long: expected"):
        right(TeacherStore.open(tmp_path), torch.tensor([0]), 0)


def test_a_file_in_the_wrong_place(tmp_path) -> None:
    store = built(tmp_path / "one")
    other = built(tmp_path / "other", identity=IDENTITY | {"teacher weights": "other"})
    first, second, later = store.shards[0], store.shards[1], store.shards[4]
    for source, wrong in (
        (store.path(second), "its first row is 7 instead of 0"),
        (store.path(later), "its view is 1 instead of 0"),
        (other.path(first), f"its store is {other.key} instead of {store.key}"),
    ):
        keep = store.path(first).read_bytes()
        shutil.copy(source, store.path(first))
        with pytest.raises(
            DataError, match=f"is not the file that belongs there: {wrong}; remove "
        ):
            right(TeacherStore.open(store.folder), torch.tensor([0]), 0)
        store.path(first).write_bytes(keep)


def test_rows_of_another_place_under_a_right_header(tmp_path) -> None:
    """As if the payloads of two files of one length were exchanged on disk."""
    store = built(tmp_path)
    one, two = (store.path(shard) for shard in store.shards[:2])
    header = 8 + int.from_bytes(one.read_bytes()[:8], "little")
    mine, its = one.read_bytes(), two.read_bytes()
    one.write_bytes(mine[:header] + its[8 + int.from_bytes(its[:8], "little") :])
    with pytest.raises(DataError, match="is damaged"):
        right(store, torch.tensor([0]), 0)


def test_a_damaged_file_is_rebuilt_alone(tmp_path) -> None:
    store = built(tmp_path)
    path = store.path(store.shards[3])
    times = {p: p.stat().st_mtime_ns for p in files(tmp_path) if p != path}
    flip(path, -1)
    (sentence,) = TeacherStore.open(tmp_path).verify()
    assert "only it is rebuilt" in sentence
    path.unlink()
    again = built(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert again.verify() == []
    assert right(again, torch.arange(SAMPLES), 0)


def test_one_writes_what_another_leaves(tmp_path) -> None:
    store = create(tmp_path)
    shard = store.shards[0]
    with store.claim(shard) as mine:
        assert mine is not None
        assert not write(create(tmp_path), shard)
        assert not store.path(shard).exists()
    assert write(store, shard)
    assert not write(store, shard)  # it is there
    for shard in store.missing():
        write(store, shard)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "manifest.json", *(path.name for path in files(tmp_path)),
    }  # fmt: skip


def test_what_a_killed_process_left_is_overwritten(tmp_path) -> None:
    store = create(tmp_path)
    shard = store.shards[0]
    with store.claim(shard) as draft:
        draft.file.write(b"half of it" * 1000)
    assert store.missing() == store.shards
    assert write(store, shard)
    assert right(store, torch.arange(7), 0)


@pytest.mark.parametrize("how", ["renamed", "renamed and removed", "copied"])
def test_who_waited_for_a_draft_that_was_renamed_lets_go(tmp_path, monkeypatch, how) -> None:
    """Between opening a draft and locking it, its writer may have given it its name."""
    sound, store = built(tmp_path / "sound"), create(tmp_path / "store")
    shard, lock = store.shards[0], stores._lock

    def late(file: object) -> bool | None:
        monkeypatch.setattr(stores, "_lock", lock)
        if how == "copied":
            shutil.copytree(sound.folder, store.folder, dirs_exist_ok=True)
        else:
            assert write(create(store.folder), shard)  # of another process, on the same draft
        if how == "renamed and removed":
            store.path(shard).unlink()
        return lock(file)

    monkeypatch.setattr(stores, "_lock", late)
    with store.claim(shard) as draft:
        assert draft is None
    if how == "renamed and removed":
        assert write(store, shard)
    assert right(store, torch.arange(7), 0)


def test_who_comes_as_another_gives_a_file_its_name_leaves_no_draft(tmp_path, monkeypatch) -> None:
    """Between looking for a file and opening its draft, its writer may have finished it."""
    store, writing = create(tmp_path), stores._writing

    def late(folder: Path) -> AbstractContextManager[None]:
        monkeypatch.setattr(stores, "_writing", writing)
        assert write(create(store.folder), store.shards[0])
        return writing(folder)

    monkeypatch.setattr(stores, "_writing", late)
    with store.claim(store.shards[0]) as draft:
        assert draft is None
    assert not list(tmp_path.rglob("*draft*"))


def test_without_locks_work_is_done_twice_at_worst(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stores, "_lock", lambda file: None)
    store = create(tmp_path)
    shard = store.shards[0]
    with store.claim(shard) as mine:
        assert str(os.getpid()) in mine.path.name
        assert write(store, store.shards[1])
    for each in store.missing():
        assert write(store, each)
    assert right(store, torch.arange(SAMPLES), 1)
    assert not list(tmp_path.rglob("*draft*"))


def test_a_disk_that_is_too_small(tmp_path, monkeypatch) -> None:
    store = create(tmp_path / "one")
    needed = store.nbytes

    def with_free(free: int) -> None:
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(stores.shutil, "disk_usage", lambda path: usage)

    with_free(needed + stores.SPARE - 1)
    with pytest.raises(RunError, match=r"needs 1.1 MB, but its disk has 1.1 MB free; name a "):
        store.check_room()
    with pytest.raises(RunError, match="needs"):
        create(tmp_path / "two")
    assert not (tmp_path / "two").exists()  # before the first byte
    with_free(needed + stores.SPARE)
    store.check_room()
    for shard in store.shards[:4]:
        write(store, shard)
    with_free(needed // 2 + stores.SPARE + 100)
    store.check_room()
    for shard in store.missing():
        write(store, shard)
    with_free(0)
    store.check_room()
    assert right(create(tmp_path / "one"), torch.tensor([3]), 0)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/store cannot be written \(Not a directory\); free"):
        create(tmp_path / "file" / "store")
    store = create(tmp_path / "store")
    (tmp_path / "store" / "view-0").write_text("")
    with pytest.raises(RunError, match=r"cannot be written \("):
        write(store, store.shards[0])

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stores.os, "fsync", full)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\); free some"):
        write(store, store.shards[-1])
    assert store.shards[-1] in store.missing()


def test_an_error_of_the_builder_is_its_own(tmp_path) -> None:
    store = create(tmp_path)
    with pytest.raises(FileNotFoundError, match="an image"), store.claim(store.shards[0]):
        raise FileNotFoundError("an image")


def test_a_whole_store_needs_no_writing(tmp_path, monkeypatch) -> None:
    built(tmp_path)

    def refuse(*_arguments: object, **_named: object) -> None:
        raise PermissionError

    for name in ("mkdir", "open"):
        opened = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda path, mode="r", *rest, opened=opened, **named: refuse()
            if "r" not in str(mode) else opened(path, mode, *rest, **named),
        )  # fmt: skip
    store = create(tmp_path)
    assert store.missing() == []
    assert right(store, torch.arange(SAMPLES), 0)


def test_a_copy_reads_on(tmp_path) -> None:
    store = built(tmp_path)
    assert right(store, torch.tensor([3]), 0)
    assert right(deepcopy(store), torch.tensor([3]), 0)
