"""Profiling of any ASGI application: `profilis_mp.asgi.middleware`."""

from __future__ import annotations

from profilis_mp.asgi.middleware import ProfilisASGIMiddleware

__all__ = ["ProfilisASGIMiddleware"]
