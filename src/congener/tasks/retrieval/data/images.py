"""Pictures of any size, with or without transparency, as pixels of one size."""

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from congener.errors import DataError

__all__ = ["check_size", "decode"]


def check_size(size: int) -> None:
    """Refuse a height and width that no picture has."""
    if not isinstance(size, int) or size < 1:
        raise DataError(f"size={size!r} is not a number of pixels; give 32, say.")


def decode(source: Path | bytes, size: int, *, name: str) -> Tensor:
    """A picture on white, scaled to ``size`` × ``size``, (3, size, size), uint8.

    Args:
        source: the file, or what is in it.
        size: height and width in pixels; each pixel is the mean of those that it covers.
        name: how messages call the picture.

    Raises:
        DataError: it is no picture, or damaged.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as file:
            picture = file.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} cannot be read as an image ({error}); fetch it again.") from error
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    pixels: Tensor = functional.pil_to_tensor(flat.resize((size, size), Image.Resampling.BOX))
    return pixels.to(torch.uint8)
