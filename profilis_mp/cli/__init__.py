"""The command ``profilis-mp``, also ``python -m profilis_mp``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence

from profilis_mp.errors import ProfilisError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes the process's.

    Returns:
        The exit status: 0, or 1 when something is wrong with the log, or 2 for a wrong command line.
    """
    options = _parser().parse_args(arguments)
    try:
        return _demo(options) if options.command == "demo" else _recover(options)
    except (ProfilisError, OSError) as error:
        print(f"profilis-mp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="profilis-mp", description="Many processes, one log directory, nothing lost.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="fork workers, kill some, recover, and print a checked account")
    demo.add_argument("--dir", help="log directory, must be empty (default: a new temporary one, which is kept)")
    demo.add_argument("--workers", type=_positive, default=4, help="processes that emit at a time (default 4)")
    demo.add_argument("--seconds", type=float, default=2.0, help="for how long (default 2)")
    demo.add_argument("--seed", type=int, default=None, help="decides who is killed when (default: random)")
    recover = commands.add_parser("recover", help="finish and drain what dead processes left in a log directory")
    recover.add_argument("dir", help="log directory")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if not 0 < value <= 256:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 256")
    return value


def _demo(options: argparse.Namespace) -> int:
    from profilis_mp.cli.demo import run_demo

    directory = os.path.abspath(options.dir) if options.dir else tempfile.mkdtemp(prefix="profilis-mp-demo-")
    if os.path.isdir(directory) and os.listdir(directory):
        print(f"profilis-mp: {directory} is not empty", file=sys.stderr)
        return 2
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big")
    balanced = run_demo(directory, workers=options.workers, seconds=options.seconds, seed=seed)
    return 0 if balanced else 1


def _recover(options: argparse.Namespace) -> int:
    from profilis_mp.sharedlog.recovery import recover

    report = recover(options.dir)
    print(
        f"{report.directory}: {len(report.streams)} streams, {report.dead_spools} spools of dead processes drained, "
        f"{report.flushed_bytes} bytes, {report.finished_flushes} interrupted flushes finished, "
        f"{report.live_spools} spools of living processes left to them"
    )
    for path in report.set_aside:
        print(f"set aside: {path}")
    for failure in report.failures:
        print(f"not done: {failure}", file=sys.stderr)
    return 1 if report.failures else 0
