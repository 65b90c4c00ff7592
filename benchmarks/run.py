"""Run every benchmark, or those named, one after the other, and say which goals are reached.

``--quick`` sees whether they all work, with a tenth of the events and two rounds; see `common`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = (
    "throughput", "latency", "kill", "rotation_storm", "gunicorn_requests", "compression_stall", "footprint",
    "flush_cost", "nanoseconds", "logging_call", "profile_function", "statement_overhead", "pytest_plugin", "reading",
)  # fmt: skip


def main() -> None:
    here = Path(__file__).parent
    options = [word for word in sys.argv[1:] if word.startswith("-")]
    named = [word for word in sys.argv[1:] if not word.startswith("-")]
    started = time.monotonic()
    failed = []
    for name in named or BENCHMARKS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, here / f"{name}.py", *options], check=False).returncode:
            failed.append(name)
    print("== summary", flush=True)
    subprocess.run([sys.executable, here / "summary.py", *options], check=True)
    print(f"all of it took {time.monotonic() - started:.0f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
