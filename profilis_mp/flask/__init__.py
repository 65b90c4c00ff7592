"""Profiling of Flask applications: `profilis_mp.flask.adapter`."""

from __future__ import annotations

from profilis_mp.flask.adapter import ProfilisFlask

__all__ = ["ProfilisFlask"]
