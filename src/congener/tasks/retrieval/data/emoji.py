"""Emoji as several vendors draw them, read from npm packages as they are."""

import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from congener.errors import DataError

from .images import check_size, decode
from .splits import Division, IdentityDataset, Splits, divide

__all__ = ["Emoji", "emoji", "read_emoji"]

VERSION = "16.0.0"
"""Of the packages. Another one has other emoji, and so another division of them."""

VENDORS = ("google", "twitter")
"""Vendors whose licences let anyone use the pictures: Apache-2.0 and CC-BY-4.0."""

COMMAND = (
    f"npm pack emoji-datasource-google@{VERSION} emoji-datasource-twitter@{VERSION} "
    "--pack-destination data/emoji"
)


@dataclass(frozen=True, slots=True)
class Emoji:
    """Emoji that all vendors draw, in the order of the package.

    Attributes:
        names: of each, its name and short names as words, such as ``"keycap 3 three"``.
        categories: names of the categories, in alphabetical order.
        category: of each, the place of its category in them, (emoji,), int64.
        images: by vendor, (emoji, 3, size, size), uint8, on white.
    """

    names: list[str]
    categories: list[str]
    category: Tensor
    images: Mapping[str, Tensor]


def emoji(
    root: str | Path | None = None,
    *,
    size: int = 32,
    vendors: Sequence[str] = VENDORS,
    train: int = 1200,
    **division: Unpack[Division],
) -> Splits:
    """Identities are emoji, cameras are vendors: who knows one drawing, knows it in another hand.

    1,911 emoji in a fixed random order; the last 711 are the test set, which training never sees.

    Args:
        root: folder of the packages; default: ``data/emoji``. See :func:`read_emoji`.
        size: height and width in memory.
        vendors: which of them.
        train: how many emoji are for training.
        **division: labelled, teacher, holdout; see :func:`divide`.
    """
    found = read_emoji(root, size, vendors)
    if not 0 < train < len(found.names):
        raise DataError(
            f"train={train} leaves no emoji to test on, of {len(found.names)}; lower it."
        )
    order = torch.randperm(len(found.names), generator=torch.Generator().manual_seed(0))
    count, cameras = len(order), len(vendors)
    whole = IdentityDataset(
        torch.stack([found.images[vendor][order] for vendor in vendors], dim=1).flatten(0, 1),
        torch.arange(count).repeat_interleave(cameras),
        torch.arange(cameras).repeat(count),
    )
    split = torch.arange(train * cameras), torch.arange(train * cameras, count * cameras)
    names = [found.names[place] for place in order.tolist()]
    return divide("emoji", *(whole.part(rows) for rows in split), names=names, **division)


def read_emoji(
    root: str | Path | None = None, size: int = 32, vendors: Sequence[str] = VENDORS
) -> Emoji:
    """The base emoji, without skin-tone variants, of ``emoji-datasource-VENDOR-*.tgz``.

    The files are read where they lie and never unpacked; they are read once in a process.

    Args:
        root: folder of the files; default: ``data/emoji``.
        size: height and width of the pictures, which the packages have at 64.
        vendors: which of them; ``google``, ``twitter``, and others that npm has such a package of.

    Raises:
        DataError: a file that is missing, double, damaged, or of another version than 16.0.0.
    """
    folder = Path(root or "data/emoji")
    if not vendors or len(set(vendors)) < len(vendors):
        raise DataError(f"vendors={list(vendors)} names none, or one twice; name each once.")
    check_size(size)
    paths = [_find(folder, vendor) for vendor in vendors]
    stamps = [path.stat().st_mtime_ns for path in paths]
    return _read(tuple(paths), tuple(stamps), size, tuple(vendors))


def _find(folder: Path, vendor: str) -> Path:
    found = sorted(folder.glob(f"emoji-datasource-{vendor}-*.tgz"))
    if not found:
        raise DataError(
            f"There is no file emoji-datasource-{vendor}-{VERSION}.tgz in {folder}; fetch it with: "
            f"{COMMAND}"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder} has {len(found)} files of {vendor} ({names}); keep one.")
    return found[0]


@lru_cache(maxsize=2)
def _read(
    paths: tuple[Path, ...], _stamps: tuple[int, ...], size: int, vendors: tuple[str, ...]
) -> Emoji:
    packages = [_unpack(path, vendor) for path, vendor in zip(paths, vendors, strict=True)]
    listed = _listed(packages[0], paths[0])
    drawn = [e for e in listed if all(e.get(f"has_img_{vendor}") for vendor in vendors)]
    if not drawn:
        raise DataError(f"{paths[0]} lists no emoji that {' and '.join(vendors)} all draw.")
    images = {
        vendor: torch.stack([_picture(package, path, vendor, e["image"], size) for e in drawn])
        for vendor, package, path in zip(vendors, packages, paths, strict=True)
    }
    categories = sorted({e["category"] for e in drawn})
    return Emoji(
        [_words(e) for e in drawn],
        categories,
        torch.tensor([categories.index(e["category"]) for e in drawn]),
        images,
    )


def _unpack(path: Path, vendor: str) -> dict[str, bytes]:
    """What is in a package, in memory: its version, its list, and the pictures of 64 pixels."""
    pictures = f"package/img/{vendor}/64/"
    content = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name
                wanted = name.startswith(pictures) or name.removeprefix("package/") in (
                    "package.json", "emoji.json",
                )  # fmt: skip
                file = archive.extractfile(member) if wanted else None
                if file is not None:
                    content[name] = file.read()
        version = json.loads(content.get("package/package.json", b"{}")).get("version")
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it and fetch it again with: {COMMAND}"
        ) from error
    if version != VERSION:
        raise DataError(
            f"{path} is version {version or 'unknown'} of its package, but the division into "
            f"training and test emoji is that of {VERSION}; fetch it with: {COMMAND}"
        )
    return content


def _listed(package: Mapping[str, bytes], path: Path) -> list[dict[str, Any]]:
    try:
        listed: list[dict[str, Any]] = json.loads(package["package/emoji.json"])
        needed = ("name", "short_names", "category", "image")
        if all(key in emoji for emoji in listed for key in needed):
            return listed
        problem = f"an emoji lacks one of {', '.join(needed)}"
    except KeyError:
        problem = "package/emoji.json is missing"
    except (ValueError, TypeError) as error:
        problem = f"package/emoji.json: {error}"
    raise DataError(f"{path} is damaged ({problem}); delete it and fetch it again with: {COMMAND}")


def _picture(
    package: Mapping[str, bytes], path: Path, vendor: str, image: str, size: int
) -> Tensor:
    name = f"package/img/{vendor}/64/{image}"
    if name not in package:
        raise DataError(
            f"{path} lists {image} but has no {name}; delete it and fetch it again with: {COMMAND}"
        )
    return decode(package[name], size, name=f"{name} in {path}")


def _words(emoji: Mapping[str, Any]) -> str:
    """Its name, then those words of its short names that the name lacks."""
    words = str(emoji["name"] or "").lower().split()
    for name in emoji["short_names"]:
        words += [word for word in str(name).lower().replace("_", " ").split() if word not in words]
    return " ".join(words)
