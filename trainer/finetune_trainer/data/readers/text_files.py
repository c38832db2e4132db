"""What the readers of text formats share: files that are no UTF-8 text are named as what they are."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.data.readers.conversion import UnreadableFileError

UTF8_BOM = b"\xef\xbb\xbf"
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
"""By the first bytes of a file."""


def check_is_utf8(file: Path) -> None:
    """Reject compressed files and other encodings, whose lines would all be malformed.

    Raises:
        UnreadableFileError: the file is compressed, or is UTF-16 or UTF-32.
    """
    with file.open("rb") as opened:
        start = opened.read(8)
    for magic, name in COMPRESSIONS.items():
        if start.startswith(magic):
            raise UnreadableFileError(f"is compressed with {name}; expected text: decompress it")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start[:4]:
        encoding = "UTF-32" if b"\0\0" in start[:4] else "UTF-16"
        raise UnreadableFileError(f"is {encoding}; expected UTF-8: convert it, e.g. with iconv -f {encoding} -t UTF-8")


def describe_invalid_utf8(content: bytes) -> str | None:
    """Which byte is not UTF-8; None if all are."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8: byte 0x{content[error.start]:02x}"
    return None


def replace_invalid_utf8(text: str) -> str:
    """A text for messages and for comparison, in which surrogates that stand for invalid bytes are replaced."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
