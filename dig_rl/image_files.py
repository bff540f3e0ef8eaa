"""Which picture files are taken, and as which pixels: the one place that decides about kinds and turning tags.

A data folder's pictures are their stored pixels: a tag that asks viewers to turn them (EXIF or XMP orientation) is not
followed. An import turns pictures upright once and stores them without the tag. docs/data.md has the table of kinds.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from dig_rl.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is opened, whatever a file is named. A JPEG of several pictures (MPO) is its first, as viewers show it."""
MAX_PIXELS = 64_000_000
"""More than any picture here needs, and few enough to decode: a small file can claim to hold far more."""
MAX_ASPECT_RATIO = 200
"""Longer side over shorter: beyond, the resize rule of the Qwen-VL families refuses a picture."""
UPRIGHT = 1
"""The orientation that asks for no turn."""
GRAY = (128, 128, 128)
"""Of a picture with nothing to see."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error)
"""What Pillow raises over bytes that are no picture, or a damaged one."""
_TURNED = (
    ", which is what its turning tag makes of it: size and boxes are those of the stored pixels; give them so, or turn "
    "the pixels and drop the tag"
)
_PLAIN_MODES = {"RGB", "L"}
_CONVERTED_MODES = {"1", "P", "LA", "PA", "RGBA", "CMYK"}
_DEEP_RAW_MODE = ";16B"
"""How Pillow marks 16 bits a channel of a PNG, which it silently halves unless the picture is grey."""


def open_picture(source: str | Path | BinaryIO) -> Image.Image:
    """Open a picture of one of `FORMATS`, without Pillow's warnings: damaged tags are none, and sizes are checked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(source, formats=FORMATS)


def kind_problem(image: Image.Image, *, converts: bool) -> str | None:
    """Why a picture of this kind is refused, in words that follow its name; None for one that is taken.

    Args:
        image: opened, not decoded yet.
        converts: as an import takes it, which writes RGB; otherwise as a data folder must have it.
    """
    if problem := frames_problem(image) or _shape_problem(image.size):
        return problem
    if image.mode.startswith(("I", "F")) or any(str(part[3]).endswith(_DEEP_RAW_MODE) for part in _parts(image)):
        return "has 16 bits a channel or more; expected 8: scale its values to 0-255 and save it again"
    if image.mode in _PLAIN_MODES and (converts or "transparency" not in image.info):
        return None
    if not converts:
        return f"has mode {image.mode}; expected 8-bit RGB or grey without palette or transparency: convert it"
    if image.mode not in _CONVERTED_MODES:
        return f"has mode {image.mode}; expected RGB, grey, a palette or CMYK: save it as RGB"
    return None


def frames_problem(image: Image.Image) -> str | None:
    """Why a picture that moves is refused; None for a single one."""
    frames = getattr(image, "n_frames", 1)
    if frames == 1 or image.format == "MPO":
        return None
    return f"holds {frames} pictures (an animation); expected one: save the one that is meant as PNG"


def _shape_problem(size_px: tuple[int, int]) -> str | None:
    ratio = max(size_px) / min(size_px)
    if ratio <= MAX_ASPECT_RATIO:
        return None
    found = f"{size_px[0]}x{size_px[1]}, one side {ratio:g} times the other"
    return f"is {found}; expected at most {MAX_ASPECT_RATIO} times, as policies take it: crop it, or leave it out"


def transparency_problem(image: Image.Image) -> str | None:
    """Why a picture that shows its ground somewhere is refused; None for an opaque one, with alpha or without."""
    if not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255:
        return None
    return "is transparent in places; expected an opaque picture: flatten it onto the ground that is meant"


def rgb_of(image: Image.Image) -> Image.Image:
    """The stored pixels as RGB, and nothing else of the file: no tag, no colour profile, no alpha."""
    return Image.fromarray(np.asarray(image.convert("RGB")))


def turning_tag(image: Image.Image) -> int:
    """The orientation, 1 to 8, that a picture's EXIF (or else XMP) tag asks for; 1 without one that means anything."""
    return _readable_tag(image) or UPRIGHT


def _readable_tag(image: Image.Image) -> int | None:
    """None where a tag is damaged so that readers fail over it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tag = image.getexif().get(ExifTags.Base.Orientation)
    except DAMAGE:  # Pillow reads whatever bytes stand there
        return None
    return tag if type(tag) is int and 1 <= tag <= 8 else UPRIGHT


def turn_upright(pixels: np.ndarray, tag: int) -> np.ndarray:
    """Stored pixels `[H, W, ...]` as their tag says they are to be seen; `[W, H, ...]` for tags 5 to 8."""
    if tag >= 5:
        pixels = pixels.swapaxes(0, 1)
    if tag in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if tag in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def upright_size(stored_size_px: tuple[int, int], tag: int) -> tuple[int, int]:
    """(width, height) after the turn."""
    width, height = stored_size_px
    return (height, width) if tag >= 5 else (width, height)


def read_stored(path: str | Path) -> Image.Image:
    """A picture of a data folder, or of another folder that is read in place: its stored pixels, RGB.

    Raises:
        DataError: of a kind that RGB does not hold.
        OSError, ValueError, Image.DecompressionBombError: it cannot be read.
    """
    return read_with_tag(path)[0]


def read_with_tag(path: str | Path) -> tuple[Image.Image, int]:
    """A picture as `read_stored` gives it, and the turn that other readers would give it, 1 for none."""
    with open_picture(path) as image:
        _refuse(image)
        return rgb_of(image), turning_tag(image)


def stored_size(source: str | Path | BinaryIO) -> tuple[int, int]:
    """(width, height) of a picture as `read_stored` gives it, from its header; raises as that does."""
    with open_picture(source) as image:
        _refuse(image)
        return image.size


def has_tag(path: str | Path) -> bool:
    """Whether readers that follow a turning tag would turn this picture, or fail over a damaged one."""
    with open_picture(path) as image:
        return _readable_tag(image) != UPRIGHT


def untagged_png(path: str | Path) -> bytes:
    """A picture with a tag as other tools may be given it: a PNG of its stored pixels."""
    buffer = io.BytesIO()
    read_stored(path).save(buffer, format="PNG")
    return buffer.getvalue()


def _refuse(image: Image.Image) -> None:
    problem = None
    if image.width * image.height > MAX_PIXELS:
        problem = f"claims {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels are not decoded"
    if problem := problem or kind_problem(image, converts=True) or transparency_problem(image):
        raise DataError(f"the picture {problem}")


def image_problem(folder: Path, name: str, size_px: tuple[int, int]) -> str | None:
    """What is wrong with an image, in words that follow `image <name>`; None for a sound one.

    PNG files are checked by their checksums, others by decoding them.

    Args:
        folder: the data folder, resolved.
        name: as the metadata gives it, see `leads_out`.
        size_px: (width, height) it must have.
    """
    if leads_out(name):
        return "lies outside the data folder: expected no `..` in the name; a link, or an absolute path, may lead out"
    try:
        path = (folder / name).resolve()
        if not path.exists():
            return f"does not exist in {folder}"
        if not path.is_file():
            return "is not a file"
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a loop of links
        return f"cannot be looked up ({error})"
    try:
        return _content_problem(path, size_px)
    except UnidentifiedImageError:
        return f"is damaged, or none of {', '.join(FORMATS)}; convert it, or copy it again"
    except (*DAMAGE, Image.DecompressionBombError) as error:
        return f"is damaged ({error}); make or copy it again"


def leads_out(name: str) -> bool:
    """Whether a file name climbs out of the folder that it is relative to.

    Links are followed wherever they lead and an absolute path is taken as it is: whoever made the folder on this
    machine meant them. A `..` means another place in every copy of the folder.
    """
    return ".." in PurePosixPath(name).parts


def folders_outside(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Where pictures lie that are not in the data folder, through a link or by an absolute path.

    Args:
        folder: the data folder, resolved.
        names: of pictures that are there.

    Returns:
        The real folder by the folder that the names give.
    """
    outside: dict[str, str] = {}
    for name in names:
        real = (folder / name).resolve()
        if not real.is_relative_to(folder):
            outside.setdefault(str(PurePosixPath(name).parent), str(real.parent))
    return outside


def _content_problem(path: Path, size_px: tuple[int, int]) -> str | None:
    with open_picture(path) as image:
        if image.width * image.height > MAX_PIXELS:
            return f"claims {image.width}x{image.height}, more than {MAX_PIXELS} pixels are not decoded"
        if image.size != size_px:
            turned = upright_size(image.size, turning_tag(image)) == size_px
            return f"is {image.width}x{image.height}, the line says {size_px[0]}x{size_px[1]}{_TURNED * turned}"
        if problem := kind_problem(image, converts=False):
            return problem
        image.verify() if image.format == "PNG" else image.load()
    return None


def gray_image(folder: Path, size_px: tuple[int, int]) -> Path:
    """An even gray image of this (width, height) in `folder`, made if it is not there."""
    path = folder / f"gray_{size_px[0]}x{size_px[1]}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size_px, GRAY).save(path)
    return path


def _parts(image: Image.Image) -> list[Any]:
    """How the picture is to be decoded, part by part; empty once that is done."""
    return list(getattr(image, "tile", ()))
