"""Profiling of Django: ``MIDDLEWARE = ["profilis_mp.django.ProfilisMiddleware", ...]``."""

from __future__ import annotations

from profilis_mp.django.middleware import ProfilisMiddleware

__all__ = ["ProfilisMiddleware"]
