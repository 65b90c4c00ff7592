"""Somebody else deletes, moves, cuts, garbles and replaces files while processes write: they notice and go on."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import random
import shutil
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Signal, fork, reap, running, wait_until
from raw_files import open_descriptors, overwrite
from stepping import _each_step

from profilis_mp import SharedWriter, recover
from profilis_mp.account import segments_of
from profilis_mp.sharedlog.lock import KeptLock
from profilis_mp.sharedlog.names import SegmentNames
from profilis_mp.sharedlog.spool import spool_id_of
from profilis_mp.sharedlog.stream import StreamPaths

TEMPLATE = "profilis-{timestamp}.jsonl"
FOREIGN = b"somebody else's line\n"

MakeWriter = Callable[..., SharedWriter]
Damage = Callable[[Path], None]


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def make(logs: Path) -> Iterator[MakeWriter]:
    """Writers whose helper sleeps: what is noticed is noticed by a flush."""
    made: list[SharedWriter] = []

    def make_writer(**arguments: Any) -> SharedWriter:
        writer = SharedWriter(logs, **{"flush_interval": 1e6, "lock_timeout": 1.0, **arguments})
        made.append(writer)
        return writer

    yield make_writer
    for writer in made:
        writer.close(5.0)


def paths_of(logs: Path) -> StreamPaths:
    return StreamPaths(str(logs), SegmentNames(TEMPLATE).stream)


def control_of(logs: Path) -> Path:
    return Path(paths_of(logs).control)


def spools_of(logs: Path) -> list[Path]:
    spools = Path(paths_of(logs).spools)
    return sorted(path for path in spools.iterdir() if spool_id_of(path.name)) if spools.is_dir() else []


def active(logs: Path) -> Path:
    return Path(segments_of(str(logs))[-1])


def contents(logs: Path) -> list[bytes]:
    """What each plain segment holds, in the order of writing; nothing is read through a link."""
    found = [Path(path) for path in segments_of(str(logs))]
    return [path.read_bytes() for path in found if path.is_file() and not path.is_symlink()]


def everything(logs: Path) -> bytes:
    return b"".join(contents(logs))


def lines_in(logs: Path) -> list[bytes]:
    """Each line, and what is torn at the end of one segment apart from the first line of the next."""
    return [line for content in contents(logs) for line in content.splitlines(keepends=True)]


def set_aside(logs: Path) -> list[str]:
    return [str(path) for path in logs.rglob("*.bad-*")]


# Kinds of damage.


def delete_segment(logs: Path) -> None:
    active(logs).unlink()


def move_segment(logs: Path) -> None:
    active(logs).rename(logs / "moved away")


def compress_segment(logs: Path) -> None:
    active(logs).rename(f"{active(logs)}.gz")


def empty_segment(logs: Path) -> None:
    os.truncate(active(logs), 0)


def cut_segment(logs: Path) -> None:
    path = active(logs)
    size = path.stat().st_size
    if size < 3:
        raise FileNotFoundError(f"nothing to cut off in {path}")
    os.truncate(path, size - 3)


def append_to_segment(logs: Path) -> None:
    with active(logs).open("ab") as segment:
        segment.write(FOREIGN)


def edit_segment(logs: Path) -> None:
    """As editors save: a new file under the old name, of the same length."""
    path = active(logs)
    (logs / "edited").write_bytes(path.read_bytes().upper())
    (logs / "edited").rename(path)


def link_segment(logs: Path) -> None:
    path = active(logs)
    path.rename(logs / "moved away")
    path.symlink_to(logs / "moved away")


def segment_becomes_directory(logs: Path) -> None:
    path = active(logs)
    path.unlink()
    path.mkdir()


def segment_becomes_pipe(logs: Path) -> None:
    path = active(logs)
    path.unlink()
    os.mkfifo(path)


def segment_becomes_socket(logs: Path) -> None:
    path = active(logs)
    path.unlink()
    os.mknod(path, 0o140640)


SEGMENT_DAMAGE: list[Damage] = [
    delete_segment,
    move_segment,
    compress_segment,
    empty_segment,
    cut_segment,
    append_to_segment,
    edit_segment,
    link_segment,
    segment_becomes_directory,
    segment_becomes_pipe,
    segment_becomes_socket,
]


def remove(path: Path) -> None:
    """As ``rm -rf``, again when somebody creates something meanwhile."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


def forget_what_was_moved(logs: Path) -> None:
    for left in (*logs.parent.glob("*moved away"), *logs.glob("*moved away")):
        remove(left) if left.is_dir() else left.unlink()


def delete_state(logs: Path) -> None:
    remove(logs / ".profilis-mp")


def delete_stream_state(logs: Path) -> None:
    remove(Path(paths_of(logs).state))


def move_state(logs: Path) -> None:
    (logs / ".profilis-mp").rename(logs / "state moved away")


def delete_logs(logs: Path) -> None:
    remove(logs)


def move_logs(logs: Path) -> None:
    logs.rename(logs.parent / "logs moved away")


def delete_control(logs: Path) -> None:
    control_of(logs).unlink()


def delete_lock(logs: Path) -> None:
    os.unlink(paths_of(logs).lock)


def delete_spools(logs: Path) -> None:
    remove(Path(paths_of(logs).spools))


def delete_all_but_control(logs: Path) -> None:
    content = control_of(logs).read_bytes()
    delete_logs(logs)
    control_of(logs).parent.mkdir(parents=True)
    control_of(logs).write_bytes(content)


DELETIONS: list[Damage] = [
    delete_state,
    delete_stream_state,
    move_state,
    delete_logs,
    move_logs,
    delete_control,
    delete_lock,
    delete_spools,
    delete_all_but_control,
]


def cut_control_to_nothing(logs: Path) -> None:
    os.truncate(control_of(logs), 0)


def cut_control(logs: Path) -> None:
    os.truncate(control_of(logs), 100)


def replace_control_by_garbage(logs: Path) -> None:
    garbage = control_of(logs).with_name("garbage")
    garbage.write_bytes(random.Random(1).randbytes(4096))
    garbage.rename(control_of(logs))


def fill_control_with_ones(logs: Path) -> None:
    overwrite(control_of(logs), 0, b"\xff" * 4096)


def fill_control_with_zeros(logs: Path) -> None:
    overwrite(control_of(logs), 0, bytes(4096))


def fill_control_with_garbage(logs: Path) -> None:
    overwrite(control_of(logs), 0, random.Random(2).randbytes(4096))


def name_another_directory_in_control(logs: Path) -> None:
    """Both slots: 0 bytes committed to ../escaped, so that whoever believes it creates that file."""
    name = b"../escaped"
    for slot in (512, 1024):
        overwrite(control_of(logs), slot + 16, bytes(8))
        overwrite(control_of(logs), slot + 40, struct.pack("=Q", len(name)) + name)


IN_PLACE: list[Damage] = [
    fill_control_with_ones,
    fill_control_with_zeros,
    fill_control_with_garbage,
    name_another_directory_in_control,
]


def control_becomes_directory(logs: Path) -> None:
    control_of(logs).unlink()
    control_of(logs).mkdir()


def control_becomes_symlink(logs: Path) -> None:
    control_of(logs).rename(logs.parent / "control moved away")
    control_of(logs).symlink_to(logs.parent / "control moved away")


def control_becomes_pipe(logs: Path) -> None:
    control_of(logs).unlink()
    os.mkfifo(control_of(logs))


CONTROL_DAMAGE: list[Damage] = [
    cut_control_to_nothing,
    cut_control,
    replace_control_by_garbage,
    *IN_PLACE,
    control_becomes_directory,
    control_becomes_symlink,
    control_becomes_pipe,
]

ALL_DAMAGE = [*SEGMENT_DAMAGE, *DELETIONS, *CONTROL_DAMAGE]


# One process, step by step.


@pytest.mark.parametrize("waiting", [b"waiting\n", b"opaque\n\n"], ids=["line", "opaque"])
@pytest.mark.parametrize("damage", ALL_DAMAGE)
def test_writer_goes_on_at_its_next_flush_with_all_that_waited(
    make: MakeWriter, logs: Path, damage: Damage, waiting: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.write(b"before\n")
    assert writer.flush()
    old = active(logs).name
    writer.write(waiting)
    damage(logs)
    writer.write(b"after\n")
    assert writer.flush(), writer.stats()
    writer.write(b"later\n")
    assert writer.flush()
    found = everything(logs)
    assert found.endswith(waiting + b"after\nlater\n")
    for record in (waiting, b"after\n", b"later\n"):
        assert found.count(record) == 1, record
    assert not (logs.parent / "escaped").exists()
    if damage in SEGMENT_DAMAGE:
        assert active(logs).name > old
        changed = [record for record in caplog.records if "somebody else changed the active segment" in record.message]
        assert [record.levelname for record in changed] == ["WARNING"]
        assert f"{logs}/{old}" in changed[0].message
    assert writer.stats()["dropped"] == {}


@pytest.mark.parametrize("damage", ALL_DAMAGE)
def test_process_that_starts_after_the_damage_goes_on(make: MakeWriter, logs: Path, damage: Damage) -> None:
    elder = make()
    elder.write(b"before\n")
    assert elder.close()
    damage(logs)
    writer = make()
    writer.write(b"after\n")
    assert writer.flush(), writer.stats()
    assert everything(logs).endswith(b"after\n")
    assert everything(logs).count(b"after\n") == 1
    assert not (logs.parent / "escaped").exists()
    assert writer.stats()["spool"] == "file"


@pytest.mark.parametrize("damage", CONTROL_DAMAGE)
def test_damaged_control_file_is_set_aside_and_warned_about_once(
    make: MakeWriter, logs: Path, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.write(b"before\n")
    writer.flush()
    damage(logs)
    for _ in range(3):
        writer.write(b"after\n")
        assert writer.flush(), writer.stats()
    (aside,) = set_aside(logs)
    assert aside.startswith(f"{control_of(logs)}.bad-")
    warnings = [record for record in caplog.records if aside in record.message]
    assert [(record.name, record.levelname) for record in warnings] == [("profilis_mp", "WARNING")]
    assert control_of(logs).stat().st_size == 4096


@pytest.mark.parametrize("damage", [*SEGMENT_DAMAGE, *DELETIONS, cut_control, replace_control_by_garbage])
def test_healing_again_and_again_leaks_no_descriptor(make: MakeWriter, logs: Path, damage: Damage) -> None:
    writer = make()

    def once() -> int:
        writer.write(b"line\n")
        writer.write(b"opaque\n\n")
        assert writer.flush()
        damage(logs)
        forget_what_was_moved(logs)
        writer.write(b"line\n")
        assert writer.flush()
        return open_descriptors(logs.parent)

    counts = [once() for _ in range(6)]
    assert counts[-1] <= counts[1], counts


@pytest.mark.parametrize("damage", [delete_state, move_state, delete_logs, delete_spools])
def test_what_was_only_in_a_spool_survives_its_deletion_while_its_process_lives(
    make: MakeWriter, logs: Path, damage: Damage
) -> None:
    """Nobody calls anything any more: the process's own helper looks whether its spool can still be found."""
    writer = make(flush_interval=0.1, rotate_secs=1e6)
    writer.write(b"flushed\n")
    assert writer.flush()
    writer.write(b"only in the spool\n")
    damage(logs)
    wait_until(lambda: b"only in the spool\n" in everything(logs))
    wait_until(lambda: spools_of(logs))
    assert everything(logs).count(b"only in the spool\n") == 1
    writer.write(b"safe again\n")
    wait_until(lambda: b"safe again\n" in everything(logs))


@pytest.mark.parametrize("damage", [delete_state, move_state, delete_logs, delete_spools])
def test_process_killed_after_its_healing_flush_loses_nothing(logs: Path, damage: Damage) -> None:
    healed, go_on = Signal(), Signal()

    def work() -> None:
        writer = SharedWriter(logs, flush_interval=1e6)
        writer.write(b"before\n")
        writer.flush()
        damage(logs)
        writer.write(b"healing\n")
        assert writer.flush()
        writer.write(b"in the new spool\n")
        healed.send()
        go_on.wait()

    with running(work) as (pid,):
        healed.wait()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    report = recover(logs)
    assert (report.dead_spools, report.failures) == (1, [])
    assert everything(logs).endswith(b"healing\nin the new spool\n")


def test_rotate_notices_the_damage_as_a_flush_does(make: MakeWriter, logs: Path) -> None:
    for damage in (delete_segment, delete_state, cut_control, delete_logs):
        writer = make()
        writer.write(b"before\n")
        writer.flush()
        writer.write(b"waiting\n")
        damage(logs)
        segment = writer.rotate()
        assert segment is not None
        assert Path(segment.path).read_bytes().endswith(b"waiting\n")
        writer.close()


# Two processes, while they write.

ROUND, STOP, PROGRESS, SINCE, SEEN, FAILED = 0, 1, 2, 4, 6, 8


class Board:
    """What parent and workers tell each other, in shared memory."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, 4096)).cast("Q")

    def __getitem__(self, index: int) -> int:
        return self._words[index]

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value


def numbering(logs: Path, worker: int, board: Board) -> Callable[[], None]:
    """Writes numbered events until told to stop; after each round of damage, says from which number on all is well."""

    def work() -> None:
        # A spool with room for all that is emitted during the longest pause between two tries.
        writer = SharedWriter(
            logs, rotate_bytes=3000, buffer_size=400, spool_bytes=1 << 24, flush_interval=1e6, lock_timeout=30.0
        )
        number = 0
        while not board[STOP]:
            if board[ROUND] != board[SEEN + worker]:
                board[SINCE + worker] = number
                board[SEEN + worker] = board[ROUND]
            writer.write(b'{"worker":%d,"seq":%d}\n' % (worker, number))
            number += 1
            board[PROGRESS + worker] = number
        assert any(writer.flush() for _ in range(5)), writer.stats()
        assert writer.stats()["dropped"] == {}
        assert writer.close()

    def work_or_say_so() -> None:
        try:
            work()
        except BaseException:
            board[FAILED + worker] = 1
            raise

    return work_or_say_so


def holding_the_lock(damage: Damage) -> Damage:
    """A mapped file that is cut while somebody is at it is a SIGBUS, which nothing in a process can prevent."""

    def damage_in_between(logs: Path) -> None:
        lock = KeptLock(paths_of(logs).lock, 0o600)
        lock.acquire(30.0)
        damage(logs)
        lock.close()

    return damage_in_between


WHILE_WRITING = [
    delete_segment,
    move_segment,
    empty_segment,
    cut_segment,
    append_to_segment,
    edit_segment,
    link_segment,
    segment_becomes_directory,
    delete_state,
    move_state,
    delete_logs,
    delete_control,
    delete_spools,
    replace_control_by_garbage,
    cut_control_to_nothing,
    cut_control,
    fill_control_with_ones,
    fill_control_with_garbage,
]
UNDER_THE_LOCK = {cut_control_to_nothing, cut_control, *IN_PLACE}


def do(damage: Damage, logs: Path) -> None:
    """What rotates meanwhile is looked for again."""
    for _ in range(1000):
        try:
            (holding_the_lock(damage) if damage in UNDER_THE_LOCK else damage)(logs)
            return
        except (FileNotFoundError, FileExistsError, IndexError):
            pass
    raise AssertionError("the damage could not be done")


@pytest.mark.parametrize("damage", WHILE_WRITING)
def test_two_writing_processes_lose_nothing_emitted_after_the_damage(logs: Path, damage: Damage) -> None:
    board = Board()

    def failed() -> int:
        return board[FAILED] or board[FAILED + 1]

    def wait_for_progress() -> None:
        start = [board[PROGRESS], board[PROGRESS + 1]]
        wait_until(lambda: all(board[PROGRESS + n] > start[n] + 300 for n in (0, 1)) or failed(), what="progress")

    with running(numbering(logs, 0, board), numbering(logs, 1, board)) as pids:
        for number in range(1, 4):
            wait_for_progress()
            assert not failed()
            do(damage, logs)
            board[ROUND] = number
            wait_until(lambda number=number: board[SEEN] == board[SEEN + 1] == number or failed(), what="notice")
            forget_what_was_moved(logs)
        wait_for_progress()
        board[STOP] = 1
        assert [reap(pid) for pid in pids] == [0, 0]
    assert not spools_of(logs)
    numbers: dict[int, list[int]] = {0: [], 1: []}
    for line in lines_in(logs):
        try:
            event = json.loads(line)
            numbers[event["worker"]].append(event["seq"])
        except (ValueError, TypeError, KeyError):
            assert damage in (cut_segment, append_to_segment, edit_segment, delete_state), line
    for worker, seen in numbers.items():
        since = board[SINCE + worker]
        assert [number for number in seen if number >= since] == list(range(since, board[PROGRESS + worker]))


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_damage_is_survived_by_two_writers(make: MakeWriter, logs: Path, seed: int) -> None:
    dice = random.Random(seed)
    writers = [make(rotate_bytes=200), make(rotate_bytes=300)]
    damages = [*SEGMENT_DAMAGE[:8], *DELETIONS, cut_control, cut_control_to_nothing, replace_control_by_garbage]
    log: list[str] = []
    written: list[bytes] = []
    for number in range(60):
        writer = dice.choice(writers)
        record = b"%d%s" % (number, dice.choice([b"\n", b" opaque "]))
        writer.write(record)
        written.append(record)
        if dice.random() < 0.5:
            assert writer.flush(), (seed, number, log, writer.stats())
        if dice.random() < 0.3 and segments_of(str(logs)):
            damage = dice.choice(damages)
            log.append(damage.__name__)
            try:
                damage(logs)
            except OSError:
                log[-1] += ": nothing there"
            forget_what_was_moved(logs)
            for other in writers:
                assert other.flush(), (seed, number, log, other.stats())
            written = []
    for writer in writers:
        assert writer.close(), (seed, log, writer.stats())
    found = everything(logs)
    for record in written:
        assert found.count(record) >= 1, (seed, record, log)


# In the middle of a flush.

IN_THE_MIDDLE = [delete_segment, append_to_segment, delete_state, delete_logs, delete_control, delete_lock]


@pytest.mark.sweep
@pytest.mark.parametrize("damage", IN_THE_MIDDLE)
def test_damage_at_any_step_of_a_flush_costs_nothing_emitted_after_it(tmp_path: Path, damage: Damage) -> None:
    """The spool is filled right after the damage, so that a pause before the next try would drop events, too."""
    waiting = [b"waiting %080d\n" % number for number in range(3)]
    after = [b"after %0190d\n" % number for number in range(8)]
    for step in itertools.count():
        logs = tmp_path / f"{step}"
        writer = SharedWriter(
            logs, rotate_bytes=240, buffer_size=1000, spool_bytes=1000, flush_interval=1e6, lock_timeout=0.0
        )
        writer.write(b"before\n")
        assert writer.flush()
        for record in waiting:
            writer.write(record)
        reached = []

        def look(number: int, step: int = step, logs: Path = logs, reached: list[bool] = reached) -> None:
            if number == step:
                reached.append(True)
                damage(logs)

        _each_step(writer.flush, look)
        for record in after:
            writer.write(record)
        assert writer.close() or writer.close(), (step, writer.stats())
        assert writer.stats()["dropped"] == {}, step
        lines = lines_in(logs)
        assert [line for line in lines if line.startswith(b"after")] == after, step
        if damage not in (delete_segment, delete_logs):
            assert [line for line in lines if line.startswith(b"waiting")] == waiting, step
        shutil.rmtree(logs)
        if not reached:
            break
    assert step > 100


# Spools.


def garble_header(path: Path) -> None:
    overwrite(path, 0, b"\xee" * 4096)


def garble_all(path: Path) -> None:
    overwrite(path, 0, random.Random(3).randbytes(path.stat().st_size))


def garble_tail(path: Path) -> None:
    overwrite(path, 64, struct.pack("=Q", 1 << 60))


def garble_head(path: Path) -> None:
    overwrite(path, 128, struct.pack("=Q", (1 << 64) - 1))


def garble_limits(path: Path) -> None:
    overwrite(path, 32, b"\xff" * 32)


def garble_size_limit(path: Path) -> None:
    overwrite(path, 32, struct.pack("=Q", 1 << 63))


def garble_mode(path: Path) -> None:
    overwrite(path, 48, struct.pack("=Q", 0o004))


GARBLED = [garble_header, garble_all, garble_tail, garble_head]


@pytest.mark.parametrize("garble", GARBLED)
def test_writer_whose_own_spool_is_garbled_sets_it_aside_and_goes_on(
    make: MakeWriter, logs: Path, garble: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    writer = make()
    writer.write(b"before\n")
    writer.flush()
    writer.write(b"garbled\n")
    (path,) = spools_of(logs)
    garble(path)
    writer.flush()
    for number in range(3):
        writer.write(b"after %d\n" % number)
        assert writer.flush()
    assert everything(logs) == b"before\nafter 0\nafter 1\nafter 2\n"
    (aside,) = set_aside(logs)
    assert aside.startswith(f"{path}.bad-")
    assert sum(aside in record.message for record in caplog.records) == 1
    assert spools_of(logs) != [path]
    assert writer.close()
    assert spools_of(logs) == []


@pytest.mark.parametrize("garble", GARBLED)
@pytest.mark.parametrize("call", ["rotate", "close", "write"])
def test_any_call_of_a_writer_whose_spool_is_garbled_returns(logs: Path, garble: Damage, call: str) -> None:
    """In a child: one that hangs would hang with the directory lock."""

    def work() -> None:
        writer = SharedWriter(logs, flush_interval=1e6, buffer_size=100, spool_bytes=10_000)
        writer.write(b"before\n")
        writer.flush()
        writer.write(b"garbled\n")
        garble(spools_of(logs)[0])
        if call == "rotate":
            writer.rotate()
        elif call == "close":
            writer.close()
        else:
            for _ in range(50):
                writer.write(b"more\n")
        assert any(writer.flush() for _ in range(3))
        writer.write(b"after\n")
        assert writer.flush()

    assert reap(fork(work), timeout_s=5.0) == 0
    assert everything(logs).endswith(b"after\n")


@pytest.mark.parametrize("garble", [*GARBLED, garble_limits])
def test_another_living_processs_garbled_spool_is_set_aside_and_its_owner_goes_on(logs: Path, garble: Damage) -> None:
    written, go_on = Signal(), Signal()

    def work() -> None:
        writer = SharedWriter(logs, flush_interval=1e6)
        writer.write(b"before\n")
        writer.flush()
        writer.write(b"garbled\n")
        written.send()
        go_on.wait()
        writer.flush()
        writer.write(b"after\n")
        assert writer.flush()
        assert writer.close()

    with running(work) as (pid,):
        written.wait()
        (path,) = spools_of(logs)
        garble(path)
        report = recover(logs)
        assert (report.set_aside, report.failures) == ([str(path)], [])
        assert spools_of(logs) == []
        go_on.send()
        assert reap(pid) == 0
    assert everything(logs).endswith(b"after\n")


EMPTY = struct.pack("=Q", 4096)


def write_and_die(logs: Path, record: bytes) -> None:
    writer = SharedWriter(logs, flush_interval=1e6)
    writer.write(record)
    os.kill(os.getpid(), signal.SIGKILL)


def leave_dead_spools(logs: Path, *records: bytes) -> list[Path]:
    """One process for each record, dead before its flush; their spools, in the same order."""
    spools: list[Path] = []
    for record in records:
        known = spools_of(logs)
        assert reap(fork(lambda record=record: write_and_die(logs, record))) == -signal.SIGKILL
        spools += [path for path in spools_of(logs) if path not in known and path.read_bytes()[64:72] != EMPTY]
    assert len(spools) == len(records)
    return spools


@pytest.mark.parametrize("garble", [*GARBLED, garble_limits, garble_size_limit, garble_mode])
def test_dead_processs_garbled_spool_is_set_aside_and_the_others_are_drained(logs: Path, garble: Damage) -> None:
    records = [b"record of %d\n" % number for number in range(5)]
    spools = leave_dead_spools(logs, *records)
    # The first one that is looked at, so that all the others come after it.
    bad = min(spools)
    garble(bad)
    report = recover(logs)
    assert (report.dead_spools, report.set_aside, report.failures) == (4, [str(bad)], [])
    assert sorted(lines_in(logs)) == sorted(record for path, record in zip(spools, records, strict=True) if path != bad)
    assert set_aside(logs)
    assert recover(logs).set_aside == []


@pytest.mark.parametrize("length", [1, 100, 1 << 20, 1 << 61, 1 << 63, (1 << 64) - 1])
def test_frame_of_a_dead_processs_record_that_is_garbled_harms_nobody_else(logs: Path, length: int) -> None:
    """The lengths of opaque records stand in the data, where no check of the header sees them."""
    records = [b"line of %d\n" % number for number in range(4)]
    leave_dead_spools(logs, *records)
    (framed,) = leave_dead_spools(logs, b"opaque")
    assert framed.read_bytes()[8:9] == b"\1"
    overwrite(framed, 4096, struct.pack("=Q", length))
    report = recover(logs)
    assert report.failures == []
    for record in records:
        assert everything(logs).count(record) == 1
    assert len(everything(logs)) <= sum(map(len, records)) + (len(b"opaque") if length > 6 else length) + 8
    assert [path for path in spools_of(logs) if path == framed] == []
    writer = SharedWriter(logs, flush_interval=1e6)
    writer.write(b"after\n")
    assert writer.close()
    assert everything(logs).endswith(b"after\n")


def test_helper_sets_a_garbled_spool_aside_and_helps_the_others(make: MakeWriter, logs: Path) -> None:
    records = [b"record of %d\n" % number for number in range(4)]
    spools = leave_dead_spools(logs, *records)
    bad = min(spools)
    garble_header(bad)
    writer = make(flush_interval=0.02)
    writer.write(b"living\n")
    wait_until(lambda: len(lines_in(logs)) == 4)
    wait_until(lambda: set_aside(logs))
    assert writer.close()


def test_helper_is_not_stopped_by_a_garbled_frame(make: MakeWriter, logs: Path) -> None:
    leave_dead_spools(logs, *(b"record of %d\n" % number for number in range(6)))
    (framed,) = leave_dead_spools(logs, b"opaque")
    assert framed.read_bytes()[8:9] == b"\1"
    first = framed.with_name(f"{1:016x}")
    framed.rename(first)
    overwrite(first, 4096, b"\xff" * 8)
    make(flush_interval=0.02).write(b"living\n")
    wait_until(lambda: len(lines_in(logs)) >= 7, timeout_s=5.0, what="the spools after the garbled one")


@pytest.mark.parametrize("length", [0, 100, 4096, 5000])
def test_dead_processs_spool_that_was_cut_is_set_aside(logs: Path, length: int) -> None:
    first, second = leave_dead_spools(logs, b"x" * 2000 + b"\n", b"second\n")
    os.truncate(first, length)
    report = recover(logs)
    assert (report.set_aside, report.dead_spools, report.failures) == ([str(first)], 1, [])
    assert everything(logs) == b"second\n"
    assert not second.exists()


def test_strangers_among_the_spools_are_left_alone(logs: Path, tmp_path: Path) -> None:
    (spool,) = leave_dead_spools(logs, b"line\n")
    spools = spool.parent
    (spools / "README").write_text("not a spool")
    (spools / "0123456789abcdef.txt").write_text("not a spool")
    (spools / f"{1:016x}").symlink_to(tmp_path / "precious")
    (tmp_path / "precious").write_bytes(b"precious")
    (spools / f"{2:016x}").mkdir()
    report = recover(logs)
    assert report.dead_spools == 1
    assert everything(logs) == b"line\n"
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (spools / "README").exists()
    assert (spools / "0123456789abcdef.txt").exists()
    writer = SharedWriter(logs, flush_interval=1e6)
    writer.write(b"after\n")
    assert writer.close()
    assert everything(logs) == b"line\nafter\n"
