"""The command line, as a shell would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import fork, reap

from profilis_mp import JSONLExporter
from profilis_mp.account import Account, segments_of, take_account
from profilis_mp.cli import demo, main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "profilis_mp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


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
    done = run("recover", str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not a directory" in done.stderr
