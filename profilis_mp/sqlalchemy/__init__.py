"""Profiling of SQLAlchemy engines: `profilis_mp.sqlalchemy.instrumentation`."""

from __future__ import annotations

from profilis_mp.sqlalchemy.instrumentation import instrument_async_engine, instrument_engine, uninstrument

__all__ = ["instrument_async_engine", "instrument_engine", "uninstrument"]
