"""Which commands change a log directory?  Each does now, from a shell, what the writing processes do by themselves."""

from __future__ import annotations

import json
import os
import sys

import click

from profilis_mp.cli.options import (
    AGE,
    DURATION,
    SIZE,
    Unusable,
    directory_argument,
    existing,
    json_option,
    stream_option,
)
from profilis_mp.cli.units import counted

__all__ = ["clean", "demo", "janitor", "recover", "rotate"]


@click.command(short_help="Fork workers, kill some, and print a checked account.")
@click.option("--dir", "directory", metavar="DIR", help="Log directory, must be empty; else a temporary one, kept.")
@click.option("--workers", type=click.IntRange(1, 256), default=4, show_default=True, help="Emit at a time.")
@click.option("--seconds", type=AGE, default="2", show_default=True, help="For how long.")
@click.option("--seed", type=int, help="Decides who is killed when; else random.")
def demo(directory: str | None, workers: int, seconds: float, seed: int | None) -> int:
    """Fork workers that emit, kill some with SIGKILL, recover, and print a checked account.

    The exit status is 0 only if nothing is lost, duplicated, torn or out of order.
    """
    import tempfile

    from profilis_mp.cli.demo import run_demo

    directory = os.path.abspath(directory) if directory else tempfile.mkdtemp(prefix="profilis-mp-demo-")
    if os.path.isdir(directory) and os.listdir(directory):
        raise click.UsageError(f"{directory} is not empty.")
    seed = seed if seed is not None else int.from_bytes(os.urandom(4), "big")
    return 0 if run_demo(directory, workers=workers, seconds=seconds, seed=seed) else 1


@click.command(short_help="Compress and expire segments, in the foreground.")
@directory_argument
@click.option("--compress", is_flag=True, help="Compress sealed segments.")
@click.option("--compression", type=click.Choice(["gzip", "zstd"]), help="How; zstd is the extra of that name.")
@click.option("--compression-level", type=int, metavar="LEVEL", help="1 to 9 for gzip, 1 to 19 for zstd.")
@click.option("--compress-delay", type=DURATION, help="So long after the last write, for log shippers; else 2m.")
@click.option("--max-files", type=click.IntRange(1), help="Keep at most so many segments, the active one included.")
@click.option("--max-age", type=AGE, help="Expire segments not written to for so long, such as 7d.")
@click.option("--max-bytes", type=SIZE, help="Expire the eldest while all have more than this, such as 10G.")
@click.option("--once", is_flag=True, help="Sweep once, without waiting to lead, and end.")
@json_option
def janitor(
    directory: str,
    compress: bool,
    compression: str | None,
    compression_level: int | None,
    compress_delay: float | None,
    max_files: int | None,
    max_age: float | None,
    max_bytes: int | None,
    once: bool,
    as_json: bool,
) -> int:
    """Lead every stream in DIR: flush what waits, compress and expire, until SIGTERM or Ctrl-C.

    For systemd, uWSGI's attach-daemon, a sidecar container. Without rules on the command line, those that the writers
    recorded (janitor="external") hold. Prints one line for each sweep that did something.
    """
    from profilis_mp.cli.janitor import run

    rules = {
        "compress_old_files": compress or None,
        "compression": compression,
        "compression_level": compression_level,
        "compress_delay_secs": compress_delay,
        "max_files": max_files,
        "max_age_secs": max_age,
        "max_total_bytes": max_bytes,
    }
    given = {rule: value for rule, value in rules.items() if value is not None}
    if not compress and any(rule.startswith("compress") for rule in given):
        raise click.UsageError("--compression, --compression-level and --compress-delay need --compress.")
    return run(directory, given, once=once, as_json=as_json)


@click.command(short_help="Finish what dead processes left behind.")
@directory_argument
@json_option
def recover(directory: str, as_json: bool) -> int:
    """Finish interrupted flushes and flush every spool in DIR, those of dead processes above all.

    Every writer does that for the others all the time; this does it now. Exit status 1: something could not be done.
    """
    from dataclasses import asdict

    from profilis_mp.cli.progress import working
    from profilis_mp.cli.warnings import warnings_on_stderr
    from profilis_mp.sharedlog.recovery import recover

    warnings_on_stderr()
    with working("recovering"):
        report = recover(existing(directory))
    if as_json:
        print(json.dumps(asdict(report)))
        return 1 if report.failures else 0
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


@click.command(short_help="Seal the active segments.")
@directory_argument
@stream_option
@json_option
def rotate(directory: str, stream: str | None, as_json: bool) -> int:
    """Flush what waits in DIR and seal the active segment of every stream; the next event opens a new one.

    Prints the paths of the segments sealed. An empty segment is not sealed.
    """
    from profilis_mp.cli.rotation import seal_streams
    from profilis_mp.cli.warnings import warnings_on_stderr

    warnings_on_stderr()
    sealed = seal_streams(existing(directory), stream)
    if not sealed:
        raise Unusable(f"{directory} has no stream{f' {stream}' if stream else ''}")
    if as_json:
        print(json.dumps([{"stream": name, "sealed": path} for name, path in sealed.items()]))
        return 0
    for name, path in sealed.items():
        print(path if path is not None else f"{name}: nothing to seal", file=sys.stdout if path else sys.stderr)
    return 0


@click.command(short_help="Delete sealed segments older than --max-age.")
@directory_argument
@click.option("--max-age", type=AGE, default="7d", show_default=True, help="Keep what was written to since then.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@json_option
def clean(directory: str, max_age: float, dry_run: bool, as_json: bool) -> int:
    """Delete sealed segments in DIR that nobody wrote to for --max-age; never an active one, never a foreign file.

    Prints the paths of the files.
    """
    from profilis_mp.health import cleanup_old_files

    existing(directory)
    removed = cleanup_old_files(directory, max_age / 86_400, dry_run=dry_run)
    if as_json:
        print(json.dumps({"dry_run": dry_run, "files": removed}))
        return 0
    for path in removed:
        print(path)
    verb = "would be deleted" if dry_run else "deleted"
    print(f"{counted(len(removed), 'segment')} {verb}", file=sys.stderr)
    return 0
