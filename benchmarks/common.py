"""What all benchmarks share: the header, the events, medians with their spread."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence

__all__ = ["header", "scratch", "spread"]


def header(question: str) -> str:
    """The lines that every result begins with."""
    versions = [f"Python {platform.python_version()}"]
    for package in ("profilis_mp", "orjson", "filelock"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return (
        f"# {question}\n"
        f"# {', '.join(versions)}\n"
        f"# {_cpu()}, {os.cpu_count()} cores; {platform.system()} {platform.release()}; "
        f"{_file_system(tempfile.gettempdir())}; {time.strftime('%Y-%m-%d', time.gmtime())}"
    )


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """``median (min-max)``."""
    return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory for one run, removed after it."""
    return tempfile.TemporaryDirectory(prefix="profilis-mp-bench-")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _file_system(path: str) -> str:
    done = subprocess.run(["findmnt", "-nT", path, "-o", "FSTYPE"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown file system"
