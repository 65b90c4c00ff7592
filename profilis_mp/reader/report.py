"""What did a reader see, and what did it have to skip?"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ReadReport"]

_NAMED = 10  # findings that are named; all are counted


@dataclass(slots=True)
class ReadReport:
    """What a reader has done so far; it counts on while the reader is read.

    Attributes:
        events: Events (or lines) handed out.
        segments: Segments opened.
        size: Bytes read, decompressed.
        torn: Lines skipped because they are no JSON, or are the last of a sealed segment and have no newline.
        oversize: Lines skipped because they are longer than a reader keeps in memory.
        expired_segments: Segments that were there, or must have been, and were deleted before they could be opened.
        damaged_segments: Segments that could be read only up to some point, or not decompressed from it on.
        damaged_spools: Spools that cannot be trusted, with ``unflushed=True``.
        findings: The first few of all this as text, with file and offset.
    """

    events: int = 0
    segments: int = 0
    size: int = 0
    torn: int = 0
    oversize: int = 0
    expired_segments: int = 0
    damaged_segments: int = 0
    damaged_spools: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing was skipped."""
        counts = (self.torn, self.oversize, self.expired_segments, self.damaged_segments, self.damaged_spools)
        return not any(counts)

    @property
    def names_enough(self) -> bool:
        """Whether further findings are only counted."""
        return len(self.findings) >= _NAMED

    def find(self, text: str) -> None:
        """Name a finding, unless enough are named already."""
        if not self.names_enough:
            self.findings.append(text)

    def find_torn(self, file: str, offset: int, line: bytes) -> None:
        """Count and name a line that is none."""
        self.torn += 1
        self.find(f"{file}: torn line at byte {offset}: {line[:80]!r}")
