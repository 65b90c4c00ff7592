"""The commit protocol: how bytes go from a spool into the active segment exactly once, whoever dies when.

Assumptions: stores of one word are atomic; a process can be killed between any two of them and at any byte of a
write; what it stored before stays (the kernel holds the pages, not the process). Caller holds the directory lock.

One flush, for any spool, one's own or another's:

    1  finish the flush that ``intent`` names, if any          Stream.acquire
    2  rotate if size or age ask for it; cut the batch         next_batch
    3  flush_to = head + n; expected_end = committed + n; intent = spool id
    4  append the batch to the active segment
    5  committed = expected_end                                the commit
    6  head = flush_to; intent = 0
    7  the owner, when its spool is empty: tail = 0; head = 0  Spool.reset

What can go wrong, and what then:

* killed in 3: intent is stored last, so it never names a spool whose positions are not those of this flush;
* killed in 4: the segment holds the first ``size - committed`` bytes of the batch, and the next flush adds the rest;
* killed between 5 and 6: ``committed == expected_end`` says so, and only step 6 is repeated;
* disk full in 4: as killed in 4, by the next flush that finds space;
* the segment was deleted, moved or cut meanwhile: nothing of the batch counts, so ``intent = 0`` gives it up, and the
  next flush takes the same bytes to the next generation. (Opening that here, with the flush still in progress, would
  leave ``expected_end`` of one segment beside ``committed`` of another; a death in between then flushes twice.)

Steps 2 and 7 need step 1 as much as 3 does: a reset behind an unfinished step 6 would let that move ``head`` over
records emitted since.

The explicit-state model in ``tests/model`` explores all of this, and fails when two steps are swapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profilis_mp.sharedlog.segment import OpenSegment
    from profilis_mp.sharedlog.spool import Spool
    from profilis_mp.sharedlog.stream import Stream

__all__ = ["finish", "flush"]


def flush(stream: Stream, spool: Spool) -> int:
    """Flush everything that ``spool`` holds, batch by batch, each batch whole in one segment.

    Returns:
        The number of bytes flushed, frames included.

    Raises:
        OSError: ENOSPC, EIO, EMFILE … What was not flushed is still in the spool, and an interrupted batch will be
            finished byte-exact by the next flush of anybody.
    """
    flushed = 0
    while spool.unflushed:
        start = spool.head
        segment = _begin(stream, spool)
        try:
            _append_and_commit(stream, spool, segment, spool.batch)
        except OSError:
            if spool.path is None:
                _settle(stream, spool, segment)
            raise
        flushed += spool.head - start
    return flushed


def _begin(stream: Stream, spool: Spool) -> OpenSegment:
    """Steps 2 and 3. Caller has seen that no flush is in progress and that the spool holds bytes."""
    control = stream.control
    rotate_bytes = stream.settings.rotate_bytes
    start = spool.head + spool.frame_bytes
    segment = stream.active()
    committed = control.committed
    end = spool.next_batch_end(rotate_bytes - committed)
    if committed and committed + end - start > rotate_bytes:
        segment = stream.open_next()
        committed = 0
        end = spool.next_batch_end(rotate_bytes)
    spool.flush_to = end
    spool.expected_end = committed + end - start
    # I2: intent last. Who finds it set may trust flush_to and expected_end.
    control.intent = spool.id
    return segment


def finish(stream: Stream, spool: Spool) -> bool:
    """Steps 4 to 6 from wherever they were interrupted, or giving the flush up when its segment is not there any more.

    Caller has seen that ``control.intent`` is this spool's id.

    Returns:
        Whether it was finished, not given up.

    Raises:
        OSError: As for :func:`flush`; the flush is still in progress.
    """
    control = stream.control
    if control.committed == spool.expected_end:
        _leave(stream, spool)
        return True
    batch = spool.batch
    segment = stream.current()
    size = segment.size_in_place() if segment is not None else None
    done = -1 if size is None else size - control.committed
    if segment is None or done < 0 or (done and not segment.holds(batch[:done], control.committed)):
        control.intent = 0
        return False
    _append_and_commit(stream, spool, segment, batch[done:])
    return True


def _append_and_commit(stream: Stream, spool: Spool, segment: OpenSegment, rest: memoryview) -> None:
    segment.append(rest)
    stream.appended(segment)
    # I1: the commit. Before it the batch is the spool's, after it the segment's; never both, never neither.
    stream.control.committed = spool.expected_end
    _leave(stream, spool)


def _leave(stream: Stream, spool: Spool) -> None:
    # I4: head before intent. The other way round, a death in between would flush the batch again.
    spool.head = spool.flush_to
    stream.control.intent = 0


def _settle(stream: Stream, spool: Spool, segment: OpenSegment) -> None:
    """Commit what whole lines there are of a batch that the disk cut short, and give up the rest of the flush.

    For a spool in memory, which nobody but its owner could finish: the next process to take the lock would have to
    forget about it. Half a line may stay behind in the segment, which is sealed then.
    """
    control = stream.control
    batch = spool.batch
    done = max(0, (segment.size_in_place() or 0) - control.committed)
    whole = len(batch) if done >= len(batch) else 0 if spool.framed else bytes(batch[:done]).rfind(b"\n") + 1
    control.committed += whole
    if whole:
        spool.head += whole + spool.frame_bytes
    control.intent = 0
