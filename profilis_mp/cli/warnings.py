"""Where do the library's warnings go when there is no application to take them?  To standard error, one line each."""

from __future__ import annotations

import logging

from profilis_mp import diagnostics

__all__ = ["warnings_on_stderr"]


def warnings_on_stderr() -> None:
    """Show them from now on."""
    diagnostics.enable_debug_from_environment()
    logger = logging.getLogger("profilis_mp")
    if all(isinstance(handler, logging.NullHandler) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("profilis-mp: %(message)s"))
        logger.addHandler(handler)
