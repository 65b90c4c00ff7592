"""How are segments compressed and read again, piece by piece, whatever their size?

gzip is the standard library's. zstd is ``compression.zstd`` (Python 3.14) or ``backports.zstd``, the extra ``zstd``,
imported when first needed. Nothing here ever holds more than a few pieces in memory.

    >>> packer = compressor(".gz")
    >>> packed = packer.compress(b'{"kind":"FN"}') + packer.flush()
    >>> unpacker = decompressor(".gz")
    >>> b"".join(unpacker.pieces(packed)), unpacker.complete
    (b'{"kind":"FN"}', True)
"""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from profilis_mp.sharedlog.words import open_regular

__all__ = ["PIECE_BYTES", "CompressedFile", "Compressor", "Damaged", "Decompressor", "compressor", "decompressor"]
__all__ += ["open_compressed"]

PIECE_BYTES = 256 * 1024
_GZIP = 31  # zlib's word for a gzip header and trailer around the largest window
_LEVELS = {".gz": 6, ".zst": 3}


class Damaged(Exception):
    """Compressed bytes that are not what the compressor wrote; what was read before is good."""


class Compressor(Protocol):
    """Takes bytes and gives compressed ones, some of them later."""

    def compress(self, data: bytes, /) -> bytes:
        """Take ``data``; return what can be written by now, perhaps nothing."""

    def flush(self) -> bytes:
        """Return the rest; the compressed file is complete with it."""


def compressor(suffix: str, level: int | None = None) -> Compressor:
    """A compressor for files with this suffix.

    Args:
        suffix: ``.gz`` or ``.zst``.
        level: The format's own; None for its usual one.

    Raises:
        ImportError: zstd is not installed; says what to install.
        ValueError: There is no such format, or it has no such level.
    """
    if suffix not in _LEVELS:
        raise ValueError(f"{suffix!r} is no compression known here")
    level = _LEVELS[suffix] if level is None else level
    if suffix == ".gz":
        return zlib.compressobj(level, zlib.DEFLATED, _GZIP)
    made: Compressor = _zstd().ZstdCompressor(level=level)
    return made


def decompressor(suffix: str) -> Decompressor:
    """A decompressor for files with this suffix.

    Raises:
        ImportError: zstd is not installed; says what to install.
        ValueError: There is no such format.
    """
    if suffix not in _LEVELS:
        raise ValueError(f"{suffix!r} is no compression known here")
    return Decompressor(suffix)


class Decompressor:
    """Decompresses any number of gzip members or zstd frames, one after the other, as their bytes come in.

    Attributes:
        complete: Whether all bytes so far are whole members; False in the middle of one.
    """

    def __init__(self, suffix: str) -> None:
        self._gzip = suffix == ".gz"
        self._errors: tuple[type[Exception], ...] = (zlib.error,) if self._gzip else (_zstd().ZstdError, EOFError)
        self._member: Any = None
        self.complete = True

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What comes out of the next compressed bytes, in pieces of at most ``PIECE_BYTES``.

        Raises:
            Damaged: These are not such bytes.
        """
        try:
            while data:
                if self._member is None:
                    data = data.lstrip(b"\0") if self._gzip else data  # tapes and some writers pad with zeros
                    if not data:
                        return
                    self._member = zlib.decompressobj(_GZIP) if self._gzip else _zstd().ZstdDecompressor()
                    self.complete = False
                while True:
                    piece = self._member.decompress(data, PIECE_BYTES)
                    if self._member.eof:
                        break
                    data = self._member.unconsumed_tail if self._gzip else b""
                    if piece:
                        yield piece
                    if not data and (not piece if self._gzip else self._member.needs_input):
                        return
                data = self._member.unused_data
                self._member = None
                self.complete = True
                if piece:
                    yield piece
        except self._errors as error:
            raise Damaged(str(error)) from None


class CompressedFile:
    """A compressed file read from its beginning, which may still be growing.

    Attributes:
        fd: The descriptor, which is closed with this.
        complete: Whether what was read by now ends with a whole member.
    """

    def __init__(self, fd: int, suffix: str) -> None:
        self.fd = fd
        self._decompressor = decompressor(suffix)
        self._pieces: Iterator[bytes] = iter(())

    @property
    def complete(self) -> bool:
        return self._decompressor.complete

    def read(self) -> bytes:
        """The next piece; empty at the end of what is there now.

        Raises:
            Damaged: What comes next is not such a file.
            OSError: It cannot be read.
        """
        while True:
            for piece in self._pieces:
                return piece
            data = os.read(self.fd, PIECE_BYTES)
            if not data:
                return b""
            self._pieces = self._decompressor.pieces(data)

    def close(self) -> None:
        os.close(self.fd)


def open_compressed(file: str | int, suffix: str) -> CompressedFile:
    """Open a compressed file for reading.

    Args:
        file: Its path, or a descriptor, which is the reader's from then on.
        suffix: ``.gz`` or ``.zst``.

    Raises:
        ImportError: zstd is not installed; says what to install. A descriptor is still the caller's.
        OSError: It cannot be opened, or is a symbolic link.
    """
    decompressor(suffix)
    return CompressedFile(open_regular(file, os.O_RDONLY) if isinstance(file, str) else file, suffix)


def _zstd() -> Any:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            pass
    raise ImportError('zstd needs Python 3.14, or: pip install "profilis_mp[zstd]"')
