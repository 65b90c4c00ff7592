"""The judge itself: an account that could not find anything wrong would prove nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from profilis_mp import JSONLExporter
from profilis_mp.account import segments_of, take_account


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three segments, four events of each of two workers."""
    with JSONLExporter(tmp_path, rotate_bytes=80) as exporter:
        for number in range(4):
            for worker in (0, 1):
                exporter.emit({"worker": worker, "seq": number})
    assert len(segments_of(str(tmp_path))) == 3
    return tmp_path


def first(log: Path) -> Path:
    return Path(segments_of(str(log))[0])


def edit(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(log: Path) -> None:
        first(log).write_bytes(change(first(log).read_bytes()))

    return damage


def test_account_of_a_good_log_balances(log: Path) -> None:
    account = take_account(str(log), {0: 4, 1: 4}, rotate_bytes=80)
    assert account.balanced
    assert (account.acknowledged, account.on_disk, account.segments) == (8, 8, 3)


@pytest.mark.parametrize(
    ("damage", "field"),
    [
        (edit(lambda text: text.split(b"\n", 1)[1]), "lost"),
        (edit(lambda text: text + text.splitlines(keepends=True)[0]), "duplicated"),
        (edit(lambda text: text[:-5]), "torn"),
        (edit(lambda text: text[:-1]), "torn"),
        (edit(lambda text: b"[1]\n" + text), "torn"),
        (edit(lambda text: b"".join(reversed(text.splitlines(keepends=True)))), "out_of_order"),
        (edit(lambda text: text + b'{"worker":9,"seq":0}\n'), "oversize_segments"),
        (lambda log: first(log).unlink(), "lost"),
    ],
)
def test_account_finds_what_is_wrong(log: Path, damage: Callable[[Path], None], field: str) -> None:
    damage(log)
    account = take_account(str(log), {0: 4, 1: 4}, rotate_bytes=80)
    assert getattr(account, field) > 0
    assert not account.balanced
    assert account.findings


def test_account_of_nothing_is_all_lost(tmp_path: Path) -> None:
    account = take_account(str(tmp_path), {0: 5})
    assert (account.lost, account.segments) == (5, 0)
