"""A collector that keeps what it gets, for tests of what reports events."""

from __future__ import annotations

from typing import Any

__all__ = ["Event", "Seen"]

Event = dict[str, Any]


class Seen:
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def enqueue(self, event: Event) -> None:
        self.events.append(event)

    @property
    def only(self) -> Event:
        (event,) = self.events
        return event

    def take(self) -> list[Event]:
        """What came since the last time."""
        taken, self.events = self.events, []
        return taken
