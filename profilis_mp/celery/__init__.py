"""Profiling of Celery applications: `profilis_mp.celery.adapter`."""

from __future__ import annotations

from profilis_mp.celery.adapter import ProfilisCelery

__all__ = ["ProfilisCelery"]
