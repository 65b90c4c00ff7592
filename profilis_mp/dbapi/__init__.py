"""Profiling of PEP 249 drivers: `profilis_mp.dbapi.wrapped`; what an event says: `profilis_mp.dbapi.recorder`."""

from __future__ import annotations

from profilis_mp.dbapi.wrapped import wrap_connect, wrap_connection

__all__ = ["wrap_connect", "wrap_connection"]
