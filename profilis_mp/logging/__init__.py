"""The standard library's `logging`, written into the shared log: `JSONLHandler`, and `SpanFilter` for queues."""

from __future__ import annotations

from profilis_mp.logging.handler import JSONLHandler, SpanFilter

__all__ = ["JSONLHandler", "SpanFilter"]
