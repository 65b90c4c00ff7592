"""How do pieces of a file become lines, however long the lines are?

Lines end with a newline and nothing else: JSON may hold every other character that Python would split at.

    >>> splitter = LineSplitter()
    >>> splitter.feed(b'{"a":1}\\n{"b"')
    (0, [b'{"a":1}'])
    >>> splitter.feed(b':2}\\n')
    (8, [b'{"b":2}'])
"""

from __future__ import annotations

from profilis_mp.compression import PIECE_BYTES

__all__ = ["LONGEST_LINE_BYTES", "LineSplitter"]

LONGEST_LINE_BYTES = 64 * 1024 * 1024


class LineSplitter:
    """Splits one file.

    Args:
        longest: Lines of more bytes are left out; at least ``PIECE_BYTES``.

    Attributes:
        offset: Where the line that is not complete yet begins.
        oversize: Offsets of the lines left out.
    """

    def __init__(self, longest: int = LONGEST_LINE_BYTES) -> None:
        self.offset = 0
        self.oversize: list[int] = []
        self._longest = max(longest, PIECE_BYTES)
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, piece: bytes) -> tuple[int, list[bytes]]:
        """The lines that are complete with this piece, without their newlines, and where the first of them begins."""
        lines = piece.split(b"\n")
        if len(lines) == 1:
            self._hold(piece)
            return self.offset, []
        rest = lines.pop()
        start = self.offset
        self.offset += self._held + len(piece) - len(rest)
        if self._held:
            # Pieces of a long line are joined once, not at every piece.
            self._hold(lines[0])
            if self._held > self._longest:
                self.oversize.append(start)
                start += self._held + 1
                del lines[0]
            else:
                lines[0] = b"".join(self._parts)
            self._parts.clear()
            self._held = 0
        self._hold(rest)
        return start, lines

    def rest(self) -> bytes | None:
        """The line that is not complete, empty if it is too long already; None when there is none."""
        return b"".join(self._parts) if self._held else None

    def _hold(self, part: bytes) -> None:
        self._held += len(part)
        if self._held > self._longest:
            self._parts.clear()  # it will be left out: only its length matters
        elif part:
            self._parts.append(part)
