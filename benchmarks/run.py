"""Run every benchmark and keep its output, below its command, in benchmarks/results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("emit_throughput", "flush_cost", "footprint")


def main() -> None:
    here = Path(__file__).parent
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, here / f"{name}.py"], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr}")
        print(done.stdout)
        (here / "results" / f"{name}.txt").write_text(f"$ python benchmarks/{name}.py\n{done.stdout}")


if __name__ == "__main__":
    main()
