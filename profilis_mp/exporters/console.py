"""How does a developer see events as they happen?  One line each on standard output.

>>> ConsoleExporter()([{"kind": "FN", "fn": "load"}, {"kind": "DB", "rows": {1}}])
{"kind":"FN","fn":"load"}
{"kind":"DB","rows":[1],"_altered":{"rows":"set"}}
>>> ConsoleExporter(pretty=True).export([{"kind": "FN"}])
{
  "kind": "FN"
}
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

import orjson

from profilis_mp.core.encoding import EventEncoder

__all__ = ["ConsoleExporter"]


class ConsoleExporter:
    """Writes events to a text stream, each batch at once so that batches do not mix.

    Odd values never raise: they are written as `JSONLExporter` writes them. A reader who has gone away (``| head``) is
    no error.

    Args:
        pretty: Indent, one key per line.
        stream: Where to; None is whatever ``sys.stdout`` is at the time of each batch.
    """

    def __init__(self, pretty: bool = False, stream: TextIO | None = None) -> None:
        self.pretty = pretty
        self._stream = stream
        self._encoder = EventEncoder()

    def export(self, events: Iterable[Any]) -> None:
        """Write some events.

        Raises:
            OSError: The stream cannot be written to, for another reason than a reader who has gone.
            ValueError: The stream is closed.
        """
        stream = sys.stdout if self._stream is None else self._stream
        if stream is None:  # a program without a console
            return
        lines = b"".join([self._line(event) for event in events])
        try:
            _write(stream, lines)
        except BrokenPipeError:
            pass

    def __call__(self, events: Iterable[Any]) -> None:
        """The same: the exporter is a sink for any collector that calls one with a batch."""
        self.export(events)

    def _line(self, event: Any) -> bytes:
        line = self._encoder.encode(event)
        if self.pretty:
            try:
                return orjson.dumps(orjson.loads(line), None, orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            except ValueError:  # an orjson.Fragment in it is no JSON
                pass
        return line


def _write(stream: TextIO, lines: bytes) -> None:
    buffer = getattr(stream, "buffer", None)
    if buffer is not None:  # past the stream's own encoding, which may not be UTF-8
        stream.flush()  # what was printed before comes before
        buffer.write(lines)
        buffer.flush()
        return
    text = lines.decode("utf-8", "replace")
    try:
        stream.write(text)
    except UnicodeEncodeError:  # rather with backslashes than not at all
        stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
    stream.flush()
