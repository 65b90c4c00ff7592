"""The command line, as a shell would run it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import cli_reference
import pytest
from processes import Signal, fork, reap, running, wait_until

from profilis_mp import JSONLExporter
from profilis_mp.account import Account, segments_of, take_account
from profilis_mp.cli import demo, main
from profilis_mp.core.events import db_event, fn_event, req_event

COMMAND = [sys.executable, "-m", "profilis_mp"]
ROOT = Path(__file__).parents[2]


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=120, **options)


@contextmanager
def alive_with(function: str, directory: Path) -> Iterator[None]:
    """Another process that has emitted one event, flushes nothing and lives on, for the length of a block."""
    emitted = Signal()

    def wait() -> None:
        exporter = JSONLExporter(directory, flush_interval=1000)
        exporter.emit(fn_event(function, 1))
        emitted.send()
        signal.pause()

    with running(wait):
        emitted.wait()
        yield


@contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on; whatever is left of it at the end of the block is killed."""
    # Where the tests run in the background of a shell, an ignored Ctrl-C would be inherited.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*COMMAND, *arguments], **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        )
    finally:
        signal.signal(signal.SIGINT, earlier)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def on_a_terminal(*arguments: str, environment: dict[str, str] | None = None, into: IO[bytes] | None = None) -> bytes:
    """What a command writes to a terminal, but for its standard output, if that goes ``into`` a file."""
    ours, its = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", **(environment or {})}
    environ = {name: value for name, value in environ.items() if name != "NO_COLOR" or environment}
    with started(*arguments, stdout=into or its, stderr=its, stdin=its, env=environ) as process:
        os.close(its)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end was closed
            pass
        assert process.wait(60) == 0
    os.close(ours)
    return shown


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """30 events in several segments: REQ, FN and DB in turn, one failure of each of the first two."""
    directory = tmp_path / "logs"
    with JSONLExporter(directory, rotate_bytes=1500) as exporter:
        for number in range(10):
            failed = number == 4
            exporter.emit(req_event("/users/<id>", 500 if failed else 200, 1_000_000 * (number + 1), seq=number))
            exporter.emit(fn_event("load", 2_000_000, error=failed, seq=number))
            exporter.emit(db_event("SELECT 1", 50_000, 1, seq=number))
    return directory


def lines_of(directory: Path) -> str:
    return "".join(Path(path).read_text() for path in segments_of(str(directory)))


def test_demo_prints_a_balanced_account_of_what_is_really_on_disk(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    done = run("demo", "--dir", str(directory), "--workers", "3", "--seconds", "1", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The account balances." in done.stdout
    for label in ("lost", "duplicated", "torn"):
        assert re.search(rf"^  {label} +0$", done.stdout, re.MULTILINE), done.stdout
    on_disk = re.search(r"on disk +([\d,]+)", done.stdout)
    assert on_disk is not None
    lines = sum(Path(path).read_bytes().count(b"\n") for path in segments_of(str(directory)))
    assert int(on_disk.group(1).replace(",", "")) == lines > 1000


def test_demo_exits_non_zero_when_the_account_does_not_balance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody removes a line between the storm and the count."""

    def tampered(directory: str, *arguments: object, **options: object) -> Account:
        victim = Path(segments_of(directory)[0])
        victim.write_bytes(victim.read_bytes().split(b"\n", 1)[1])
        return take_account(directory, *arguments, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(demo, "take_account", tampered)
    assert main(["demo", "--dir", str(tmp_path / "logs"), "--workers", "2", "--seconds", "0.3"]) == 1
    printed = capsys.readouterr().out
    assert "THE ACCOUNT DOES NOT BALANCE." in printed
    assert re.search(r"^  lost +1$", printed, re.MULTILINE)


def test_demo_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = run("demo", "--dir", str(tmp_path))
    assert done.returncode == 2
    assert "not empty" in done.stderr
    assert os.listdir(tmp_path) == ["precious"]


def test_recover_drains_what_a_dead_process_left(tmp_path: Path) -> None:
    assert reap(fork(lambda: JSONLExporter(tmp_path).emit({"kind": "FN"}))) == 0
    done = run("recover", str(tmp_path))
    assert done.returncode == 0
    assert "1 spools of dead processes drained" in done.stdout
    assert Path(segments_of(str(tmp_path))[0]).read_bytes() == b'{"kind":"FN"}\n'


def test_error_is_one_line_and_a_non_zero_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("janitor", str(tmp_path / "file"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "is not a directory" in done.stderr


# Reading.


def test_cat_prints_every_line_as_it_is(logs: Path) -> None:
    done = run("cat", str(logs))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == lines_of(logs)
    assert done.stdout.count("\n") == 30


def test_cat_prints_compressed_segments_too_and_says_what_is_torn(logs: Path) -> None:
    everything = lines_of(logs)
    assert run("janitor", str(logs), "--once", "--compress", "--compress-delay", "0").returncode == 0
    assert list(logs.glob("*.jsonl.gz"))
    assert run("cat", str(logs)).stdout == everything
    with open(segments_of(str(logs))[-1], "ab") as active:
        active.write(b'{"kind": tor\n')
    done = run("cat", str(logs), "--kind", "REQ", "--kind", "FN")
    assert done.stdout.count("\n") == 20
    assert re.fullmatch(r"profilis-mp: skipped: 1 torn; the first: .*\n", done.stderr)


def test_tail_shows_the_last_events_one_aligned_line_each(logs: Path) -> None:
    done = run("tail", str(logs), "-n", "3")
    assert done.returncode == 0
    rows = done.stdout.splitlines()
    moment = r"\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.fullmatch(moment + r" REQ   10\.0ms 200 /users/<id>  seq=9 trace_id=\w{32} span_id=\w{16}", rows[0])
    assert re.fullmatch(moment + r" FN    2\.00ms     load  seq=9 trace_id=.*", rows[1])
    assert re.fullmatch(moment + r" DB    50\.0µs     SELECT 1  rows=1 seq=9 trace_id=.*", rows[2])


def test_tail_raw_shows_lines_as_they_are_from_as_many_segments_as_it_takes(logs: Path) -> None:
    everything = lines_of(logs).splitlines()
    assert run("tail", str(logs), "--raw").stdout.splitlines() == everything[-10:]
    assert run("tail", str(logs), "--json", "-n", "29").stdout.splitlines() == everything[-29:]
    assert run("tail", str(logs), "--raw", "-n", "99").stdout.splitlines() == everything
    assert run("tail", str(logs), "--raw", "-n", "0").stdout == ""
    chosen = run("tail", str(logs), "--raw", "-n", "7", "--kind", "REQ").stdout.splitlines()
    assert chosen == [line for line in everything if '"kind":"REQ"' in line][-7:]


def test_since_and_until_choose_by_the_time_of_the_event(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        for minutes in (90, 30, 5):
            exporter.emit({"ts_ns": time.time_ns() - minutes * 60 * 10**9, "minutes": minutes})
    assert run("tail", str(tmp_path), "--since", "10m", "--raw").stdout.count('"minutes":5}') == 1
    assert run("cat", str(tmp_path), "--since", "1h").stdout.count("\n") == 2
    assert '"minutes":90}' in run("cat", str(tmp_path), "--until", "1h").stdout
    assert run("cat", str(tmp_path), "--since", "2020-01-01").stdout.count("\n") == 3


def test_unflushed_events_of_a_living_process_are_shown_when_asked_for(tmp_path: Path) -> None:
    with alive_with("waiting", tmp_path):
        assert "waiting" in run("tail", str(tmp_path), "--unflushed").stdout
        assert "waiting" in run("cat", str(tmp_path), "--unflushed").stdout
        assert "waiting" not in run("cat", str(tmp_path)).stdout


def test_who_may_read_segments_only_names_the_stream(capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to become another user")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with JSONLExporter(directory, file_mode=0o644, rotate_bytes=100) as exporter:
            exporter.export([fn_event("load", number) for number in range(30)])

        def read() -> None:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            for command in (["tail", directory, "-n", "7"], ["tail", directory, "-n", "1"], ["cat", directory]):
                assert main([*command, "--stream", "profilis-{timestamp}.jsonl"]) == 0
                assert main(command) == 1

        assert reap(fork(read)) == 0
    lines = "".join(capfd.readouterr()).splitlines()
    assert sum("load" in line for line in lines) == 7 + 1 + 30
    assert sum("name the stream" in line for line in lines) == 3


def test_tail_follows_across_rotations_and_ends_quietly_with_ctrl_c(logs: Path) -> None:
    last = lines_of(logs).splitlines()[-1]
    with started("tail", "-f", "-n", "1", "--raw", str(logs)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode().rstrip("\n") == last
        with JSONLExporter(logs, rotate_bytes=200) as exporter:
            for number in range(20):
                exporter.emit({"kind": "FN", "next": number})
        follow = [json.loads(process.stdout.readline())["next"] for _ in range(20)]
        assert follow == list(range(20))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_tail_waits_for_the_first_event_in_an_empty_directory(tmp_path: Path) -> None:
    with started("tail", "-f", str(tmp_path)) as process:
        with JSONLExporter(tmp_path) as exporter:
            exporter.emit(fn_event("first", 1))
        assert process.stdout is not None
        assert b"first" in process.stdout.readline()


@pytest.mark.parametrize("arguments", [("cat",), ("tail", "-n", "100000", "--raw")])
def test_a_closed_pipe_ends_it_quietly(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with JSONLExporter(tmp_path) as exporter:
        for _ in range(20_000):
            exporter.emit(fn_event("some", 1))
    with started(*arguments, str(tmp_path)) as process:
        assert process.stdout is not None
        assert b"some" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 128 + signal.SIGPIPE


def test_a_full_disk_is_an_error_in_one_line(logs: Path) -> None:
    with open("/dev/full", "wb") as full:
        for command in ("cat", "health"):
            done = subprocess.run(
                [*COMMAND, command, str(logs)], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (1, "profilis-mp: [Errno 28] No space left on device\n")


def test_tail_is_coloured_on_a_terminal_and_only_there(logs: Path) -> None:
    assert b"\x1b[" in on_a_terminal("tail", str(logs))
    assert b"\x1b[" not in on_a_terminal("tail", str(logs), environment={"NO_COLOR": "1"})
    assert b"\x1b[" not in on_a_terminal("tail", str(logs), environment={"TERM": "dumb"})
    assert b"\x1b[" not in on_a_terminal("tail", "--raw", str(logs))
    assert "\x1b" not in run("tail", str(logs)).stdout


def test_nothing_that_an_event_holds_reaches_the_terminal_as_a_control_character(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path) as exporter:
        exporter.emit(req_event("/\x1b]0;title\x07", 200, 1, note="a\u202eb\nc"))
    for shown in (run("tail", str(tmp_path)).stdout, run("stats", str(tmp_path)).stdout):
        assert r"/\x1b]0;title\x07" in shown
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)


def test_stats_counts_events_errors_and_percentiles_of_each_route_function_and_query(logs: Path) -> None:
    done = run("stats", str(logs))
    assert done.returncode == 0
    rows = [re.split(r" {2,}", row.strip()) for row in done.stdout.splitlines()]
    assert rows[0] == ["kind", "what", "events", "errors", "p50", "p95", "p99", "max", "total"]
    assert rows[1][:4] == ["REQ", "/users/<id>", "10", "1"]
    assert rows[2] == ["FN", "load", "10", "1", *["2.00ms"] * 4, "20.0ms"]
    assert rows[3][:4] == ["DB", "SELECT 1", "10", "0"]
    assert rows[4][0].startswith("30 events, 2 errors, from ")


def test_stats_as_json_is_within_one_percent(logs: Path) -> None:
    done = run("stats", str(logs), "--json", "--by", "route")
    said = json.loads(done.stdout)
    (route,) = said["groups"]
    assert (said["events"], route["route"], route["max_ns"], route["total_ns"]) == (
        30,
        "/users/<id>",
        10**7,
        55 * 10**6,
    )
    assert route["p50_ns"] == pytest.approx(5_000_000, rel=0.01)
    assert route["p95_ns"] == pytest.approx(10_000_000, rel=0.01)
    assert said["groups_are_complete"] is True


def test_stats_draws_a_table_and_a_bar_on_a_terminal_and_none_in_a_pipe(logs: Path) -> None:
    shown = on_a_terminal("stats", str(logs)).decode()
    assert "───" in shown
    assert "/users/<id>" in shown
    assert "reading" in shown
    assert run("stats", str(logs)).stderr == ""


def test_cat_draws_a_bar_where_its_lines_go_into_a_file(logs: Path, tmp_path: Path) -> None:
    with (tmp_path / "all").open("wb") as file:
        assert b"reading" in on_a_terminal("cat", str(logs), into=file)
    assert (tmp_path / "all").read_text() == run("cat", str(logs)).stdout
    assert b"reading" not in on_a_terminal("cat", str(logs))


@pytest.mark.parametrize(("command", "what"), [(("recover",), b"recovering"), (("janitor", "--once"), b"sweeping")])
def test_long_work_shows_a_bar_on_a_terminal_and_none_in_a_pipe(
    logs: Path, command: tuple[str, ...], what: bytes
) -> None:
    assert what in on_a_terminal(*command, str(logs))
    assert what.decode() not in run(*command, str(logs)).stderr


# Monitoring.


def test_health_and_doctor_of_a_healthy_log_exit_with_0(logs: Path) -> None:
    done = run("health", str(logs))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"healthy  profilis-\{timestamp\}\.jsonl: \d+ segments, .*\n", done.stdout)
    done = run("doctor", str(logs))
    assert done.returncode == 0
    assert done.stdout.endswith("Nothing to do.\n")
    for command in ("health", "doctor"):
        said = json.loads(run(command, str(logs), "--json").stdout)
        assert said["status"] == "healthy"
        assert list(said["streams"]) == ["profilis-{timestamp}.jsonl"]


def test_health_of_a_log_with_events_that_nobody_flushes_exits_with_1(tmp_path: Path) -> None:
    """The only process of the stream is stopped, and its events wait."""

    def emit_and_stop() -> None:
        exporter = JSONLExporter(tmp_path, flush_interval=1000)
        exporter.emit(fn_event("waiting", 1))
        os.kill(os.getpid(), signal.SIGSTOP)

    with running(emit_and_stop) as (pid,):
        wait_until(lambda: os.waitpid(pid, os.WNOHANG | os.WUNTRACED) != (0, 0))
        wait_until(lambda: run("health", str(tmp_path)).returncode == 1, what="the lag is noticed")
        done = run("doctor", str(tmp_path))
        assert done.returncode == 1
        assert re.search(r"^  ! .* wait", done.stdout, re.MULTILINE)
        assert "Nothing to do." not in done.stdout
        said = json.loads(run("health", str(tmp_path), "--json").stdout)
        assert said["status"] == "degraded"


@pytest.mark.parametrize("command", ["health", "doctor"])
def test_writers_that_flush_seldom_are_healthy_to_who_knows_it(tmp_path: Path, command: str) -> None:
    with JSONLExporter(tmp_path, flush_interval=1000) as exporter:
        exporter.emit({})
        exporter.flush()
        exporter.emit({**fn_event("waiting", 1), "ts_ns": time.time_ns() - 10})
        wait_until(lambda: run(command, str(tmp_path)).returncode == 1, what="it waits for longer than 2 s")
        done = run(command, str(tmp_path), "--flush-interval", "1000s")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_space_is_compared_with_the_rules_that_writers_recorded(tmp_path: Path) -> None:
    with JSONLExporter(tmp_path, max_total_bytes=1 << 60, janitor="external") as exporter:
        exporter.emit({})
        exporter.flush()
        done = run("doctor", str(tmp_path))
    assert done.returncode == 1
    assert "more before retention frees any" in done.stdout


@pytest.mark.parametrize("command", ["health", "doctor"])
def test_a_directory_without_a_log_is_unhealthy(tmp_path: Path, command: str) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        done = run(command, str(directory))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        said = json.loads(run(command, str(directory), "--json").stdout)
        assert said["status"] == "unhealthy"
        assert said["error"]


# Operating.


def test_rotate_seals_what_was_emitted_before_it_and_opens_nothing(tmp_path: Path) -> None:
    with alive_with("before", tmp_path):
        done = run("rotate", str(tmp_path))
        assert done.returncode == 0, done.stderr
        (segment,) = segments_of(str(tmp_path))
        assert done.stdout == f"{segment}\n"
        assert "before" in Path(segment).read_text()
        assert len(list((tmp_path / ".profilis-mp").glob("*/spool/*"))) == 1
        with JSONLExporter(tmp_path) as exporter:
            exporter.emit(fn_event("after", 1))
        elder, younger = segments_of(str(tmp_path))
        assert elder == segment
        assert "after" in Path(younger).read_text()


def test_rotate_does_not_seal_an_empty_segment(logs: Path) -> None:
    before = os.listdir(logs)
    assert run("rotate", str(logs)).returncode == 0
    again = run("rotate", str(logs), "--json")
    assert json.loads(again.stdout) == [{"stream": "profilis-{timestamp}.jsonl", "sealed": None}]
    assert os.listdir(logs) == before
    other = run("rotate", str(logs), "--stream", "other-{index}.jsonl")
    assert other.returncode == 2
    assert other.stderr.count("\n") == 1


def test_clean_deletes_old_sealed_segments_and_says_so_beforehand(logs: Path) -> None:
    *sealed, active = segments_of(str(logs))
    old = time.time() - 8 * 86_400
    for path in (*sealed[:2], active):
        os.utime(path, (old, old))
    assert run("clean", str(logs), "--dry-run").stdout.splitlines() == sealed[:2]
    assert len(segments_of(str(logs))) == len(sealed) + 1
    assert run("clean", str(logs), "--max-age", "9d").stdout == ""
    assert json.loads(run("clean", str(logs), "--json").stdout) == {"dry_run": False, "files": sealed[:2]}
    assert segments_of(str(logs)) == [*sealed[2:], active]


def test_janitor_sweeps_once_when_asked_to(logs: Path) -> None:
    segments = segments_of(str(logs))
    done = run("janitor", str(logs), "--once", "--max-files", "2", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert sorted(said["expired"]) == segments[:-2]
    assert segments_of(str(logs)) == segments[-2:]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_janitor_leads_in_the_foreground_until_a_signal_ends_it_cleanly(logs: Path, signum: signal.Signals) -> None:
    arguments = ("janitor", str(logs), "--compress", "--compress-delay", "0", "--max-files", "100")
    with started(*arguments, text=False) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"looking after ")
        wait_until(lambda: len(segments_of(str(logs))) == 1 or len(list(logs.glob("*.jsonl"))) == 1)
        assert reap(fork(lambda: JSONLExporter(logs, flush_interval=1000).emit({"left": "behind"}))) == 0
        wait_until(lambda: "left" in run("cat", str(logs)).stdout, what="the dead process's spool is drained")
        process.send_signal(signum)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert not list(logs.glob("*.tmp"))


def test_janitor_refuses_rules_that_make_no_sense(logs: Path) -> None:
    for arguments in (("--compression", "zstd"), ("--compress", "--compression-level", "77"), ("--max-age", "soon")):
        done = run("janitor", str(logs), "--once", *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("clean", "{logs}", "--max-age", "0"), "'--max-age': '0' must be more than 0"),
        (("janitor", "{logs}", "--max-age", "0d"), "'--max-age': '0d' must be more than 0"),
        (("janitor", "{logs}", "--max-bytes", "0"), "'--max-bytes': '0' must be more than 0"),
        (("janitor", "{logs}", "--compress", "--compression-level", "77"), "--compression-level: 77 is no whole"),
        (("demo", "--seconds", "0"), "'--seconds': '0' must be more than 0"),
        (("demo", "--seconds", "nan"), "'--seconds': 'nan' is no duration"),
        (("tail", "{logs}", "--stream", "nope"), "--stream: 'nope' is no stream"),
        (("recover", ""), "'': No such file"),
        (("health", ""), "DIR: '' is no usable path"),
    ],
)
def test_an_error_names_what_was_typed(logs: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(*(one.format(logs=logs) for one in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_recover_as_json(logs: Path) -> None:
    said = json.loads(run("recover", str(logs), "--json").stdout)
    assert (said["streams"], said["failures"]) == (["profilis-{timestamp}.jsonl"], [])


# The command itself.


@pytest.mark.parametrize(
    "arguments",
    [
        ("cat", "{missing}"),
        ("tail", "{missing}"),
        ("stats", "{missing}"),
        ("rotate", "{missing}"),
        ("clean", "{missing}"),
        ("recover", "{missing}"),
        ("cat", "{empty}"),
        ("tail", "{empty}"),
        ("stats", "{empty}"),
        ("rotate", "{empty}"),
        ("janitor", "{empty}", "--once"),
        ("tail", "{empty}", "--since", "yesterday"),
        ("tail", "{empty}", "-f", "--unflushed"),
        ("stats", "{empty}", "--by", "colour"),
        ("cat",),
        ("nonsense",),
        ("--nonsense",),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_with_status_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    filled = [one.format(missing=tmp_path / "missing", empty=tmp_path) for one in arguments]
    done = run(*filled)
    assert done.returncode == 2
    assert done.stderr.startswith("profilis-mp")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_without_a_command_it_shows_the_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "janitor" in done.stderr


def test_without_rich_a_table_says_what_to_install_and_a_pipe_needs_none(logs: Path) -> None:
    code = (
        "import sys; sys.modules['rich'] = None; sys.stdout.isatty = lambda: {}\n"
        "from profilis_mp.cli import main; sys.exit(main(['stats', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", code.format(False), str(logs)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == ""
    command = [sys.executable, "-c", code.format(True), str(logs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "profilis-mp: Rich is missing: pip install 'profilis_mp[cli]'\n")


def test_without_click_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None\nfrom profilis_mp.cli import main; sys.exit(main(['health', '.']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "profilis-mp: the command line needs Click: pip install 'profilis_mp[cli]'\n"


@pytest.mark.parametrize(
    ("arguments", "not_loaded"),
    [
        (["--help"], {"rich", "orjson", "watchdog", "filelock", "logging", "tempfile", "dataclasses"}),
        (["stats", "--help"], {"rich", "orjson", "watchdog"}),
        (["tail", "DIR"], {"rich", "watchdog"}),
        (["recover", "DIR"], {"rich", "watchdog"}),
    ],
)
def test_a_command_loads_only_what_it_needs(logs: Path, arguments: list[str], not_loaded: set[str]) -> None:
    filled = [str(logs) if one == "DIR" else one for one in arguments]
    code = f"import sys; from profilis_mp.cli import main; main({filled!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not_loaded.isdisjoint(done.stderr.split())


def test_the_core_never_loads_the_command_line() -> None:
    outside = [path for path in (ROOT / "profilis_mp").rglob("*.py") if "cli" not in path.relative_to(ROOT).parts]
    importing = [path for path in outside if re.search(r"import (click|rich)|profilis_mp\.cli", path.read_text())]
    assert [path.name for path in importing] == ["__main__.py"]


def test_reference_is_what_help_says() -> None:
    assert cli_reference.PATH.read_text() == cli_reference.reference(), "run: python tests/cli_reference.py"
