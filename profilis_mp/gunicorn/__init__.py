"""For gunicorn's configuration: server hooks and a logger class. Neither is needed to lose nothing.

from profilis_mp.gunicorn import child_exit, on_exit, on_starting, worker_abort, worker_exit

raw_env = ["PROFILIS_DIR=/var/log/shop"]
logger_class = "profilis_mp.gunicorn.AccessLogger"
"""

from __future__ import annotations

try:
    import gunicorn.glogging  # noqa: F401
except ImportError as error:
    raise ImportError('profilis_mp.gunicorn needs gunicorn: pip install "profilis_mp[gunicorn]"') from error
from profilis_mp.gunicorn.access import AccessLogger
from profilis_mp.gunicorn.hooks import child_exit, on_exit, on_starting, worker_abort, worker_exit

__all__ = ["AccessLogger", "child_exit", "on_exit", "on_starting", "worker_abort", "worker_exit"]
