"""The control file: its layout, that it changes in one store, and that nothing but a control file is taken for one."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import open_descriptors, overwrite, set_word, word

from profilis_mp.sharedlog.control import CONTROL_BYTES, BadControl, Control
from profilis_mp.sharedlog.names import SegmentName, SegmentNames

NAMES = SegmentNames("profilis-{timestamp}.jsonl")
SECOND = 10**9
MOMENT = 1_735_300_800 * SECOND
FIRST = NAMES.render(MOMENT, 0)
SECOND_NAME = NAMES.render(MOMENT + 60 * SECOND, 3)
SECOND_WITHOUT_TEXT = SECOND_NAME._replace(text="")
# Byte offsets, as the format page gives them.
SELECTOR, INTENT, HEARTBEAT, SLOTS = 8, 16, 24, (512, 1024)
GENERATION, OPENED, COMMITTED, STAMP, INDEX, LENGTH, NAME = range(0, 56, 8)


def create(path: Path, *, generation: int = 1, elder: SegmentName | None = None) -> Control:
    Control.create(str(path), 0o600, generation, elder)
    return Control(str(path))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control"


# Layout.


def test_fresh_file_is_one_page_with_an_unnamed_generation(path: Path) -> None:
    old = os.umask(0)
    try:
        control = create(path, generation=7, elder=SECOND_NAME)
    finally:
        os.umask(old)
    content = path.read_bytes()
    assert len(content) == CONTROL_BYTES == 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert content[:8] == b"pmpctl\0\1"
    slot = struct.unpack_from("=6Q", content, SLOTS[0])
    assert slot == (7, 0, 0, SECOND_NAME.stamp_ns, 3, 0)
    assert not any(content[8:512] + content[560:])
    assert (control.generation, control.committed, control.intent, control.is_named) == (7, 0, 0, False)
    assert control.name == ""
    assert control.youngest == SECOND_WITHOUT_TEXT
    assert [entry.name for entry in path.parent.iterdir()] == ["control"]
    control.close()


def test_stream_without_any_segment_has_no_youngest(path: Path) -> None:
    control = create(path)
    assert control.youngest is None
    control.close()


def test_words_of_a_slot_are_where_the_format_says(path: Path) -> None:
    control = create(path)
    control.advance(2, MOMENT + 5, FIRST)
    control.committed = 4711
    control.intent = 0x9A3C51F00D7E42B1
    control.heartbeat_ns = 99
    assert [word(path, at) for at in (SELECTOR, INTENT, HEARTBEAT)] == [1, 0x9A3C51F00D7E42B1, 99]
    slot = SLOTS[1]
    assert struct.unpack_from("=6Q", path.read_bytes(), slot) == (2, MOMENT + 5, 4711, MOMENT, 0, len(FIRST.text))
    assert path.read_bytes()[slot + NAME :][: len(FIRST.text)] == FIRST.text.encode()
    view = Control(str(path))
    assert (view.generation, view.opened_ns, view.committed, view.name) == (2, MOMENT + 5, 4711, FIRST.text)
    assert (view.intent, view.heartbeat_ns, view.is_named, view.youngest) == (control.intent, 99, True, FIRST)
    view.close()
    control.close()


def test_longest_name_fits_its_slot(tmp_path: Path) -> None:
    names = SegmentNames("x" * 180 + "-{timestamp}")
    Control.create(f"{tmp_path}/c", 0o600, 1, None)
    control = Control(f"{tmp_path}/c")
    name = names.render(MOMENT, 123456)
    for generation in (2, 3):
        control.advance(generation, 1, name)
    view = Control(f"{tmp_path}/c")
    assert (view.name, view.generation) == (name.text, 3)
    view.close()
    control.close()


# One store.


def test_rotation_shows_the_old_slot_or_the_new_one_and_nothing_between(path: Path) -> None:
    """I5."""
    control = create(path)
    control.advance(2, MOMENT, FIRST)
    control.committed = 100
    seen: list[Any] = []

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line" and frame.f_code.co_name == "advance":
            view = Control(str(path))  # refuses what is half-made
            seen.append((view.generation, view.opened_ns, view.committed, view.name, view.youngest))
            view.close()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        control.advance(3, MOMENT + 60, SECOND_NAME)
        control.advance(4, MOMENT + 70, SECOND_NAME, sealed=True)
    finally:
        sys.settrace(previous)
    old = (2, MOMENT, 100, FIRST.text, FIRST)
    new = (3, MOMENT + 60, 0, SECOND_NAME.text, SECOND_NAME)
    assert list(dict.fromkeys(seen)) == [old, new]
    assert len(seen) > 10
    assert (control.generation, control.is_named, control.youngest) == (4, False, SECOND_WITHOUT_TEXT)
    control.close()


def test_rotations_take_turns_between_the_slots(path: Path) -> None:
    control = create(path)
    selectors = []
    for generation in range(2, 6):
        control.advance(generation, generation, NAMES.render(MOMENT, generation))
        selectors.append(word(path, SELECTOR))
        assert control.generation == generation
        assert control.committed == 0
        control.committed = 10 * generation
    assert selectors == [1, 0, 1, 0]
    assert [word(path, slot + COMMITTED) for slot in SLOTS] == [50, 40]
    control.close()


def test_shorter_name_in_a_slot_hides_the_longer_one_before_it(path: Path) -> None:
    control = create(path)
    for generation, number in enumerate((1234, 0, 12345, 1)):
        name = NAMES.render(MOMENT, number)
        control.advance(generation + 2, 1, name)
        assert control.name == name.text
    control.close()


# What is no control file.


@pytest.mark.parametrize("length", [0, 1, 100, 512, 4095])
def test_file_cut_short_is_no_control_file(path: Path, length: int) -> None:
    control = create(path)
    before = open_descriptors(path.parent)
    assert control.is_in_place()
    os.truncate(path, length)
    assert not control.is_in_place()
    with pytest.raises(BadControl, match=str(length)):
        Control(str(path))
    assert open_descriptors(path.parent) <= before
    control.close()


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, 0),
        (0, (1 << 64) - 1),
        (SELECTOR, 2),
        (SELECTOR, 1 << 63),
        (SLOTS[1] + GENERATION, 0),
        (SLOTS[1] + GENERATION, 1 << 62),
        (SLOTS[1] + COMMITTED, 1 << 62),
        (SLOTS[1] + COMMITTED, (1 << 64) - 1),
        (SLOTS[1] + LENGTH, 465),
        (SLOTS[1] + LENGTH, (1 << 64) - 1),
        (SLOTS[1] + STAMP, 1 << 62),
        (SLOTS[1] + INDEX, (1 << 64) - 1),
        (SELECTOR, 0),
    ],
)
def test_word_that_no_control_file_can_hold_is_found(path: Path, offset: int, value: int) -> None:
    control = create(path)
    control.advance(2, MOMENT, FIRST)
    set_word(path, SLOTS[0] + GENERATION, 0)
    control.close()
    before = open_descriptors(path.parent)
    set_word(path, offset, value)
    content = path.read_bytes()
    with pytest.raises(BadControl):
        Control(str(path))
    assert path.read_bytes() == content
    assert open_descriptors(path.parent) <= before


@pytest.mark.parametrize(
    "name",
    [
        b"../../etc/passwd",
        b"/etc/passwd",
        b"profilis-20241227-120000.jsonl\0",
        b"\xff\xfe",
        b".profilis-mp",
    ],
)
def test_name_that_could_lead_out_of_the_directory_is_not_trusted(path: Path, name: bytes) -> None:
    control = create(path)
    control.advance(2, MOMENT, FIRST)
    control.close()
    set_word(path, SLOTS[1] + LENGTH, len(name))
    overwrite(path, SLOTS[1] + NAME, name)
    with pytest.raises(BadControl, match="name"):
        Control(str(path))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=100), st.integers(0, 5000), st.booleans())
def test_random_file_is_a_bad_control_file_at_the_worst(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int, with_magic: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"random-control-{os.getpid()}"
    head = b"pmpctl\0\1" if with_magic else b""
    path.write_bytes((head + content * (1 + length // max(1, len(content))))[:length])
    try:
        Control(str(path)).close()
    except BadControl:
        pass


def go_on_with(path: Path) -> None:
    """As a writer would: whatever passed for a control file, the next generation can be opened in it."""
    try:
        control = Control(str(path))
    except BadControl:
        return
    try:
        youngest = control.youngest
        name = NAMES.after(youngest, MOMENT, lambda text: False)
        control.advance(control.generation + 1, MOMENT, name)
        assert control.name == name.text
        assert control.committed == 0
    finally:
        control.close()


WORDS = st.integers(0, (1 << 64) - 1) | st.integers(0, 600) | st.sampled_from([1 << 61, 1 << 62, 1 << 63])
SLOT_WORDS = st.sampled_from([slot // 8 + position for slot in SLOTS for position in range(10)])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.integers(0, 4) | SLOT_WORDS, WORDS, min_size=1, max_size=4))
def test_control_file_with_random_words_in_it_is_refused_or_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, damage: dict[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"words-control-{os.getpid()}"
    control = create(path)
    control.advance(2, MOMENT, FIRST)
    control.committed = 100
    control.close()
    for position, value in damage.items():
        set_word(path, 8 * position, value)
    go_on_with(path)


@pytest.mark.parametrize("index", [(1 << 64) - 1, (1 << 64) - 2])
def test_index_that_leaves_no_room_for_the_next_one_is_refused_or_can_be_gone_on_with(path: Path, index: int) -> None:
    """The stamp is in the future, so the next name differs from its elder by the index alone."""
    control = create(path)
    control.advance(2, MOMENT, FIRST, sealed=True)
    control.close()
    set_word(path, SLOTS[1] + STAMP, MOMENT + 1000 * SECOND)
    set_word(path, SLOTS[1] + INDEX, index)
    go_on_with(path)
    go_on_with(path)


def test_symlink_in_the_place_of_the_control_file_is_not_followed(tmp_path: Path) -> None:
    create(tmp_path / "real").close()
    (tmp_path / "control").symlink_to("real")
    with pytest.raises(OSError, match="symbolic links") as caught:
        Control(str(tmp_path / "control"))
    assert caught.value.errno == errno.ELOOP


def test_symlink_planted_for_the_unfinished_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "control.new").symlink_to(precious)
    Control.create(f"{tmp_path}/control", 0o600, 1, None)
    Control(f"{tmp_path}/control").close()
    assert precious.read_text() == "precious"


def test_remains_of_an_unfinished_file_are_written_over(tmp_path: Path) -> None:
    (tmp_path / "control.new").write_bytes(b"x" * 9999)
    control = create(tmp_path / "control")
    assert (tmp_path / "control").stat().st_size == CONTROL_BYTES
    assert not (tmp_path / "control.new").exists()
    control.close()


def test_missing_file_directory_and_pipe_are_no_control_files(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = open_descriptors(tmp_path)
    with pytest.raises(FileNotFoundError):
        Control(f"{tmp_path}/nothing")
    with pytest.raises(IsADirectoryError):
        Control(f"{tmp_path}/directory")
    with pytest.raises(BadControl):
        Control(f"{tmp_path}/pipe")
    assert open_descriptors(tmp_path) <= before


def test_file_that_was_removed_or_replaced_is_not_in_place(path: Path) -> None:
    control = create(path)
    content = path.read_bytes()
    path.rename(path.parent / "moved")
    assert not control.is_in_place()
    path.write_bytes(content)
    assert not control.is_in_place()
    (path.parent / "moved").rename(path)
    assert control.is_in_place()
    control.close()
