"""Is everything that was acknowledged in the log, exactly once, whole and in order?  One judge for demo and tests.

Workers number their events: each event carries who wrote it and a number that counts up from 0. What a worker had
acknowledged (``emit`` had returned) is known from outside, from memory that outlives it. The last event may be on disk
without being acknowledged: its worker was killed between the return of ``emit`` and the acknowledgement.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

import orjson

from profilis_mp.sharedlog.inventory import segment_files, streams_of

__all__ = ["Account", "lines_of", "segments_of", "take_account"]

_NAMED = 10  # findings of one kind that are named; all are counted


@dataclass(slots=True)
class Account:
    """What a log directory holds, against what was acknowledged. Counts of events, but for ``segments``."""

    acknowledged: int = 0
    on_disk: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    out_of_order: int = 0
    oversize_segments: int = 0
    segments: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.torn or self.out_of_order or self.oversize_segments)

    def find(self, text: str) -> None:
        """Name a finding, unless enough are named already."""
        if len(self.findings) < _NAMED:
            self.findings.append(text)


def segments_of(directory: str) -> list[str]:
    """Paths of all segments of all streams in a log directory, each stream's in the order it was written.

    Of one that is there both plain and compressed, only the plain one.
    """
    found = [one for names in streams_of(directory) for one in segment_files(directory, names)]
    return [next(same).path for _, same in groupby(found, key=lambda one: one.segment)]


def take_account(
    directory: str,
    acknowledged: Mapping[int, int],
    *,
    worker_key: str = "worker",
    number_key: str = "seq",
    rotate_bytes: int | None = None,
) -> Account:
    """Read every segment and compare.

    Args:
        directory: The log directory; nothing writes to it any more.
        acknowledged: For each worker, how many of its events (0, 1, 2 …) were acknowledged.
        worker_key: Which field of an event says who wrote it.
        number_key: Which field says which of its events it is.
        rotate_bytes: The limit no segment of more than one record may pass; None does not look.
    """
    account = Account(acknowledged=sum(acknowledged.values()))
    seen: dict[int, set[int]] = {worker: set() for worker in acknowledged}
    latest: dict[int, int] = {}
    for path in segments_of(directory):
        account.segments += 1
        lines = 0
        for where, line in lines_of(path):
            lines += 1
            try:
                event = orjson.loads(line)
                worker, number = event[worker_key], event[number_key]
                if not line.endswith(b"\n"):
                    raise ValueError("no newline")
            except (ValueError, KeyError, TypeError):
                account.torn += 1
                account.find(f"{where}: torn: {line[:80]!r}")
                continue
            account.on_disk += 1
            if number in seen.setdefault(worker, set()):
                account.duplicated += 1
                account.find(f"{where}: event {number} of worker {worker} once more")
            elif number < latest.get(worker, -1):
                account.out_of_order += 1
                account.find(f"{where}: event {number} of worker {worker} after its event {latest[worker]}")
            seen[worker].add(number)
            latest[worker] = max(number, latest.get(worker, -1))
        if rotate_bytes is not None and lines > 1 and os.path.getsize(path) > rotate_bytes:
            account.oversize_segments += 1
            account.find(f"{path}: {os.path.getsize(path)} bytes")
    for worker, count in acknowledged.items():
        missing = set(range(count)) - seen[worker]
        account.lost += len(missing)
        if missing:
            account.find(f"worker {worker}: {len(missing)} of {count} lost, the first is {min(missing)}")
    return account


def lines_of(path: str) -> Iterator[tuple[str, bytes]]:
    """Each line of a segment, plain or gzip, with where it is."""
    with (gzip.open if path.endswith(".gz") else open)(path, "rb") as segment:
        for number, line in enumerate(segment, 1):
            yield f"{path}:{number}", line
