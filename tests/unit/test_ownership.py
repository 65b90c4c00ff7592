"""Whose a file becomes that is made here, which owners are refused, and what is said when a permission is missing."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Any

import pytest

from profilis_mp import ConfigError, JSONLExporter
from profilis_mp.sharedlog.ownership import Access, create_settled
from profilis_mp.sharedlog.users import LEAVE, resolve_owner, show_group, show_user, why_not

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
ME = pwd.getpwuid(os.getuid())
NOBODY = 65534
UNKNOWN = 4_000_000_001


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def owner(path: Path) -> tuple[int, int]:
    return path.lstat().st_uid, path.lstat().st_gid


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, None),
        (ME.pw_name, (ME.pw_uid, ME.pw_gid)),
        (ME.pw_uid, (ME.pw_uid, ME.pw_gid)),
        (str(ME.pw_uid), (ME.pw_uid, ME.pw_gid)),
        (UNKNOWN, (UNKNOWN, LEAVE)),
        (f"{UNKNOWN}:7", (UNKNOWN, 7)),
        (f"{ME.pw_name}:{grp.getgrgid(ME.pw_gid).gr_name}", (ME.pw_uid, ME.pw_gid)),
        ((UNKNOWN, 0), (UNKNOWN, 0)),
        ((ME.pw_name, 5), (ME.pw_uid, 5)),
    ],
)
def test_an_owner_is_a_user_or_a_user_and_a_group(given: Any, meant: tuple[int, int] | None) -> None:
    assert resolve_owner(given) == meant


@pytest.mark.parametrize(
    "given",
    [
        *("", ":", "no such user", "root:no such group", "root:", ":root", "r\0t", "\udc80", "²"),
        *(-1, 1 << 32, True, 1.5, b"root", ("root",), ("root", None), ("root", True), (1, 2, 3), {}),
    ],
    ids=repr,
)
def test_an_owner_that_is_none_is_refused_by_name(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        JSONLExporter(tmp_path / "logs", owner=given)
    assert caught.value.argument == "owner"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [0, 0o600, 0o077, 0o10750, -1, True, 0o750 + 0.5, "0o750"])
def test_a_dir_mode_that_is_none_is_refused_by_name(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        JSONLExporter(tmp_path / "logs", dir_mode=given)
    assert caught.value.argument == "dir_mode"


@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
@pytest.mark.parametrize(
    ("file_mode", "dir_mode", "log", "state", "private"),
    [
        (0o640, 0o755, 0o755, 0o750, 0o600),
        (0o600, 0o700, 0o700, 0o700, 0o600),
        (0o660, 0o2770, 0o2770, 0o2770, 0o660),
        (0o666, 0o1777, 0o1777, 0o1777, 0o666),
    ],
)
def test_modes_are_exact_whatever_the_umask(
    tmp_path: Path, umask: int, file_mode: int, dir_mode: int, log: int, state: int, private: int
) -> None:
    old = os.umask(umask)
    try:
        with JSONLExporter(
            tmp_path / "a" / "logs", file_mode=file_mode, dir_mode=dir_mode, janitor="external"
        ) as exporter:
            exporter.emit({"kind": "FN"})
            exporter.flush()
            exporter.emit({"kind": "FN"})
    finally:
        os.umask(old)
    logs = tmp_path / "a" / "logs"
    assert (mode(tmp_path / "a"), mode(logs)) == (log, log)
    (segment,) = logs.glob("*.jsonl")
    assert mode(segment) == file_mode
    for path in (logs / ".profilis-mp", *(logs / ".profilis-mp").rglob("*")):
        if path.is_dir():
            assert mode(path) == state, path
        else:
            assert mode(path) == (file_mode if path.name == "upkeep.json" else private), path


def test_what_exists_already_keeps_its_mode(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o711)
    with JSONLExporter(logs, dir_mode=0o700) as exporter:
        exporter.emit({"kind": "FN"})
    assert mode(logs) == 0o711


def settling(access: Access, model: Path) -> Any:
    return lambda fd, made: access.settle(fd, 0o640, str(model), made=made)


@as_root
def test_root_gives_away_what_it_makes_and_nothing_else(tmp_path: Path) -> None:
    access = Access(owner=(NOBODY, NOBODY))
    made = tmp_path / "made"
    os.close(create_settled(str(made), os.O_RDWR, 0o600, settling(access, tmp_path), str(tmp_path)))
    assert (owner(made), mode(made), made.stat().st_nlink) == ((NOBODY, NOBODY), 0o640, 1)
    assert list(tmp_path.iterdir()) == [made]
    others = tmp_path / "others"
    others.touch()
    os.chown(others, 1234, 1234)
    named_twice = tmp_path / "named twice"
    named_twice.touch()
    os.link(named_twice, tmp_path / "its other name")
    for path in (others, named_twice):
        before = owner(path)
        with path.open("rb") as file:
            assert access.settle(file.fileno(), 0o600, str(tmp_path), made=False) is None
        assert owner(path) == before, "it could be root's own file, linked here by somebody else"


@as_root
def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("theirs")
    with pytest.raises(FileExistsError):
        create_settled(str(path), os.O_RDWR, 0o600, settling(Access(owner=(1, 1)), tmp_path), str(tmp_path))
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@as_root
def test_without_owner_what_root_makes_belongs_to_whom_its_directory_belongs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 1234, 5678)
    with JSONLExporter(home / "app" / "logs", rotate_bytes=1) as exporter:
        exporter.emit({"kind": "FN"})
        exporter.flush()
        exporter.emit({"kind": "FN"})
        assert {owner(path) for path in home.rglob("*")} == {(1234, 5678)}
        assert len(list(home.rglob("*"))) > 8


@as_root
def test_a_log_directory_of_roots_is_given_away_only_while_it_is_empty(tmp_path: Path) -> None:
    """It could be /var/log: what lies in it is others'."""
    for name, precious in (("empty", False), ("log", True)):
        logs = tmp_path / name
        logs.mkdir()
        if precious:
            (logs / "syslog").touch()
        JSONLExporter(logs, owner=(NOBODY, NOBODY)).prepare()
        assert owner(logs) == ((0, 0) if precious else (NOBODY, NOBODY))
        assert owner(logs / ".profilis-mp") == (NOBODY, NOBODY)
    assert owner(tmp_path / "log" / "syslog") == (0, 0)


@as_root
def test_prepare_makes_directories_for_those_who_could_not(tmp_path: Path) -> None:
    exporter = JSONLExporter(tmp_path / "logs", dir_mode=0o2750)
    exporter.prepare(owner=f"{NOBODY}:7")
    assert {owner(path) for path in tmp_path.rglob("*")} == {(NOBODY, 7)}
    assert mode(tmp_path / "logs") == 0o2750
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    here = f"{show_user(os.geteuid())}"
    told = why_not(f"{tmp_path}/.profilis-mp/x/spool/1")
    assert told.startswith(f"{tmp_path} belongs to {here}, {show_group(tmp_path.stat().st_gid)}, mode 0700, ")
    assert f"this process runs as {here}" in told
    file = tmp_path / "file"
    file.touch()
    assert why_not(str(file)).startswith(f"{file} belongs to {here}")
    assert show_user(UNKNOWN) == f"user {UNKNOWN}"
    assert show_group(UNKNOWN) == f"group {UNKNOWN}"
