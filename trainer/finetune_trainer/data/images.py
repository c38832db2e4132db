"""Decodes the images of a dataset: upright, 8 bits per channel, without transparency.

An image file says more than its pixels: an orientation, a bit depth, a palette, transparency, further frames. Pillow's
`convert` ignores some of it without a message (it cuts 16-bit grey levels off at 255), so it is honored here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as Tag
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from finetune_trainer.data.paths import check_path
from finetune_trainer.hub import is_transient

MAX_SHOWN_PATH = 200
UNREADABLE = "cannot decode the image"

COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Tried first."""

EXCLUDED_FORMATS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Pillow needs other programs for them, or recognizes the file but cannot decode it. EPS is a program itself."""

COMPOSITE_FORMATS = frozenset({"MPO", "PSD"})
"""Their first frame is the whole image; the others are its layers, or previews of it."""

MODES: Mapping[int, str] = {1: "L", 3: "RGB"}
"""Pillow's mode by number of channels."""

BACKGROUND = (255, 255, 255, 255)
"""White, on which transparent images are composited, as the image processors of transformers do."""

UPRIGHT = 1
TRANSPOSITIONS: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by EXIF orientation."""

WHITE_IS_ZERO, SIGNED = 0, 2
"""Values of the TIFF tags PhotometricInterpretation and SampleFormat."""

PNG_TRANSPARENCY_SCALE: Mapping[str, float] = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 257}
"""By raw mode of a PNG: Pillow scales its samples to 8 bits, but not the sample that means transparent."""


class UnreadableImageError(Exception):
    """A value that is not an image, or an image that cannot be decoded. The message gives the reason."""


@dataclass(frozen=True)
class ImageCheck:
    """Whether an image can be decoded.

    Args:
        problem: why it cannot; None if it can.
        has_more_frames: it is animated, or has several pages; only the first one is used.
    """

    problem: str | None = None
    has_more_frames: bool = False


@cache
def image_formats() -> tuple[str, ...]:
    """Names of the formats that Pillow decodes, the common ones first."""
    Image.init()
    formats = (*COMMON_FORMATS, *sorted(set(Image.OPEN).difference(COMMON_FORMATS)))
    return tuple(name for name in formats if name not in EXCLUDED_FORMATS)


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case file name extensions of the formats that Pillow decodes."""
    decoded = {*image_formats(), "MPO"}  # MPO files are opened as JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in decoded)


def decode_image(value: Any, folder: Path, root: Path) -> Image.Image:
    """Decode an image to RGB.

    It is rotated as its EXIF orientation says, and composited on white where it is transparent. Only the first frame
    of an animation, or page of a document, is read. Grey levels of more than 8 bits are scaled to 8: 12- and 16-bit
    samples by their bit depth, floating point from the range 0 to 1, 32-bit integers as 16-bit ones.

    Args:
        value: bytes, a path relative to `folder`, or the struct {bytes, path} that `datasets` writes.
        folder: folder of the dataset.
        root: folder that symbolic links must not leave.

    Raises:
        UnreadableImageError: the image cannot be decoded, or the path is outside the dataset's folder.
        OSError: the disk or the machine failed; a retry can help.
    """
    with _open_image(value, folder, root) as image:
        return _make_upright(image, _to_rgb(image))


def check_image(value: Any, folder: Path, root: Path) -> ImageCheck:
    """Check that `decode_image` succeeds.

    JPEG files are decoded at an eighth of their size, which reads all of their data in less time.

    Args:
        value, folder, root: as in `decode_image`.

    Raises:
        OSError: the disk or the machine failed; a retry can help.
    """
    try:
        with _open_image(value, folder, root) as image:
            if image.format in ("JPEG", "MPO"):
                image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
                image.load()
            else:
                _to_rgb(image)
            return ImageCheck(has_more_frames=_has_more_frames(image))
    except UnreadableImageError as error:
        return ImageCheck(str(error))


@contextmanager
def _open_image(value: Any, folder: Path, root: Path) -> Iterator[Image.Image]:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes | str):
        raise UnreadableImageError(f"{UNREADABLE}: expected bytes or a path, found {type(value).__name__}")
    if isinstance(value, str) and (problem := check_path(value, folder, root)):
        raise UnreadableImageError(f"{UNREADABLE}: {problem}")
    file = io.BytesIO(value) if isinstance(value, bytes) else folder / value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns about is handled here, or is an error below
            with Image.open(file, formats=image_formats()) as image:
                yield image
    except Exception as error:  # decoders of corrupt files raise many types
        if is_transient(error) or isinstance(error, MemoryError):
            raise
        raise UnreadableImageError(f"{UNREADABLE}: {_describe_error(error, value)}") from error


def _describe_error(error: Exception, value: bytes | str) -> str:
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        return f"it has more than {limit:,} pixels, which could exhaust the memory; resize it"
    if isinstance(error, UnidentifiedImageError):
        shown = "" if isinstance(value, str) else f" ({len(value):,} bytes)"
        return f"no image format is recognized{shown}"
    if isinstance(error, OSError) and error.strerror and isinstance(value, str):
        return f"{value[:MAX_SHOWN_PATH]!r}: {error.strerror}"
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    _correct_transparency(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        return _scale_grey(image).convert("RGB")
    if image.mode == "La":  # with premultiplied alpha, which is converted to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, BACKGROUND), layer).convert("RGB")
    return image.convert("RGB")


def _correct_transparency(image: Image.Image) -> None:
    """Scale the transparent color of a PNG to the 8 bits of its pixels."""
    transparent = image.info.get("transparency")
    raw_mode = image.tile[0].args if isinstance(image, PngImageFile) and image.tile else None
    scale = PNG_TRANSPARENCY_SCALE.get(raw_mode) if isinstance(raw_mode, str) else None
    if scale is None or transparent is None:
        return
    is_color = isinstance(transparent, tuple)
    image.info["transparency"] = (
        tuple(int(part * scale) for part in transparent) if is_color else int(transparent * scale)
    )


def _scale_grey(image: Image.Image) -> Image.Image:
    """An 8-bit version of an image with wider grey levels.

    Raises:
        ValueError: a level is outside the range that its type stands for.
    """
    levels = np.asarray(image)
    grey = _scale_floats(levels) if image.mode == "F" else _scale_integers(levels, *_integer_range(image, levels))
    if _tiff_tag(image, Tag.PhotometricInterpretation) == WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey = np.where(levels == transparent, 255, grey)
    return Image.fromarray(grey.astype(np.uint8))


def _scale_floats(levels: np.ndarray) -> np.ndarray:
    if not (levels.min() >= 0 and levels.max() <= 1):  # also false for NaN
        raise ValueError(
            f"expected floating-point grey levels from 0 (black) to 1 (white), found "
            f"{levels.min():g} to {levels.max():g}; scale them, or convert the image to 8 or 16 bits"
        )
    scaled: np.ndarray = np.rint(levels * 255)
    return scaled


def _scale_integers(levels: np.ndarray, black: int, white: int) -> np.ndarray:
    """Scale to 0 to 255, rounded to the nearest."""
    width = white - black
    return (510 * (levels.astype(np.int64) - black) + width) // (2 * width)


def _integer_range(image: Image.Image, levels: np.ndarray) -> tuple[int, int]:
    """The levels that are black and white: the whole range of 12- and 16-bit integers.

    32-bit integers have no usual range. They are taken as 16-bit ones if they can be nothing else.
    """
    bits = _tiff_tag(image, Tag.BitsPerSample) or (16 if image.format == "PPM" or image.mode.startswith("I;16") else 32)
    if bits <= 16:
        is_signed = _tiff_tag(image, Tag.SampleFormat) == SIGNED
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > 65535 or 0 < highest < 256:
        raise ValueError(
            f"expected 32-bit grey levels from 0 (black) to 65535 (white), found {lowest} to {highest}; "
            "convert the image to 8 or 16 bits"
        )
    return 0, 65535


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    """The first value of a tag; None if the image is no TIFF, or has no such tag."""
    value = image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
    return value[0] if isinstance(value, tuple) else value


def _has_more_frames(image: Image.Image) -> bool:
    """Whether an image is animated, or has several pages. Moves the image to another frame."""
    if image.format in COMPOSITE_FORMATS:
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - a malformed second frame is one
        return True


def _make_upright(image: Image.Image, converted: Image.Image) -> Image.Image:
    """Apply the EXIF orientation of an image to its converted pixels. Malformed EXIF data has no orientation."""
    try:
        orientation = image.getexif().get(Tag.Orientation, UPRIGHT)
    except Exception:  # noqa: BLE001 - decoders of malformed data raise many types
        orientation = UPRIGHT
    transposition = TRANSPOSITIONS.get(orientation)
    return converted if transposition is None else converted.transpose(transposition)
