"""Images are decoded upright, with their grey levels, on white, and unreadable ones are bad rows with the reason."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune_trainer.data.images import (
    TRANSPOSITIONS,
    UnreadableImageError,
    check_image,
    decode_image,
    image_formats,
    image_suffixes,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
LEVELS = np.array([[0, 257, 32768, 65535]])
"""16-bit grey levels; 0, 1, 128 and 255 in 8 bits."""


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def decode(content: bytes) -> Image.Image:
    return decode_image(content, Path(), Path())


def pixels(content: bytes) -> list[tuple[int, ...]]:
    """All pixels, row by row."""
    image = decode(content)
    assert image.mode == "RGB"
    assert check_image(content, Path(), Path()).problem is None
    return [tuple(pixel) for row in np.asarray(image).tolist() for pixel in row]


def greys(content: bytes) -> list[int]:
    found = pixels(content)
    assert all(len(set(pixel)) == 1 for pixel in found)
    return [pixel[0] for pixel in found]


def problem_of(content: bytes) -> str:
    """Why the image is a bad row; decoding and checking agree on it."""
    with pytest.raises(UnreadableImageError) as raised:
        decode(content)
    assert check_image(content, Path(), Path()).problem == str(raised.value)
    return str(raised.value)


def png(bits: int, color_type: int, rows: list[bytes], transparency: bytes = b"") -> bytes:
    """A PNG with sample types that Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    samples = {0: 1, 2: 3, 4: 2}[color_type]
    header = struct.pack(">IIBBBBB", len(rows[0]) * 8 // bits // samples, len(rows), bits, color_type, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header),
            chunk(b"tRNS", transparency) if transparency else b"",
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b""),
        )
    )


def tiff(width: int, bits: int, content: bytes, *, white_is_zero: bool = False, sample_format: int = 1) -> bytes:
    """A grey TIFF of one row, with sample types that Pillow reads but does not write."""
    photometric = 0 if white_is_zero else 1
    short, long = 3, 4
    tags = [
        (256, short, width),
        (257, short, 1),
        (258, short, bits),
        (259, short, 1),
        (262, short, photometric),
        (273, long, 8),
        (277, short, 1),
        (278, short, 1),
        (279, long, len(content)),
        (339, short, sample_format),
    ]
    padded = content + b"\0" * (len(content) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(padded)) + padded + struct.pack("<H", len(tags)) + entries + b"\0" * 4


# Orientation


def write_oriented(upright: Image.Image, orientation: int, file_format: str, **options: Any) -> bytes:
    """A file whose pixels are rotated, and whose EXIF data says how to rotate them back."""
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    stored = upright
    if orientation in TRANSPOSITIONS:
        stored = upright.transpose(inverse.get(orientation, TRANSPOSITIONS[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(stored, file_format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 100, "subsampling": 0})],
)
def test_images_are_upright(orientation: int, file_format: str, options: dict[str, Any]) -> None:
    upright = Image.new("RGB", (32, 16), RED)
    upright.paste(BLUE, (0, 0, 16, 8))
    image = decode(write_oriented(upright, orientation, file_format, **options))
    assert image.size == (32, 16)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright).astype(int)).max() <= 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16"])
def test_orientation_survives_the_conversion_of_the_pixels(mode: str) -> None:
    white = 65535 if mode == "I;16" else "white"
    upright = Image.new(mode, (4, 2), white)  # type: ignore[arg-type]
    upright.putpixel((0, 0), 0 if mode in ("L", "I;16") else (0, 0, 0, 255) if mode == "RGBA" else 5)
    image = decode(write_oriented(upright, 6, "PNG"))
    assert image.size == (4, 2)
    assert image.getpixel((0, 0)) != WHITE
    assert image.getpixel((3, 1)) != (0, 0, 0)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0c"],
)
def test_malformed_exif_data_has_no_orientation(exif: bytes) -> None:
    content = encode(Image.new("RGB", (4, 2)), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content).size == (4, 2)


# Grey levels


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_levels_are_scaled(file_format: str) -> None:
    assert greys(encode(Image.fromarray(LEVELS.astype(np.uint16)), file_format)) == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(tiff(2, 12, bytes([0xFF, 0xF8, 0x00])), [255, 128], id="12 bits"),
        pytest.param(
            tiff(3, 16, struct.pack("<3H", 0, 32768, 65535), white_is_zero=True), [255, 127, 0], id="white is 0"
        ),
        pytest.param(tiff(3, 16, struct.pack("<3h", -32768, 0, 32767), sample_format=2), [0, 128, 255], id="signed"),
        pytest.param(encode(Image.fromarray(LEVELS.astype(np.int32)), "TIFF"), [0, 1, 128, 255], id="32 bits"),
        pytest.param(encode(Image.fromarray(np.float32([[0, 0.5, 1]])), "TIFF"), [0, 128, 255], id="float"),
        pytest.param(b"P5 2 1 1023\n" + struct.pack(">2H", 1023, 0), [255, 0], id="10 bits"),
        pytest.param(png(16, 4, [struct.pack(">4H", 65535, 65535, 0, 0)]), [255, 255], id="16 bits with alpha"),
        pytest.param(encode(Image.fromarray(np.array([[False, True]])), "PNG"), [0, 255], id="1 bit"),
        pytest.param(tiff(1, 32, struct.pack("<i", 0), sample_format=2), [0], id="all black"),
    ],
)
def test_wide_grey_levels_keep_their_meaning(content: bytes, expected: list[int]) -> None:
    assert greys(content) == expected


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=30))
def test_scaled_levels_keep_their_order(levels: list[int]) -> None:
    found = greys(encode(Image.fromarray(np.array([levels], np.uint16)), "PNG"))
    assert found == [round(level / 257) for level in levels]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (np.float32([[0, 200]]), "expected floating-point grey levels from 0 (black) to 1 (white), found 0 to 200"),
        (np.float32([[-1, 1]]), "found -1 to 1; scale them, or convert the image to 8 or 16 bits"),
        (np.float32([[0, np.nan]]), "expected floating-point grey levels"),
        (np.int32([[-1, 70]]), "expected 32-bit grey levels from 0 (black) to 65535 (white), found -1 to 70"),
        (np.int32([[0, 70000]]), "found 0 to 70000; convert the image to 8 or 16 bits"),
        (np.int32([[0, 255]]), "found 0 to 255"),
    ],
)
def test_levels_without_a_known_range_are_a_bad_row(levels: np.ndarray, message: str) -> None:
    problem = problem_of(encode(Image.fromarray(levels), "TIFF"))
    assert problem.startswith("cannot decode the image: expected")
    assert message in problem


# Transparency and color models


def pair(mode: str, first: Any, second: Any, file_format: str = "PNG", **options: Any) -> bytes:
    """An image of two pixels. In mode P, color 0 of the palette is grey and color 1 is red."""
    image = Image.new(mode, (2, 1), second)
    if mode == "P":
        image.putpalette([9, 9, 9, 255, 0, 0])
    image.putpixel((0, 0), first)
    return encode(image, file_format, **options)


TRANSPARENT_FIRST = {
    "palette with an index": pair("P", 0, 1, transparency=0),
    "palette with bytes": pair("P", 0, 1, transparency=b"\0\xff"),
    "GIF": pair("P", 0, 1, "GIF", transparency=0),
    "RGBA": pair("RGBA", (9, 9, 9, 0), (255, 0, 0, 255)),
    "WebP": pair("RGBA", (9, 9, 9, 0), (255, 0, 0, 255), "WEBP", lossless=True),
    "TIFF": pair("RGBA", (9, 9, 9, 0), (255, 0, 0, 255), "TIFF"),
    "RGB with a key": pair("RGB", (9, 8, 7), RED, transparency=(9, 8, 7)),
    "16-bit RGB with a key": png(16, 2, [struct.pack(">6H", 4660, 0, 9, 65535, 0, 0)], struct.pack(">3H", 4660, 0, 9)),
}
TRANSPARENT_FIRST_GREY = {
    "LA": pair("LA", (9, 0), (0, 255)),
    "LA in TIFF": pair("LA", (9, 0), (0, 255), "TIFF"),
    "8 bits with a key": pair("L", 7, 0, transparency=7),
    "4 bits with a key": png(4, 0, [bytes([0x20])], struct.pack(">H", 2)),
    "2 bits with a key": png(2, 0, [bytes([0b01_00_00_00])], struct.pack(">H", 1)),
    "16 bits with a key": png(16, 0, [struct.pack(">2H", 4660, 0)], struct.pack(">H", 4660)),
}


@pytest.mark.parametrize("kind", TRANSPARENT_FIRST)
def test_transparent_pixels_are_white(kind: str) -> None:
    assert pixels(TRANSPARENT_FIRST[kind]) == [WHITE, RED]


@pytest.mark.parametrize("kind", TRANSPARENT_FIRST_GREY)
def test_transparent_grey_pixels_are_white(kind: str) -> None:
    assert greys(TRANSPARENT_FIRST_GREY[kind])[:2] == [255, 0]


def test_half_transparent_pixels_are_blended_with_white() -> None:
    (pixel,) = pixels(encode(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), "PNG"))
    assert pixel == (127, 127, 127)


@pytest.mark.parametrize(
    ("mode", "color", "file_format"),
    [
        ("CMYK", (0, 255, 255, 0), "TIFF"),
        ("CMYK", (0, 255, 255, 0), "JPEG"),
        ("YCbCr", (76, 85, 255), "TIFF"),
        ("LAB", (138, 209, 198), "TIFF"),
        ("RGBX", (255, 0, 0, 9), "TIFF"),
        ("P", 1, "BMP"),
    ],
)
def test_other_color_models_are_converted(mode: str, color: Any, file_format: str) -> None:
    image = Image.new(mode, (16, 16), color)
    if mode == "P":
        image.putpalette([9, 9, 9, 255, 0, 0])
    red, green, blue = pixels(encode(image, file_format))[0]
    assert red > 245
    assert green < 12
    assert blue < 12


# Frames


FRAMES = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)]


@pytest.mark.parametrize(
    ("file_format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {}), ("AVIF", {})]
)
def test_first_frame_is_used_and_the_others_are_noticed(file_format: str, options: dict[str, Any]) -> None:
    content = encode(FRAMES[0], file_format, save_all=True, append_images=FRAMES[1:], **options)
    red, _, blue = pixels(content)[0]
    assert red > 200 > 50 > blue
    assert check_image(content, Path(), Path()).has_more_frames
    assert not check_image(encode(FRAMES[0], file_format, **options), Path(), Path()).has_more_frames


def test_preview_images_of_a_photo_are_no_frames() -> None:
    content = encode(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:])
    assert not check_image(content, Path(), Path()).has_more_frames


# Unreadable images


def noise(file_format: str, **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    return encode(Image.fromarray(values), file_format, **options)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})],
)
def test_truncated_images_are_bad_rows(file_format: str, options: dict[str, Any]) -> None:
    """At every hundredth of the file; the check of a JPEG, at reduced size, finds what decoding finds."""
    content = noise(file_format, **options)
    for part in range(98):
        problem_of(content[: len(content) * part // 100])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}])
def test_check_of_a_jpeg_agrees_with_decoding(options: dict[str, Any]) -> None:
    content = noise("JPEG", **options)
    random = np.random.default_rng(1)
    for length in range(len(content) - 200, len(content)):
        assert is_readable(content[:length]) == (check_image(content[:length], Path(), Path()).problem is None)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[int(random.integers(len(damaged)))] = int(random.integers(256))
        assert is_readable(bytes(damaged)) == (check_image(bytes(damaged), Path(), Path()).problem is None)


def test_small_jpegs_are_checked() -> None:
    assert check_image(encode(Image.new("RGB", (3, 1)), "JPEG"), Path(), Path()).problem is None


def is_readable(content: bytes) -> bool:
    try:
        decode(content)
    except UnreadableImageError:
        return False
    return True


def test_decompression_bomb_is_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "it has more than 2,000 pixels, which could exhaust the memory; resize it" in problem_of(
        encode(Image.new("L", (50, 50)), "PNG")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encode(Image.new("L", (40, 40)), "PNG")).size == (40, 40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image format is recognized (0 bytes)"),
        (b"<svg/>", "no image format is recognized (6 bytes)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "no image format is recognized"),
    ],
)
def test_other_content_is_a_bad_row(content: bytes, message: str) -> None:
    assert message in problem_of(content)


def test_content_decides_whatever_the_extension_is(tmp_path: Path) -> None:
    (tmp_path / "photo.gif").write_bytes(encode(Image.new("RGB", (4, 2), RED), "PNG"))
    assert decode_image("photo.gif", tmp_path, tmp_path).getpixel((0, 0)) == RED


def test_extensions_are_those_that_pillow_decodes() -> None:
    assert image_suffixes() >= {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".png",
        ".ppm",
        ".ico",
        ".tga",
        ".jp2",
        ".avif",
        ".mpo",
    }
    assert not image_suffixes() & {".eps", ".ps", ".pdf", ".h5", ".mpg", ".emf", ".svg", ".csv"}
    assert "EPS" not in image_formats(), "it is a program, and Pillow runs it"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.png", "cannot decode the image: 'gone.png': No such file or directory"),
        ("", "'': Is a directory"),
        ("a\0b.png", "'a\\x00b.png' is not a valid path"),
        ("\ud83d.png", "'\\ud83d.png' is not a valid path"),
        ("x" * 300, "xxx': File name too long"),
        (
            "data:image/png;base64," + "A" * 9000,
            "expected a path, found text of 9,022 characters: 'data:image/png;base6'",
        ),
    ],
)
def test_text_that_is_no_path_of_an_image_is_a_bad_row(path: str, message: str, tmp_path: Path) -> None:
    problem = check_image(path, tmp_path, tmp_path).problem
    assert problem is not None
    assert message in problem
    assert len(problem) < 300
