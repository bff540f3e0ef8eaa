"""What an image of a data folder must be before anything reads its pixels, and an image that shows nothing."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

MAX_PIXELS = 64_000_000
"""More than any picture here needs, and few enough to decode: a small file can claim to hold far more."""
_MODES = {"RGB", "L"}
_PNG_DEPTH_BYTE = 24
"""Where a PNG states its bits a channel; Pillow silently halves 16-bit colour. Source: PNG specification, IHDR."""
GRAY = (128, 128, 128)
"""Of a picture with nothing to see."""


def image_problem(folder: Path, name: str, size_px: tuple[int, int]) -> str | None:
    """What is wrong with an image, in words that follow `image <name>`; None for a sound one.

    PNG files are checked by their checksums, others by decoding them.

    Args:
        folder: the data folder, resolved.
        name: path within it, as the metadata gives it; links out of the folder count as outside.
        size_px: (width, height) it must have.
    """
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder):
            return "lies outside the data folder"
        if not path.exists():
            return f"does not exist in {folder}"
        if not path.is_file():
            return "is not a file"
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        return f"cannot be looked up ({error})"
    try:
        return _content_problem(path, size_px)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"is damaged ({error}); make or copy it again"


def _content_problem(path: Path, size_px: tuple[int, int]) -> str | None:
    with path.open("rb") as file:
        depth = file.read(_PNG_DEPTH_BYTE + 1)[-1:]
        file.seek(0)
        with Image.open(file) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"claims {image.width}x{image.height}, more than {MAX_PIXELS} pixels are not decoded"
            if image.size != size_px:
                return f"is {image.width}x{image.height}, the line says {size_px[0]}x{size_px[1]}"
            if image.mode not in _MODES or "transparency" in image.info or (image.format == "PNG" and depth == b"\x10"):
                found = "16 bits a channel" if depth == b"\x10" else f"mode {image.mode}"
                return f"has {found}; expected 8-bit RGB or grey without palette or transparency: convert it"
            image.verify() if image.format == "PNG" else image.load()
    return None


def gray_image(folder: Path, size_px: tuple[int, int]) -> Path:
    """An even gray image of this (width, height) in `folder`, made if it is not there."""
    path = folder / f"gray_{size_px[0]}x{size_px[1]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_px, GRAY).save(path)
    return path
