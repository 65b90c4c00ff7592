"""What is this process's part in looking after a stream: leader, helper only, or neither of its business?"""

from __future__ import annotations

from functools import partial
from typing import Any

from profilis_mp.errors import ConfigError
from profilis_mp.janitor.upkeep import Upkeep, record
from profilis_mp.sharedlog.settings import Caretaker, Settings
from profilis_mp.sharedlog.stream import StreamPaths

__all__ = ["role_of"]


def role_of(upkeep: Upkeep | None, janitor: Any) -> dict[str, Any]:
    """The arguments of Settings that say so.

    Args:
        upkeep: The rules for sealed segments; None for none.
        janitor: True, False or "external".

    Raises:
        ConfigError: Naming the argument that was refused.
    """
    if janitor is not True and janitor is not False and janitor != "external":
        raise ConfigError("janitor", f"{janitor!r} is neither True nor False nor 'external'")
    if upkeep is not None and not isinstance(upkeep, Upkeep):
        raise ConfigError("upkeep", f"must be an Upkeep, not {type(upkeep).__name__}")
    if janitor == "external":
        return {"may_lead": False, "opened": partial(_record, upkeep or Upkeep())}
    if janitor and upkeep is not None and upkeep.has_work:
        # Loaded here, by the caller: a fork while a thread of ours is importing leaves the child import locks that
        # nobody will ever give back.
        import watchdog.observers
        import watchdog.observers.polling  # noqa: F401

        import profilis_mp.janitor.janitor  # noqa: F401

        return {"caretaker": partial(_caretaker, upkeep)}
    return {"may_lead": janitor}


def _record(upkeep: Upkeep, settings: Settings) -> None:
    record(upkeep, StreamPaths(settings.dir, settings.names.stream).state, settings.access)


def _caretaker(upkeep: Upkeep, settings: Settings) -> Caretaker:
    from profilis_mp.janitor.janitor import Janitor

    return Janitor(settings, upkeep)
