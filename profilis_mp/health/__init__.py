"""Is all well with a log directory and with those who write to it?

All but :func:`cleanup_old_files` only read, and wait for nobody: a health check must not hang on the lock that it is
called to tell about, and leaves nothing behind when it is killed. None raises because of the state of the disk: that is
what they report, as plain dicts that any JSON encoder takes.
"""

from profilis_mp.health.cleanup import cleanup_old_files
from profilis_mp.health.directory import monitor_log_directory
from profilis_mp.health.exporter import check_exporter_health, diagnose_rotation_issues

__all__ = ["check_exporter_health", "cleanup_old_files", "diagnose_rotation_issues", "monitor_log_directory"]
