"""What a writer may be told: every bad value is refused by name, and looking at the directory touches nothing."""

from __future__ import annotations

import copy
import ctypes
import errno
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import fork, reap, run_unprivileged

from profilis_mp import ConfigError, CorruptSegment, LockTimeout, LogDirectoryError, ProfilisError, SharedWriter
from profilis_mp.sharedlog import settings as settings_module
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.settings import Settings, check_log_directory

# Values.

NOT_SIZES = [0, -1, -(10**30), 1 << 62, 10**400, True, False, None, "1", 1.0, 1.5, math.nan, math.inf, b"1", [1]]
NOT_DURATIONS = [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, 10**10, 10**400, True, None, "1", 1j, [1]]
BAD_VALUES: dict[str, list[Any]] = {
    "rotate_bytes": NOT_SIZES,
    "buffer_size": NOT_SIZES,
    "spool_bytes": [bad for bad in NOT_SIZES if bad is not None],
    "rotate_secs": NOT_DURATIONS,
    "flush_interval": NOT_DURATIONS,
    "lock_timeout": [bad for bad in NOT_DURATIONS if bad != 0],
    "on_full": ["", "Drop", "wait", None, True, ["drop"], b"drop"],
    "fsync": ["", "off", "Never", None, False, 0, ["never"]],
    "file_mode": [0, -1, 0o400, 0o200, 0o440, 0o1640, 0o100640, 1 << 70, True, None, "0640", 416.0],
    "filename_template": ["plain", "{pid}-{index}", None, 3],
    "app_name": ["a/b", "", None, 3],
    # Taken, once: and every emit raised a ValueError into the application.
    "local_time": ["yes", "no", None, 1],
    "clock": [None, 5, "now"],
}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        pytest.param(name, bad, id=f"{name}-{str(bad)[:12]}-{type(bad).__name__}")
        for name, values in BAD_VALUES.items()
        for bad in values
    ],
)
def test_bad_value_is_refused_by_name(tmp_path: Path, argument: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SharedWriter(tmp_path / "logs", **{argument: value})
    assert caught.value.argument == argument
    assert str(caught.value).startswith(f"{argument}: ")
    assert list(tmp_path.iterdir()) == []


def test_spool_smaller_than_the_buffer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        SharedWriter(tmp_path, buffer_size=1000, spool_bytes=999)
    assert caught.value.argument == "spool_bytes"
    SharedWriter(tmp_path, buffer_size=1000, spool_bytes=1000)


def test_unknown_argument_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="rotate_byte"):
        SharedWriter(tmp_path, rotate_byte=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "arguments",
    [
        {"rotate_bytes": 1, "buffer_size": 1, "spool_bytes": 1, "rotate_secs": 1e-9, "lock_timeout": 0},
        {"rotate_bytes": (1 << 62) - 1, "rotate_secs": 1e9, "flush_interval": 10**9, "lock_timeout": 1e9},
        {"file_mode": 0o600, "on_full": "block", "fsync": "interval"},
        {"file_mode": 0o777, "lock_timeout": 0.0},
    ],
)
def test_values_at_the_edge_are_taken(tmp_path: Path, arguments: dict[str, Any]) -> None:
    SharedWriter(tmp_path, **arguments)


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "dir": "/nowhere",
        "names": SegmentNames("{index}"),
        "rotate_bytes": 1 << 20,
        "rotate_secs": 3600,
        "buffer_size": 100,
        "spool_bytes": 100,
        "flush_interval": 0.5,
        "lock_timeout": 1.0,
        "on_full": "drop",
        "fsync": "never",
        "file_mode": 0o640,
    }
    return Settings(**(values | changes))


@pytest.mark.parametrize("rotate_secs", [1e-300, 1e-10, 1e-9, 0.1, 3600, 1e9])
def test_limits_in_a_spool_are_what_recovery_accepts(rotate_secs: float) -> None:
    """A rotate_ns of 0 in a spool reads as garbage, so a duration below a nanosecond must not become one."""
    limits = settings(rotate_secs=rotate_secs).limits
    assert limits.rotate_ns > 0
    again = settings().with_limits(limits)
    assert again.limits == limits


def test_another_writers_limits_replace_only_limits() -> None:
    mine = settings(spool_bytes=777)
    theirs = settings(names=SegmentNames("{index}", local_time=True), rotate_bytes=5, rotate_secs=7.5, file_mode=0o600)
    both = mine.with_limits(theirs.limits)
    assert both.limits == theirs.limits
    assert both.names.stream == mine.names.stream
    assert (both.spool_bytes, both.dir) == (777, mine.dir)


# The directory.


class OddPath:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __fspath__(self) -> Any:
        return self.value


@pytest.mark.parametrize(
    "directory", [None, 3, b"logs", "", "\0", "a\0b", ["logs"], OddPath(b"logs"), OddPath(""), "logs/\ud800"]
)
def test_directory_that_is_no_path_is_refused_by_name(directory: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SharedWriter(directory)
    assert caught.value.argument == "dir"


def test_relative_directory_becomes_absolute_and_stays_the_same_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ("logs", "./logs", Path("logs"), "x/../logs", OddPath("logs")):
        assert check_log_directory(given) == str(tmp_path / "logs")
    writer = SharedWriter("logs")
    monkeypatch.chdir("/")
    assert writer.dir == str(tmp_path / "logs")


def test_pickled_writer_still_means_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon changes its directory, then starts a spawned worker."""
    monkeypatch.chdir(tmp_path)
    writer = SharedWriter("logs")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(writer)).dir == writer.dir


def test_nothing_is_created_by_construction(tmp_path: Path) -> None:
    before = os.stat(tmp_path).st_mtime_ns
    writer = SharedWriter(tmp_path / "deep" / "logs")
    assert writer.flush()
    assert writer.current_path is None
    assert writer.next_path().startswith(str(tmp_path / "deep" / "logs" / "profilis-"))
    assert writer.stats()["spool"] is None
    assert writer.close()
    assert list(tmp_path.iterdir()) == []
    assert os.stat(tmp_path).st_mtime_ns == before


def refused(directory: object) -> LogDirectoryError:
    with pytest.raises(LogDirectoryError) as caught:
        check_log_directory(directory)
    return caught.value


@pytest.mark.parametrize("below", ["", "logs", "deep/logs"])
def test_file_in_the_way_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    error = refused(path)
    assert (error.errno, error.path, error.filename) == (errno.ENOTDIR, str(path), str(path))
    assert str(tmp_path / "file") in error.reason


def test_dangling_symlink_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "logs").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "logs").errno == errno.ENOTDIR
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path / "loop" / "logs").errno == errno.ENOTDIR


def test_symlink_to_a_directory_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "real")
    assert check_log_directory(tmp_path / "logs") == str(tmp_path / "logs")


def test_directory_whose_name_is_too_long_to_be_created_is_refused(tmp_path: Path) -> None:
    with pytest.raises((LogDirectoryError, ConfigError)):
        check_log_directory(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("mode", "below", "action"),
    [
        (0o555, "", "written"),
        (0o555, "logs", "created"),
        (0o555, "deep/logs", "created"),
        (0o666, "logs", "created"),
        (0o000, "", "written"),
    ],
)
def test_directory_that_cannot_be_written_is_refused(
    shared_directory: Path, mode: int, below: str, action: str
) -> None:
    parent = shared_directory / "parent"
    parent.mkdir()
    parent.chmod(mode)
    path = parent / below

    def work() -> None:
        error = refused(path)
        assert error.errno == errno.EACCES
        assert error.path == str(path)
        assert action in error.reason
        assert str(parent) in error.reason

    run_unprivileged(work)


def test_directory_behind_a_closed_door_is_refused(shared_directory: Path) -> None:
    (shared_directory / "closed" / "logs").mkdir(parents=True)
    (shared_directory / "closed" / "logs").chmod(0o777)
    (shared_directory / "closed").chmod(0o700 if os.geteuid() == 0 else 0o000)
    try:
        run_unprivileged(lambda: refused(shared_directory / "closed" / "logs"))
    finally:
        (shared_directory / "closed").chmod(0o700)


def test_root_without_privileges_yet_leaves_nothing_for_the_worker_to_trip_over(shared_directory: Path) -> None:
    """A root master builds the writer, its workers drop privileges and write."""
    if os.geteuid() != 0:
        pytest.skip("only root can drop privileges")
    logs = shared_directory / "logs"
    logs.mkdir()
    os.chown(logs, 65534, 65534)
    writer = SharedWriter(logs)

    def work() -> None:
        writer.write(b"line\n")
        assert writer.close()

    run_unprivileged(work)
    (segment,) = logs.glob("*.jsonl")
    assert segment.read_bytes() == b"line\n"
    assert segment.stat().st_uid == 65534


# File systems.


def test_file_system_of_a_path_is_that_of_its_mount() -> None:
    with open("/proc/self/mountinfo") as mounts:
        kinds = {line.split(" - ")[0].split(" ")[4]: line.split(" - ")[1].split(" ")[0] for line in mounts}
    file_system_of = settings_module.file_system_of
    assert file_system_of("/proc") == file_system_of("/proc/self") == "proc"
    assert file_system_of("/") == file_system_of("/procfoo/x") == kinds["/"]
    for mount_point in ("/sys", "/dev", "/dev/shm"):
        if mount_point in kinds:
            assert file_system_of(mount_point) == kinds[mount_point]


_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


def _mount(source: str, target: str, kind: bytes | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def run_with_own_mounts(work: Callable[[], None]) -> None:
    """Run ``work`` in a child that may mount what it likes; nobody else sees it."""

    def child() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(_CLONE_NEWNS):
                raise OSError(ctypes.get_errno(), "unshare")
            _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
        except OSError:
            os._exit(77)
        work()

    code = reap(fork(child))
    if code == 77:
        pytest.skip("mounting is not allowed here")
    assert code == 0


@pytest.mark.parametrize(
    "name", ["plain", "with space", "tab\tnew\nline", "back\\slash\\040", "gr\u00fcn", "\u6f22\u5b57"]
)
def test_mount_point_of_any_name_is_found(tmp_path: Path, name: str) -> None:
    mounted = tmp_path / name
    mounted.mkdir()

    def work() -> None:
        _mount("none", str(mounted), b"tmpfs", 0)
        assert settings_module.file_system_of(f"{mounted}/logs") == "tmpfs"
        assert check_log_directory(mounted / "logs") == str(mounted / "logs")

    run_with_own_mounts(work)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "9p"])
def test_network_file_system_is_refused_and_the_way_out_named(tmp_path: Path, kind: str) -> None:
    """The kernel's list of mounts, with an entry that would take a server, is laid over the real one."""
    mount_point = tmp_path / "the share"
    mount_point.mkdir()
    listing = tmp_path / "mountinfo"
    share = str(mount_point).replace(" ", "\\040")
    listing.write_text(
        f"1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:9 / {share} rw shared:7 master:3 - {kind} server:/x rw\n"
    )

    def work() -> None:
        try:
            _mount(str(listing), f"/proc/{os.getpid()}/mountinfo", None, _MS_BIND)
        except OSError:
            os._exit(77)
        for path in (mount_point, mount_point / "deep" / "logs"):
            error = refused(path)
            assert (error.errno, error.path) == (errno.ENOTSUP, str(path))
            assert kind in error.reason
            assert "local directory" in error.reason
        (tmp_path / "link").symlink_to(mount_point)
        assert refused(tmp_path / "link" / "logs").errno == errno.ENOTSUP
        check_log_directory(tmp_path / "local")
        check_log_directory(tmp_path / "the shared")

    run_with_own_mounts(work)


# Errors carry data.


@pytest.mark.parametrize(
    "error",
    [
        ProfilisError("words"),
        ConfigError("rotate_bytes", "0 must be more than 0"),
        LogDirectoryError("/logs", errno.EACCES, "cannot be written"),
        LockTimeout("/logs/lock", 1.25),
        CorruptSegment("/logs/a.jsonl", 3, 4096),
    ],
)
def test_error_survives_pickling_and_copying(error: Exception) -> None:
    for again in (
        *(pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)),
        copy.copy(error),
    ):
        assert type(again) is type(error)
        assert vars(again) == vars(error)
        assert (str(again), again.args) == (str(error), error.args)
        assert getattr(again, "errno", None) == getattr(error, "errno", None)
        assert getattr(again, "filename", None) == getattr(error, "filename", None)
    assert isinstance(error, ProfilisError)


def test_errors_are_what_callers_already_catch() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(LockTimeout, TimeoutError)
    error = LogDirectoryError("/logs", errno.EACCES, "cannot be written")
    assert isinstance(error, OSError)
    assert (error.errno, error.path, error.filename, error.reason) == (
        errno.EACCES,
        "/logs",
        "/logs",
        "cannot be written",
    )
    assert "1.250 s" in str(LockTimeout("/logs/lock", 1.25))
