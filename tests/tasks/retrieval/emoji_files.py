"""Tiny npm packages in the layout of emoji-datasource-VENDOR-16.0.0.tgz."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

__all__ = ["listed", "picture", "save_emoji", "write_package"]

CATEGORIES = ("Symbols", "Flags", "Objects")


def listed(count: int) -> list[dict[str, Any]]:
    """Entries of ``emoji.json``; the third but last is one that twitter does not draw."""
    return [
        {
            "name": f"EMOJI {number}",
            "unified": f"1F{number:03X}",
            "image": f"1f{number:03x}.png",
            "short_name": f"short_{number}",
            "short_names": [f"short_{number}", f"emoji_{number}_too"],
            "category": CATEGORIES[number % 3],
            "has_img_google": True,
            "has_img_twitter": number != count - 3,
        }
        for number in range(count)
    ]


def picture(number: int, vendor: str) -> bytes:
    """A PNG of 64 × 64 with transparency: a disc on nothing, its colour and place by number."""
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    x, y = 4 + (number * 7) % 30, 4 + (number * 11) % 30
    colour = ((number * 53) % 256, (number * 97) % 256, (number * 31) % 256, 255)
    shape = draw.ellipse if vendor == "google" else draw.rectangle
    shape((x, y, x + 28, y + 28), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_package(path: Path, content: Mapping[str, bytes]) -> None:
    """A gzipped tar archive with these files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def save_emoji(
    folder: Path,
    count: int = 12,
    *,
    vendors: Sequence[str] = ("google", "twitter"),
    version: str = "16.0.0",
    changes: Mapping[str, bytes | None] | None = None,
) -> Path:
    """Write a package for each vendor; ``changes`` replaces or leaves out files of the last one."""
    folder.mkdir(parents=True, exist_ok=True)
    for vendor in vendors:
        entries = listed(count)
        content = {
            "package/package.json": json.dumps({"version": version}).encode(),
            "package/README.md": b"not read",
            "package/emoji.json": json.dumps(entries).encode(),
            f"package/img/{vendor}/sheets/64.png": b"not read",
        }
        for number, entry in enumerate(entries):
            if entry[f"has_img_{vendor}"]:
                content[f"package/img/{vendor}/64/{entry['image']}"] = picture(number, vendor)
        if vendor == vendors[-1]:
            changed = {**content, **(changes or {})}
            content = {name: data for name, data in changed.items() if data is not None}
        write_package(folder / f"emoji-datasource-{vendor}-{version}.tgz", content)
    return folder
