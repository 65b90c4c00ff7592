"""How is profilis_mp at home in uWSGI?  See `profilis_mp.uwsgi.hooks`; importing it anywhere else does no harm."""

from __future__ import annotations

from profilis_mp.uwsgi.hooks import register

__all__ = ["register"]
