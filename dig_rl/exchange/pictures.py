"""Pictures of unknown origin: a few formats, a limit of size, fully decoded before anything relies on them."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from dig_rl.exchange.published import EntryError
from dig_rl.image_files import (
    DAMAGE,
    FORMATS,
    MAX_PIXELS,
    frames_problem,
    kind_problem,
    open_picture,
    rgb_of,
    transparency_problem,
    turn_upright,
    turning_tag,
    upright_size,
)

MAX_FILE_BYTES = 256 * 2**20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_PNG_TAGS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Text that may ask for a turn; the second is how ImageMagick keeps the EXIF of a JPEG."""
_MAX_TAG_BYTES = 2**16


@dataclass(frozen=True)
class PictureFrame:
    """How a picture is stored, and how it is seen, which is how an import writes it."""

    stored_size_px: tuple[int, int]
    """(width, height) of the pixels in the file."""
    tag: int
    """Orientation that its EXIF tag asks for, 1 to 8."""

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of the upright picture."""
        return upright_size(self.stored_size_px, self.tag)


def read_picture(path: Path, where: str) -> Image.Image:
    """Decode a picture as RGB, upright: turned as its EXIF tag says, without the tag.

    Raises:
        EntryError: damaged, too large, or of a kind that RGB does not hold.
    """
    image = _decode(path, where)
    if problem := transparency_problem(image):
        raise EntryError(where, f"picture {path} {problem}", "bad_image")
    return Image.fromarray(turn_upright(np.asarray(rgb_of(image)), turning_tag(image)))


def read_mask(path: Path, where: str) -> np.ndarray:
    """Decode a mask as `[H, W]`, not zero where it is set, upright; raises EntryError also for several channels."""
    image = _decode(path, where, is_mask=True)
    mask = np.asarray(image)
    if mask.ndim != 2:
        raise EntryError(where, f"mask {path.name}: expected one channel, found shape {mask.shape}", "bad_image")
    return turn_upright(mask, turning_tag(image))


def read_change_mask(path: Path, where: str) -> np.ndarray:
    """Decode a mask as `[H, W]`, true where a colour is not black, upright.

    Editors and `convert("P")` store black and white as a palette whose numbers say nothing, or as RGB.
    """
    image = _decode(path, where, is_mask=True)
    if len(image.getbands()) == 1 and image.mode != "P":
        return turn_upright(np.asarray(image) != 0, turning_tag(image))
    if problem := transparency_problem(image):
        raise EntryError(where, f"mask {path.name} {problem}", "bad_mask")
    return turn_upright(np.asarray(rgb_of(image)).max(axis=2) != 0, turning_tag(image))


def picture_size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) of a picture as `read_picture` gives it, from its header."""
    return picture_frame(path, where).size_px


def picture_frame(path: Path, where: str) -> PictureFrame:
    """Stored size and turn of a picture, for annotations that may be in either frame."""
    image = _open(path, where)
    return PictureFrame(image.size, turning_tag(image))


def _decode(path: Path, where: str, *, is_mask: bool = False) -> Image.Image:
    image = _open(path, where, is_mask=is_mask)
    try:
        image.load()
    except DAMAGE as error:
        raise EntryError(where, f"picture {path} is damaged ({error})", "bad_image") from None
    return image


def _open(path: Path, where: str, *, is_mask: bool = False) -> Image.Image:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise EntryError(where, f"picture {path} is larger than {MAX_FILE_BYTES // 2**20} MiB", "bad_image")
        contents = path.read_bytes()
        image = open_picture(io.BytesIO(_without_text(contents)))
    except Image.DecompressionBombError:
        raise EntryError(where, f"picture {path} has more than {MAX_PIXELS:,} pixels", "bad_image") from None
    except DAMAGE as error:
        found = "it is none of them" if isinstance(error, UnidentifiedImageError) else str(error)
        raise EntryError(
            where, f"picture {path}: expected {', '.join(FORMATS)}, cannot open it ({found})", "bad_image"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise EntryError(where, f"picture {path} is {size}, more than {MAX_PIXELS:,} pixels", "bad_image")
    # A mask's values are names of objects, of any depth.
    if problem := frames_problem(image) if is_mask else kind_problem(image, converts=True):
        raise EntryError(where, f"picture {path} {problem}", "bad_image")
    return image


def _without_text(contents: bytes) -> bytes:
    """A PNG without its text, tags apart: COCO-Inpainted stores more of it in a picture than Pillow agrees to read."""
    if not contents.startswith(_PNG_SIGNATURE):
        return contents
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(contents):
        (length,) = struct.unpack_from(">I", contents, position)
        end = position + 12 + length  # length, name, contents, checksum
        is_tag = length <= _MAX_TAG_BYTES and contents.startswith(_PNG_TAGS, position + 8)
        if is_tag or contents[position + 4 : position + 8] not in _PNG_TEXT:
            kept.append(contents[position:end])
        position = end
    return b"".join(kept)
