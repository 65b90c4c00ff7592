"""Decorators: `profilis_mp.decorators.profile`."""

from __future__ import annotations

from profilis_mp.decorators.profile import profile_function

__all__ = ["profile_function"]
