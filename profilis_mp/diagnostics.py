"""How does the library speak of its own troubles?  Through the logger ``profilis_mp``, seldom, and never under a lock.

WARNING: data dropped or a guarantee weakened. ERROR: an operator is needed. Repeats of one key within a minute fold
into a count. ``PROFILIS_DEBUG=1`` in the environment turns the debug log on, to standard error unless the
application has configured the logger.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

__all__ = ["debug", "enable_debug_from_environment", "warn"]

_FOLD_S = 60.0
_last: dict[str, float] = {}
_folded: dict[str, int] = {}
_debugging = False


def _logger() -> logging.Logger:
    import logging  # 5 ms that a program without trouble does not pay

    logger = logging.getLogger("profilis_mp")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger


def warn(key: str, text: str) -> None:
    """Log a warning, at most one a minute for each key. Never raises, whatever the application's handlers do."""
    now = time.monotonic()
    last = _last.get(key)
    if last is not None and now - last < _FOLD_S:
        _folded[key] = _folded.get(key, 0) + 1
        return
    _last[key] = now
    repeats = _folded.pop(key, 0)
    try:
        _logger().warning("%s%s", text, f" (and {repeats} times more since the last warning)" if repeats else "")
    except Exception:  # a handler of the application's; there is nobody left to tell
        pass


def debug(text: str, *arguments: object) -> None:
    """Log what is being done, when ``PROFILIS_DEBUG`` asked for it."""
    if _debugging:
        try:
            _logger().debug(text, *arguments)
        except Exception:  # as in warn
            pass


def enable_debug_from_environment() -> None:
    """Look at ``PROFILIS_DEBUG``; called at construction, so that a program may set it after the import."""
    global _debugging
    if os.environ.get("PROFILIS_DEBUG", "") in {"", "0"} or _debugging:
        return
    import logging

    _debugging = True
    logger = _logger()
    logger.setLevel(logging.DEBUG)
    if not any(not isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
