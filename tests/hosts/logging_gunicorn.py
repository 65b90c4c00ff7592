"""gunicorn's configuration: all of its own log, and the application's, goes into the shared log."""

from __future__ import annotations

import os

workers = 3
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "shared": {
            "class": "profilis_mp.logging.JSONLHandler",
            "filename": os.path.join(os.environ.get("LOGS", "logs"), "gunicorn.log"),
            "maxBytes": "32KiB",
        }
    },
    "root": {"level": "INFO", "handlers": ["shared"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        "gunicorn.access": {"level": "INFO", "handlers": [], "propagate": True},
    },
}
accesslog = "-"
