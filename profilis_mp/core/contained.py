"""How is a failure of ours kept from the application?  Logged, and the application goes on."""

from __future__ import annotations

from profilis_mp.core.scalars import scalar
from profilis_mp.diagnostics import warn
from profilis_mp.interrupts import was_thrown_in

__all__ = ["contain"]


def contain(who: str, what: str, error: Exception) -> None:
    """Log what failed; called where it was caught.

    Args:
        who: Which part of ours, as its user knows it.
        what: What does not happen because of it.
        error: Raised again if a signal handler threw it in: then it is the application's.
    """
    if was_thrown_in(error):
        raise error
    warn(f"{who}: {what}", f"{who}: {what}: {scalar(error)[0]}")
