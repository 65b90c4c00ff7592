"""Profiling of any WSGI application: `profilis_mp.wsgi.middleware`."""

from __future__ import annotations

from profilis_mp.wsgi.middleware import ProfilisWSGIMiddleware

__all__ = ["ProfilisWSGIMiddleware"]
