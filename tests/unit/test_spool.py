"""One spool: its layout, its cursors, where batches are cut, whose it is, and what is not taken for one."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import fork, reap, running, wait_until
from raw_files import open_descriptors, overwrite, set_word, word

from profilis_mp.sharedlog.lock import try_lock
from profilis_mp.sharedlog.spool import (
    FRAME_BYTES,
    HEADER_BYTES,
    UNFINISHED,
    BadSpool,
    Limits,
    Spool,
    spool_id_of,
)

LIMITS = Limits(rotate_bytes=1000, rotate_ns=3600 * 10**9, file_mode=0o640, local_time=1)
LINES = [b"one\n", b"three\n", b"\n", b"eleven......\n"]
# Byte offsets, as the format page gives them.
FRAMING, PID, CREATED, LIMITS_AT, TAIL_AT, HEAD_AT, FLUSH_TO_AT, EXPECTED_END_AT = 8, 16, 24, 32, 64, 128, 136, 144


opened: list[Spool] = []


@pytest.fixture(autouse=True)
def _close_what_was_opened() -> Iterator[None]:
    yield
    while opened:
        spool = opened.pop()
        try:
            _ = spool.words.nbytes  # not its content: the file may have been cut
        except ValueError:
            continue  # closed by the test
        spool.close()


def create(directory: Path, *records: bytes, capacity: int = 4096, framed: bool = False) -> Spool:
    spool = Spool.create(str(directory), capacity, LIMITS, framed=framed)
    opened.append(spool)
    for record in records:
        assert spool.append(record)
    return spool


def view_of(path: Path | Spool) -> Spool:
    spool = Spool.open(str(path_of(path) if isinstance(path, Spool) else path))
    opened.append(spool)
    return spool


def path_of(spool: Spool) -> Path:
    assert spool.path is not None
    return Path(spool.path)


# Layout.


def test_words_are_where_the_format_says(tmp_path: Path) -> None:
    before = time.time_ns()
    path = path_of(create(tmp_path, b"line\n"))
    content = path.read_bytes()
    assert len(content) == 4096 + 4096
    assert content[:8] == b"pmpspl\0\1"
    assert word(path, FRAMING) == 0
    assert word(path, PID) == os.getpid()
    assert before <= word(path, CREATED) <= time.time_ns()
    assert struct.unpack_from("=4Q", content, LIMITS_AT) == LIMITS
    assert [word(path, at) for at in (TAIL_AT, HEAD_AT, FLUSH_TO_AT, EXPECTED_END_AT)] == [4101, 4096, 4096, 0]
    assert content[4096:4101] == b"line\n"
    assert not any(content[160:4096])
    assert not any(content[4101:])


def test_framed_record_is_preceded_by_its_length_in_one_native_word(tmp_path: Path) -> None:
    path = path_of(create(tmp_path, b"opaque", b"\n\n", framed=True))
    assert word(path, FRAMING) == 1
    assert path.read_bytes()[4096 : word(path, TAIL_AT)] == struct.pack("=Q6sQ2s", 6, b"opaque", 2, b"\n\n").replace(
        b"opaque\0\0", b"opaque"
    )


def test_file_is_private_named_by_its_id_and_preallocated(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        spool = create(tmp_path, capacity=1 << 20)
    finally:
        os.umask(old)
    (path,) = tmp_path.iterdir()
    assert path.name == f"{spool.id:016x}"
    assert spool_id_of(str(path)) == spool.id != 0
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == HEADER_BYTES + (1 << 20)
    # A store into a page without a block, on a full disk, is a SIGBUS.
    assert status.st_blocks * 512 >= status.st_size


def test_ids_differ_even_in_forks_of_one_process(tmp_path: Path) -> None:
    with running(*[lambda: (create(tmp_path), signal.pause())] * 4):
        create(tmp_path)
        wait_until(lambda: len([name for name in os.listdir(tmp_path) if not name.endswith(UNFINISHED)]) == 5)


def test_spool_that_cannot_be_allocated_leaves_nothing_behind(tmp_path: Path) -> None:
    before = open_descriptors(tmp_path)
    with pytest.raises(OSError, match=r"\[Errno"):
        create(tmp_path, capacity=1 << 55)
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors(tmp_path) <= before


def test_spool_in_a_directory_that_is_gone_is_an_error_not_an_endless_retry(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        create(tmp_path / "gone")


# Cursors.


@pytest.mark.parametrize("framed", [False, True])
def test_append_moves_the_tail_by_record_and_frame(tmp_path: Path, framed: bool) -> None:
    spool = create(tmp_path, framed=framed)
    frame = FRAME_BYTES if framed else 0
    assert (spool.tail, spool.head, spool.unflushed, spool.frame_bytes) == (4096, 4096, 0, frame)
    expected = 4096
    for record in LINES:
        assert spool.append(record)
        expected += frame + len(record)
        assert (spool.tail, spool.head, spool.unflushed) == (expected, 4096, expected - 4096)


@pytest.mark.parametrize("framed", [False, True])
def test_record_fits_to_the_last_byte_and_not_one_further(tmp_path: Path, framed: bool) -> None:
    frame = FRAME_BYTES if framed else 0
    spool = create(tmp_path, capacity=100, framed=framed)
    assert spool.takes(100 - frame)
    assert not spool.takes(101 - frame)
    before = path_of(spool).read_bytes()
    assert not spool.append(b"x" * (101 - frame))
    assert path_of(spool).read_bytes() == before
    assert spool.append(b"x" * (100 - frame))
    assert spool.tail == spool.size
    assert not spool.append(b"y")
    spool.check()


@pytest.mark.parametrize("framed", [False, True])
def test_batch_is_what_lies_between_head_and_flush_to_without_the_frame(tmp_path: Path, framed: bool) -> None:
    spool = create(tmp_path, *LINES, framed=framed)
    batches = []
    while spool.unflushed:
        spool.flush_to = spool.next_batch_end(1 << 30)
        batches.append(bytes(spool.batch))
        spool.head = spool.flush_to
    assert batches == (LINES if framed else [b"".join(LINES)])


def test_another_view_sees_what_the_owner_stores(tmp_path: Path) -> None:
    spool = create(tmp_path, b"one\n")
    view = view_of(spool)
    assert (view.id, view.size, view.framed) == (spool.id, spool.size, False)
    assert view.limits == LIMITS
    spool.append(b"two\n")
    view.flush_to = view.next_batch_end(100)
    view.expected_end = 8
    assert bytes(view.batch) == b"one\ntwo\n"
    view.head = view.flush_to
    assert (spool.unflushed, spool.flush_to, spool.expected_end) == (0, 4104, 8)


def stores_of(work: Callable[[], None], look: Callable[[], Any]) -> list[Any]:
    """What ``look`` gives before each line that ``work`` runs, and after the last."""
    seen: list[Any] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_code.co_filename.endswith("spool.py"):
            seen.append(look())
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(previous)
    return [*seen, look()]


def test_reset_stores_the_tail_first_so_that_nothing_becomes_unflushed_again(tmp_path: Path) -> None:
    """I6."""
    spool = create(tmp_path, *LINES)
    end = spool.head = spool.tail
    view = view_of(spool)

    def positions() -> tuple[int, int]:
        assert view.unflushed == 0
        view.check()
        return view.tail, view.head

    seen = stores_of(spool.reset, positions)
    assert list(dict.fromkeys(seen)) == [(end, end), (4096, end), (4096, 4096)]


def test_append_stores_the_tail_last(tmp_path: Path) -> None:
    """I3: who sees the new tail finds the record complete."""
    spool = create(tmp_path, b"elder\n", framed=True)
    view = view_of(spool)
    start = view.tail
    record = b"younger\n" * 100

    def look() -> bool:
        moved = view.tail != start
        if moved:
            assert view.bytes[start : view.tail] == struct.pack("=Q", len(record)) + record
        return moved

    seen = stores_of(lambda: spool.append(record), look)
    assert seen[0] is False
    assert seen[-1] is True


# Where a batch is cut.


@pytest.mark.parametrize(
    ("room", "cut"),
    [
        (-5, 4),  # another writer's limit has let the segment grow beyond ours
        (0, 4),  # one record alone may have more than the room
        (1, 4),
        (3, 4),
        (4, 4),
        (5, 4),
        (9, 4),
        (10, 10),
        (11, 11),
        (12, 11),
        (23, 11),
        (24, 24),
        (1 << 40, 24),
    ],
)
def test_batch_of_lines_is_cut_at_the_last_newline_within_the_room(tmp_path: Path, room: int, cut: int) -> None:
    spool = create(tmp_path, *LINES)
    assert spool.next_batch_end(room) - spool.head == cut


def test_record_larger_than_the_room_is_cut_behind_its_own_newline(tmp_path: Path) -> None:
    long = b"x" * 200_000 + b"\n"
    spool = create(tmp_path, long, b"next\n", capacity=300_000)
    for room in (0, 1, 65_535, 65_536, 65_537, 199_999, 200_000):
        assert spool.next_batch_end(room) - spool.head == len(long)
    assert spool.next_batch_end(200_001) - spool.head == len(long)
    assert spool.next_batch_end(200_006) - spool.head == len(long) + 5


@pytest.mark.parametrize("room", [-1, 0, 5, 6, 7, 1000])
def test_each_framed_record_is_a_batch_of_its_own(tmp_path: Path, room: int) -> None:
    spool = create(tmp_path, b"a\nb\nc\n", b"\n", b"x" * 50, framed=True)
    lengths = []
    while spool.unflushed:
        end = spool.next_batch_end(room)
        lengths.append(end - spool.head - FRAME_BYTES)
        spool.head = end
    assert lengths == [6, 1, 50]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=30).map(lambda body: body.replace(b"\n", b"") + b"\n"), min_size=1), st.data())
def test_batches_hold_whole_lines_and_as_many_as_fit(lines: list[bytes], data: st.DataObject) -> None:
    spool = Spool.in_memory(1 << 16, framed=False)
    for line in lines:
        assert spool.append(line)
    left = list(lines)
    while spool.unflushed:
        room = data.draw(st.integers(-1, 100))
        end = spool.next_batch_end(room)
        taken = [left.pop(0)]
        while left and sum(map(len, taken)) + len(left[0]) <= room:
            taken.append(left.pop(0))
        spool.flush_to = end
        assert bytes(spool.batch) == b"".join(taken)
        spool.head = end
    assert not left
    spool.close()


# Whose it is.


def test_owner_is_dead_only_after_its_death(tmp_path: Path) -> None:
    def own() -> None:
        create(tmp_path / "spools", b"line\n")
        signal.pause()

    (tmp_path / "spools").mkdir()
    with running(own) as (pid,):
        wait_until(lambda: any(spool_id_of(name) for name in os.listdir(tmp_path / "spools")))
        (path,) = (tmp_path / "spools").iterdir()
        view = view_of(path)
        assert not view.owner_is_dead()
        os.kill(pid, signal.SIGSTOP)
        assert not view.owner_is_dead()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert view.owner_is_dead()
        assert view.owner_is_dead(), "the view that found it keeps it"
        second = view_of(path)
        assert not second.owner_is_dead(), "one process drains"
        view.close()
        assert second.owner_is_dead()


def test_view_in_the_owners_own_process_does_not_think_it_dead(tmp_path: Path) -> None:
    spool = create(tmp_path)
    view = view_of(spool)
    assert not view.owner_is_dead()
    view.close()
    other = view_of(spool)
    assert not other.owner_is_dead(), "closing a view does not give the owner's lock away"
    spool.close()
    assert other.owner_is_dead()


def test_close_in_a_forked_child_leaves_the_owner_alive(tmp_path: Path) -> None:
    spool = create(tmp_path, b"line\n")
    assert reap(fork(spool.close)) == 0
    assert not view_of(spool).owner_is_dead()
    assert spool.append(b"more\n")


def test_owner_is_not_outlived_by_a_program_it_starts(tmp_path: Path) -> None:
    """The descriptor does not leak over exec, or the lock would live as long as that program."""
    out, into = os.pipe()

    def own() -> None:
        create(tmp_path, b"line\n")
        if os.fork() == 0:
            os.dup2(out, 0)
            os.execvp("cat", ["cat"])

    assert reap(fork(own)) == 0
    os.close(out)
    (path,) = tmp_path.iterdir()
    view = view_of(path)
    try:
        wait_until(view.owner_is_dead)
    finally:
        os.close(into)


def test_spool_without_its_name_or_its_length_is_not_in_place(tmp_path: Path) -> None:
    spool, shorter, replaced = create(tmp_path), create(tmp_path), create(tmp_path)
    assert spool.is_in_place()
    path_of(spool).rename(tmp_path / "elsewhere")
    assert not spool.is_in_place()
    (tmp_path / "elsewhere").rename(path_of(spool))
    assert spool.is_in_place()
    spool.unlink()
    spool.unlink()
    assert not spool.is_in_place()
    os.truncate(path_of(shorter), shorter.size - 1)
    assert not shorter.is_in_place()
    content = path_of(replaced).read_bytes()
    path_of(replaced).unlink()
    path_of(replaced).write_bytes(content)
    assert not replaced.is_in_place()


def test_spool_in_memory_works_and_is_nowhere() -> None:
    spool = Spool.in_memory(100, framed=False)
    assert spool.append(b"line\n")
    assert spool.path is None
    assert not spool.is_in_place()
    spool.check()
    spool.flush_to = spool.next_batch_end(100)
    assert bytes(spool.batch) == b"line\n"
    spool.unlink()
    spool.close()


# Being created.


def test_unfinished_spool_is_removed_only_when_nobody_is_at_it(tmp_path: Path) -> None:
    path = tmp_path / f"{7:016x}{UNFINISHED}"
    path.touch()
    out, into = os.pipe()

    def creator() -> None:
        assert try_lock(os.open(path, os.O_RDWR))
        os.write(into, b"locked")
        signal.pause()

    with running(creator) as (pid,):
        assert select.select([out], [], [], 30.0)[0], "the creator never got there"
        Spool.remove_unfinished(str(path))
        assert path.exists()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        Spool.remove_unfinished(str(path))
        assert not path.exists()
    Spool.remove_unfinished(str(path))


def test_unfinished_spool_that_is_a_symlink_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.touch()
    link = tmp_path / f"{7:016x}{UNFINISHED}"
    link.symlink_to(target)
    Spool.remove_unfinished(str(link))
    assert target.exists()


def test_spool_taken_for_a_dead_ones_remains_while_it_is_created_is_created_again(tmp_path: Path) -> None:
    """Somebody who cleans up all the time may lock and unlink a spool between its creation and its own lock."""
    stop = threading.Event()

    def clean_up() -> None:
        while not stop.is_set():
            for name in os.listdir(tmp_path):
                if name.endswith(UNFINISHED):
                    Spool.remove_unfinished(f"{tmp_path}/{name}")

    cleaner = threading.Thread(target=clean_up)
    cleaner.start()
    try:
        spools = [create(tmp_path, b"line\n") for _ in range(60)]
    finally:
        stop.set()
        cleaner.join()
    for spool in spools:
        assert spool.is_in_place()
        assert not view_of(spool).owner_is_dead()
        spool.close()


# What is no spool.


@pytest.mark.parametrize("length", [0, 1, 100, 4095, 4096])
def test_file_too_short_for_a_record_is_no_spool(tmp_path: Path, length: int) -> None:
    path = path_of(create(tmp_path))
    before = open_descriptors(tmp_path)
    os.truncate(path, length)
    with pytest.raises(BadSpool, match=str(length)):
        Spool.open(str(path))
    assert open_descriptors(tmp_path) <= before


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 0),
        (0, (1 << 64) - 1),
        (FRAMING, 2),
        (TAIL_AT, 4095),
        (TAIL_AT, 0),
        (TAIL_AT, 8193),
        (TAIL_AT, (1 << 64) - 1),
        (HEAD_AT, 4095),
        (HEAD_AT, 8193),
        (FLUSH_TO_AT, 0),
        (FLUSH_TO_AT, 8193),
        (EXPECTED_END_AT, 1 << 62),
        (LIMITS_AT, 0),
        (LIMITS_AT, 1 << 63),
        (LIMITS_AT + 8, 0),
        (LIMITS_AT + 16, 0o1000),
        (LIMITS_AT + 16, 0),
        (LIMITS_AT + 16, 0o044),
        (LIMITS_AT + 24, 2),
    ],
)
def test_word_that_no_spool_can_hold_is_found(tmp_path: Path, offset: int, value: int) -> None:
    path = path_of(create(tmp_path, b"line\n"))
    before, content = open_descriptors(tmp_path), path.read_bytes()
    set_word(path, offset, value)
    with pytest.raises(BadSpool):
        Spool.open(str(path))
    assert path.read_bytes() == content[:offset] + struct.pack("=Q", value) + content[offset + 8 :]
    assert open_descriptors(tmp_path) <= before


def test_spool_of_another_version_is_no_spool(tmp_path: Path) -> None:
    path = path_of(create(tmp_path))
    overwrite(path, 7, b"\2")
    with pytest.raises(BadSpool):
        Spool.open(str(path))


def test_owner_notices_what_was_written_over_its_words(tmp_path: Path) -> None:
    spool = create(tmp_path, b"line\n")
    spool.check()
    overwrite(path_of(spool), 0, b"\xee" * 4096)
    with pytest.raises(BadSpool):
        spool.check()


WORDS = st.integers(0, (1 << 64) - 1) | st.integers(4000, 4300) | st.sampled_from([0, 1, 1 << 62, 1 << 63])


def try_to_drain(path: Path) -> None:
    """As a helper would; a spool that can be trusted stays within its bounds to the end, another is refused."""
    try:
        spool = Spool.open(str(path))
    except BadSpool:
        return
    try:
        assert spool.head >= HEADER_BYTES
        while spool.unflushed:
            end = spool.next_batch_end(50)
            assert spool.head < end <= spool.tail <= spool.size
            spool.flush_to = end
            assert len(spool.batch) == end - spool.head - spool.frame_bytes
            spool.head = end
    except BadSpool:
        pass
    finally:
        spool.close()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200), st.integers(0, 9000), st.booleans())
def test_random_file_is_a_bad_spool_at_the_worst(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int, with_magic: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random-spool-{os.getpid()}"
    head = b"pmpspl\0\1" if with_magic else b""
    path.write_bytes((head + content * (1 + length // max(1, len(content))))[:length])
    try_to_drain(path)


@pytest.mark.parametrize("framed", [False, True])
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damage=st.dictionaries(st.integers(0, 20) | st.integers(512, 516), WORDS, min_size=1, max_size=3))
def test_spool_with_random_words_in_it_is_drained_within_its_bounds_or_refused(
    tmp_path_factory: pytest.TempPathFactory, framed: bool, damage: dict[int, int]
) -> None:
    directory = tmp_path_factory.getbasetemp() / f"words-{framed}-{os.getpid()}"
    directory.mkdir(exist_ok=True)
    spool = create(directory, b"opaque", b"x" * 30, b"last\n", framed=framed)
    for position, value in damage.items():
        set_word(path_of(spool), 8 * position, value)
    try_to_drain(path_of(spool))
    path_of(spool).unlink()
    spool.close()


@pytest.mark.parametrize("length", [0x2000, 1 << 62, 1 << 63, (1 << 64) - 1, (1 << 64) - 4104])
def test_framed_record_that_claims_to_be_longer_than_the_spool_is_refused(tmp_path: Path, length: int) -> None:
    spool = create(tmp_path, b"opaque", framed=True)
    set_word(path_of(spool), HEADER_BYTES, length)
    with pytest.raises(BadSpool):
        spool.next_batch_end(1000)


def test_symlink_in_the_place_of_a_spool_is_not_followed(tmp_path: Path) -> None:
    spool = create(tmp_path, b"line\n")
    link = tmp_path / f"{5:016x}"
    link.symlink_to(path_of(spool))
    with pytest.raises(OSError, match="symbolic links") as caught:
        Spool.open(str(link))
    assert caught.value.errno == errno.ELOOP


def test_directory_pipe_and_nothing_are_no_spools(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = open_descriptors(tmp_path)
    with pytest.raises(IsADirectoryError):
        Spool.open(str(tmp_path / "directory"))
    with pytest.raises(BadSpool):
        Spool.open(str(tmp_path / "pipe"))
    with pytest.raises(FileNotFoundError):
        Spool.open(str(tmp_path / "nothing"))
    assert open_descriptors(tmp_path) <= before


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lock",
        "9a3c51f00d7e42b",
        "9a3c51f00d7e42b12",
        "9a3c51f00d7e42bg",
        "9a3c51f00d7e42b1.new",
        "9a3c51f00d7e42b1.bad-1795398825000000000",
        "0000000000000000",
        "0x3c51f00d7e42b1",
        "+a3c51f00d7e42b1",
        " a3c51f00d7e42b1",
        "9_3c51f00d7e42b1",
        "9A3C51F00D7E42B1",
        "\u0661" * 16,
    ],
)
def test_name_that_no_spool_has_is_no_spools(name: str) -> None:
    """Its id goes into ``intent`` and from there into a path, which must lead back to the same file."""
    assert spool_id_of(f"spool/{name}") is None


def test_id_is_read_from_the_name() -> None:
    assert spool_id_of("logs/.profilis-mp/x/spool/9a3c51f00d7e42b1") == 0x9A3C51F00D7E42B1
