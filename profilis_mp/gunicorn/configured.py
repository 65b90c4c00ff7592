"""What does gunicorn's configuration say about the log: where it is, and whose?"""

from __future__ import annotations

import os
from typing import Any

from profilis_mp.exporters.jsonl import JSONLExporter

__all__ = ["exporter_of", "log_directory", "worker_of"]

VARIABLE, OWNER = "PROFILIS_DIR", "PROFILIS_OWNER"
ACCESS_TEMPLATE = "access-{timestamp}.jsonl"


def log_directory(cfg: Any) -> str | None:
    """``PROFILIS_DIR`` of ``raw_env``, which is not in the environment yet when a logger is made, or of the latter."""
    named: str | None = cfg.env.get(VARIABLE) or os.environ.get(VARIABLE)
    return named


def worker_of(cfg: Any) -> tuple[int, int] | None:
    """User and group id of the workers where a root master lets them be others, None where they are as it is."""
    return (cfg.uid, cfg.gid) if os.geteuid() == 0 and cfg.uid != 0 else None


def exporter_of(cfg: Any) -> JSONLExporter:
    """The exporter of the access log: as the environment says, but a stream of its own, and the workers'.

    Raises:
        ConfigError: Naming the variable.
        LogDirectoryError: The directory cannot be used.
    """
    environ = {**os.environ, **cfg.env}
    whose: dict[str, Any] = {} if OWNER in environ else {"owner": worker_of(cfg)}
    return JSONLExporter.from_env(environ=environ, filename_template=ACCESS_TEMPLATE, **whose)
