"""Pictures of unknown origin: a few formats, a limit of size, fully decoded before anything relies on them."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from dig_rl.exchange.published import EntryError

MAX_PIXELS = 64_000_000
MAX_FILE_BYTES = 256 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def read_picture(path: Path, where: str) -> Image.Image:
    """Decode a picture as RGB.

    Raises:
        EntryError: damaged, too large, or of a kind that RGB does not hold.
    """
    image = _decode(path, where)
    if image.mode.startswith(("I", "F")):
        problem = f"picture {path.name} has more than 8 bits a channel ({image.mode}); convert it first"
        raise EntryError(where, problem, "bad_image")
    # A new image from the pixels alone: nothing else of the file is carried along.
    return Image.fromarray(np.asarray(image.convert("RGB")))


def read_mask(path: Path, where: str) -> np.ndarray:
    """Decode a mask as `[H, W]`, not zero where it is set; raises EntryError also for several channels."""
    mask = np.asarray(_decode(path, where))
    if mask.ndim != 2:
        raise EntryError(where, f"mask {path.name}: expected one channel, found shape {mask.shape}", "bad_image")
    return mask


def picture_size(path: Path, where: str) -> tuple[int, int]:
    """(width, height) from the header of a picture."""
    return _open(path, where).size


def _decode(path: Path, where: str) -> Image.Image:
    image = _open(path, where)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise EntryError(where, f"picture {path} is damaged ({error})", "bad_image") from None
    return image


def _open(path: Path, where: str) -> Image.Image:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise EntryError(where, f"picture {path} is larger than {MAX_FILE_BYTES // 2**20} MiB", "bad_image")
        contents = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a stricter limit follows
            image = Image.open(io.BytesIO(_without_text(contents)), formats=FORMATS)
    except Image.DecompressionBombError:
        raise EntryError(where, f"picture {path} has more than {MAX_PIXELS:,} pixels", "bad_image") from None
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise EntryError(
            where, f"picture {path}: expected {', '.join(FORMATS)}, cannot open it ({error})", "bad_image"
        ) from None
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise EntryError(where, f"picture {path} is {size}, more than {MAX_PIXELS:,} pixels", "bad_image")
    return image


def _without_text(contents: bytes) -> bytes:
    """A PNG without its text: COCO-Inpainted stores more of it in a picture than Pillow agrees to read."""
    if not contents.startswith(_PNG_SIGNATURE):
        return contents
    kept, position = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while position + 8 <= len(contents):
        (length,) = struct.unpack_from(">I", contents, position)
        end = position + 12 + length  # length, name, contents, checksum
        if contents[position + 4 : position + 8] not in _PNG_TEXT:
            kept.append(contents[position:end])
        position = end
    return b"".join(kept)
