"""Which pictures are taken, as which pixels, and how a turning tag is read; Pillow's own turn is the reference."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from dig_rl.boxes import turn_px
from dig_rl.data import load_examples
from dig_rl.errors import DataError
from dig_rl.exchange.pictures import picture_frame, picture_size, read_mask, read_picture
from dig_rl.exchange.published import EntryError
from dig_rl.image_files import read_stored, turn_upright, turning_tag
from tests.data_folders import SIZE, line_of, pictures, write_folder

TAGS = range(1, 9)
PIXELS = pictures(1)[1]
GREY = np.asarray(Image.fromarray(PIXELS).convert("L"))


def tagged(path: Path, tag: Any, pixels: np.ndarray = PIXELS, **options: Any) -> Path:
    """Write a picture whose EXIF asks for a turn."""
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def deep_rgb(path: Path) -> Path:
    """A PNG of 16 bits a channel, in colour, which Pillow reads as if it had 8."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in PIXELS.astype(np.uint16) * 257)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def alpha(lowest: int) -> Image.Image:
    """The picture with an alpha channel, opaque but for one pixel."""
    image = Image.fromarray(PIXELS).convert("RGBA")
    image.putpixel((3, 4), (*image.getpixel((3, 4))[:3], lowest))
    return image


@pytest.mark.parametrize("tag", TAGS)
def test_pixels_and_boxes_turn_as_pillow_turns_them(tmp_path: Path, tag: int) -> None:
    with Image.open(tagged(tmp_path / "p.png", tag)) as image:
        assert turning_tag(image) == tag
        reference = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn_upright(PIXELS, tag), reference)
    box = turn_px(np.array([[10.0, 8.0, 22.0, 20.0]]), tag, SIZE)[0].astype(int)  # where the white square is
    white = np.argwhere((reference == 255).all(axis=2))
    assert [*white.min(axis=0)[::-1], *(white.max(axis=0)[::-1] + 1)] == box.tolist()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_import_turns_once_and_a_data_folder_never(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {"quality": 95} if suffix == "jpg" else {}
    plain = save(tmp_path / f"plain.{suffix}", Image.fromarray(PIXELS), **options)
    with Image.open(plain) as image:
        decoded = np.asarray(image.convert("RGB"))
    for tag in TAGS:
        path = tagged(tmp_path / f"{tag}.{suffix}", tag, **options)
        stored, upright = read_stored(path), read_picture(path, "here")
        assert np.array_equal(stored, decoded) and np.array_equal(upright, turn_upright(decoded, tag))
        assert stored.size == SIZE and stored.mode == upright.mode == "RGB"
        assert not stored.getexif() and not stored.info and not upright.getexif() and not upright.info
        frame = picture_frame(path, "here")
        assert (frame.stored_size_px, frame.tag, frame.size_px) == (SIZE, tag, upright.size)
        assert picture_size(path, "here") == upright.size


def test_a_mask_turns_with_its_tag(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(read_mask(tagged(tmp_path / "m.png", 6, ids), "here"), np.rot90(ids, -1))
    deep = ids.astype(np.uint16) * 1000
    assert np.array_equal(read_mask(tagged(tmp_path / "deep.png", 3, deep), "here"), deep[::-1, ::-1])


@pytest.mark.parametrize("tag", [0, 9, 77])
def test_a_tag_that_means_nothing_turns_nothing(tmp_path: Path, tag: Any) -> None:
    path = tagged(tmp_path / "p.png", tag)
    assert np.array_equal(read_picture(path, "here"), PIXELS) and picture_frame(path, "here").tag == 1


DAMAGED_TAGS = {
    "empty": b"Exif\0\0",
    "leads nowhere": b"Exif\0\0II*\0\xff\xff\xff\xff",
    "rubbish": b"rubbish",
    "cut off": b"Exif\0\0MM\0*\0\0\0\x08\0",
    "a word for a number": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0six\0\0\0\0\0",
}


@pytest.mark.parametrize("name", DAMAGED_TAGS)
def test_a_damaged_tag_turns_nothing(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "p.jpg", Image.fromarray(PIXELS), exif=DAMAGED_TAGS[name], quality=100, subsampling=0)
    assert picture_frame(path, "here").tag == 1 and read_picture(path, "here").size == SIZE


def test_tags_in_a_png_s_text_are_read_too(tmp_path: Path) -> None:
    """As ImageMagick keeps the EXIF of a JPEG, and as XMP says it; other text is not read, however much there is."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = exif.tobytes()
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n", zip=True)
    info.add_text("Comment", "x" * 2**21)
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="8"/>')
    for number, (text, tag) in enumerate(((info, 6), (xmp, 8))):
        path = save(tmp_path / f"{number}.png", Image.fromarray(PIXELS), pnginfo=text)
        assert picture_frame(path, "here").tag == tag
        assert np.array_equal(read_picture(path, "here"), turn_upright(PIXELS, tag))


CONVERTED: dict[str, tuple[Callable[[Path], Path], np.ndarray]] = {
    "palette": (
        lambda path: save(path, Image.fromarray(GREY).convert("P")),
        np.repeat(GREY[..., None], 3, axis=2),
    ),
    "one bit": (
        lambda path: save(path, Image.fromarray(GREY > 100)),
        np.repeat(np.uint8(255) * (GREY > 100)[..., None], 3, axis=2),
    ),
    "grey with alpha": (
        lambda path: save(path, Image.fromarray(GREY).convert("LA")),
        np.repeat(GREY[..., None], 3, axis=2),
    ),
    "opaque alpha": (lambda path: save(path, alpha(255)), PIXELS),
    "a transparent colour that nothing has": (
        lambda path: save(path, Image.fromarray(PIXELS), transparency=(1, 255, 3)),
        PIXELS,
    ),
}
"""How to write each, and the pixels that it shows."""


@pytest.mark.parametrize("name", CONVERTED)
def test_a_kind_that_an_import_converts(tmp_path: Path, name: str) -> None:
    write, expected = CONVERTED[name]
    path = write(tmp_path / "p.png")
    assert np.array_equal(read_picture(path, "here"), expected) and np.array_equal(read_stored(path), expected)
    refused(tmp_path, write, "expected 8-bit RGB or grey without palette or transparency: convert it")


def test_cmyk_as_adobe_stores_it(tmp_path: Path) -> None:
    """Inverted in the file; pure inks become pure colours, by Pillow's formula and no colour profile."""
    inks = np.zeros((16, 64, 4), np.uint8)
    inks[:, 16:32, 0] = inks[:, 32:48, 1] = inks[:, 48:, 3] = 255
    path = save(tmp_path / "p.jpg", Image.fromarray(inks, "CMYK"), quality=100, subsampling=0)
    row = np.asarray(read_picture(path, "here"))[8, 8::16].astype(int)
    assert np.abs(row - [[255, 255, 255], [0, 255, 255], [255, 0, 255], [0, 0, 0]]).max() <= 3
    refused(tmp_path, lambda path: save(path, Image.fromarray(inks, "CMYK").resize(SIZE), format="JPEG"), "mode CMYK")


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "deep grey": (lambda path: save(path, Image.fromarray(GREY.astype(np.uint16))), "16 bits a channel or more"),
    "deep colour": (deep_rgb, "16 bits a channel or more"),
    "TIFF": (lambda path: save(path, Image.fromarray(PIXELS), format="TIFF"), "PNG, JPEG, WEBP, BMP"),
    "deep TIFF": (
        lambda path: save(path, Image.fromarray(GREY.astype(np.uint16)), format="TIFF"),
        "PNG, JPEG, WEBP, BMP",
    ),
    "GIF": (lambda path: save(path, Image.fromarray(PIXELS), format="GIF"), "PNG, JPEG, WEBP, BMP"),
}
MOVING = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1]), Image.fromarray(PIXELS[:, ::-1])]
REFUSED |= {
    f"moving {kind}": (
        lambda path, kind=kind: save(path, MOVING[0], format=kind, save_all=True, append_images=MOVING[1:]),
        r"holds 3 pictures \(an animation\)",
    )
    for kind in ("PNG", "WEBP")
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_that_nobody_takes(tmp_path: Path, name: str) -> None:
    write, expected = REFUSED[name]
    path = write(tmp_path / "p.png")
    with pytest.raises(EntryError, match=rf"here: picture .*p.png.*{expected}"):
        read_picture(path, "here")
    refused(tmp_path, write, expected)


def test_transparency_is_refused_by_all(tmp_path: Path) -> None:
    path = save(tmp_path / "p.png", alpha(254))
    for read in (read_stored, lambda path: read_picture(path, "here")):
        with pytest.raises(DataError, match="transparent in places; expected an opaque picture"):
            read(path)
    refused(tmp_path, lambda path: save(path, alpha(254)), "mode RGBA")


@pytest.mark.parametrize("options", [{"progressive": True}, {"icc_profile": b"a profile"}, {"optimize": True}])
def test_what_does_not_change_pixels_is_of_no_account(tmp_path: Path, options: dict[str, Any]) -> None:
    plain = save(tmp_path / "plain.jpg", Image.fromarray(PIXELS))
    path = save(tmp_path / "p.jpg", Image.fromarray(PIXELS), **options)
    assert np.array_equal(read_stored(path), read_stored(plain)) and not read_stored(path).info
    assert np.array_equal(read_picture(path, "here"), read_stored(plain))


def test_a_jpeg_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    first, folder = Image.fromarray(PIXELS), write_folder(tmp_path / "data", [line_of("p0")])
    path = save(folder / "images/p0_a.png", first, format="MPO", save_all=True, append_images=MOVING[1:])
    buffer = io.BytesIO()
    first.save(buffer, "JPEG")
    expected = np.asarray(Image.open(buffer))
    assert np.array_equal(read_stored(path), expected) and np.array_equal(read_picture(path, "here"), expected)
    load_examples(folder, "train")


def refused(tmp_path: Path, write: Callable[[Path], Path], expected: str) -> None:
    """A data folder does not take this kind: the reader names the pair."""
    folder = write_folder(tmp_path / "data", [line_of("p0")])
    write(folder / "images/p0_b.png")
    with pytest.raises(DataError, match=rf"line 1, pair p0: image images/p0_b.png .*{expected}"):
        load_examples(folder, "train")
