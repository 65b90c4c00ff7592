"""How is the content of a segment read, whatever form its file is in by now?

Up to two formats lie around it: the one that the janitor gave it (``x.jsonl.gz``), and one that its writer gave it,
when the template itself ends with ``.gz`` and the records are gzip members. Between the two lies what the writer
wrote, of which only so many bytes may count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from profilis_mp.compression import PIECE_BYTES, Decompressor, decompressor
from profilis_mp.sharedlog.names import COMPRESSED_SUFFIXES

__all__ = ["Content", "own_format"]

_FIRST_BYTE = {".gz": 0x1F, ".zst": 0x28}  # none that a JSON text begins with


def own_format(file: str) -> str:
    """The compressed format that a template gives to its plain segments; empty for most."""
    return next((suffix for suffix in COMPRESSED_SUFFIXES if file.endswith(suffix)), "")


class Content:
    """The content of one segment, from its beginning; it may still be growing.

    Args:
        label: What it is called in reports.
        read: Reads so many bytes, or fewer, none at the end.
        close: Closes what ``read`` reads from.
        packed: The suffix that compression added to the file.
        own: The format that the records themselves are in.
        limit: So many of the writer's bytes count; None for all.

    Raises:
        ImportError: zstd is not installed; as :meth:`read`.
    """

    def __init__(
        self,
        label: str,
        read: Callable[[int], bytes],
        close: Callable[[], object],
        *,
        packed: str = "",
        own: str = "",
        limit: int | None = None,
    ) -> None:
        self.label = label
        self.close = close
        self._read = read
        self._packed: Decompressor | None = decompressor(packed) if packed else None
        self._own: Decompressor | None = None
        self._own_format = own
        self._left = limit
        self._pieces: Iterator[bytes] = iter(())

    @property
    def complete(self) -> bool:
        """Whether what was read ends where a compressed file may end."""
        packed = self._packed is None or self._packed.complete or self._left == 0
        return packed and (self._own is None or self._own.complete)

    def read(self) -> bytes:
        """The next piece; empty at the end of what is there now.

        Raises:
            Damaged: What comes next cannot be decompressed.
            OSError: It cannot be read.
        """
        while True:
            for piece in self._pieces:
                return piece
            data = self._read(PIECE_BYTES) if self._left != 0 else b""
            if not data:
                return b""
            if not (self._packed or self._own or self._own_format) and self._left is None:
                return data  # the common case
            self._pieces = self._unpack(data)

    def _unpack(self, data: bytes) -> Iterator[bytes]:
        for piece in self._packed.pieces(data) if self._packed is not None else (data,):
            if self._left is not None:
                piece = piece[: self._left]
                self._left -= len(piece)
            if self._own_format and piece:
                # A template may be called .gz and hold plain lines all the same.
                if piece[0] == _FIRST_BYTE[self._own_format]:
                    self._own = decompressor(self._own_format)
                self._own_format = ""
            if self._own is not None:
                yield from self._own.pieces(piece)
            elif piece:
                yield piece
