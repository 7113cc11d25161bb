"""What a search service needs of trained coupled networks: encoders, indexes, and what is in them.

first.safetensors  second.safetensors    the weights of the encoders
first.faiss  second.faiss                binary indexes of the database by either modality
items.json                               names and labels of the items, how inputs are scaled
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import faiss
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from congener.errors import CheckpointError, DataError
from congener.taps import bare

from .exhibits import codes_of, item_labels, item_name
from .index import build_index, pack_codes
from .models import Coupled

if TYPE_CHECKING:
    from .task import CrossModalRetrieval

__all__ = ["Exported", "export", "load"]

SIDES = ("first", "second")


class Exported(NamedTuple):
    """What :func:`load` reads.

    Attributes:
        network: with the exported weights, in evaluation mode.
        indexes: of the database by its codes of the first and of the second modality; search that
            of the other modality than the query's with :func:`.search`.
        items: of each place in the indexes, its name and labels; and how inputs are scaled.
    """

    network: Coupled
    indexes: tuple[Any, Any]
    items: dict[str, Any]


def export(network: Coupled, task: "CrossModalRetrieval", folder: str | Path) -> Path:
    """Write the encoders, and the database of the task's test set as indexes, into a new folder.

    Args:
        network: trained.
        task: whose database, and how its items become inputs.
        folder: must not exist yet.

    Returns:
        The folder.

    Raises:
        DataError: the folder exists.
    """
    target = Path(folder)
    if target.exists():
        raise DataError(f"{target} exists; export into a new folder, or delete it.")
    inner, test = bare(network), task.divided.test
    assert isinstance(inner, Coupled)
    was_training = inner.training
    rows = task.searched().nonzero().flatten()
    codes = pack_codes(codes_of(inner.eval(), task, test))[rows]
    inner.train(was_training)
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for place, side in enumerate(SIDES):
        weights = getattr(inner, side).state_dict()
        save_file(
            {name: value.cpu().contiguous() for name, value in weights.items()},
            draft / f"{side}.safetensors",
        )
        faiss.write_index_binary(build_index(codes[:, place]), str(draft / f"{side}.faiss"))
    about = {
        "names": [item_name(task, int(row)) for row in rows],
        "labels": [item_labels(task, int(row)) for row in rows],
        "scales": task.scales(),
    }
    (draft / "items.json").write_text(json.dumps(about), encoding="utf-8")
    return draft.rename(target)


def load(network: Coupled, folder: str | Path) -> Exported:
    """Read what :func:`export` wrote.

    Args:
        network: of the same kind, as it was built; it takes the weights.
        folder: of the export.

    Raises:
        CheckpointError: a file that is missing or damaged, or weights of another network.
    """
    source = Path(folder)
    try:
        for side in SIDES:
            getattr(network, side).load_state_dict(load_file(source / f"{side}.safetensors"))
        first, second = (faiss.read_index_binary(str(source / f"{side}.faiss")) for side in SIDES)
        items: dict[str, Any] = json.loads((source / "items.json").read_text(encoding="utf-8"))
        count = len(items.get("names", []))
    except (OSError, RuntimeError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f"{source} holds no export of such a network, or a damaged one: {error}"
        ) from error
    if not first.ntotal == second.ntotal == count:
        raise CheckpointError(
            f"{source}: the indexes and items.json differ in length; export anew."
        )
    network.eval()
    return Exported(network, (first, second), items)
