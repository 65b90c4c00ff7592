"""What segments are called: the promised shape, never twice, always forward, and never outside the directory."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from profilis_mp.errors import ConfigError
from profilis_mp.sharedlog.names import SegmentName, SegmentNames
from profilis_mp.sharedlog.segment import name_is_taken

SECOND = 10**9
DAY = 86_400 * SECOND
MOMENT = 1_735_300_800 * SECOND  # 2024-12-27 12:00:00 UTC
LATE_MOMENT = MOMENT + 20 * 365 * DAY


# What a template or an app_name may not hold is filtered out; how long an example takes says nothing.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


def nothing_taken(_: str) -> bool:
    return False


def first(template: str, app_name: str = "profilis") -> str:
    return SegmentNames(template, app_name).after(None, MOMENT, nothing_taken).text


def accepted(template: str, app_name: str = "profilis") -> SegmentNames | None:
    try:
        return SegmentNames(template, app_name)
    except ConfigError:
        return None


def refusal(template: str, app_name: str = "profilis") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        SegmentNames(template, app_name)
    return caught.value


# Shape.


@pytest.mark.parametrize(
    ("template", "app_name", "name"),
    [
        ("profilis-{timestamp}.jsonl", "profilis", "profilis-20241227-120000.jsonl"),
        ("app-{timestamp}-{index}.jsonl", "profilis", "app-20241227-120000-001.jsonl"),
        ("{app_name}-{timestamp}.jsonl", "myapp", "myapp-20241227-120000.jsonl"),
    ],
)
def test_templates_of_the_users_page_give_the_names_it_shows(template: str, app_name: str, name: str) -> None:
    assert first(template, app_name) == name


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("a-{index:d}.jsonl", "a-1.jsonl"),
        ("a-{index:05d}.jsonl", "a-00001.jsonl"),
        ("a-{index:05}.jsonl", "a-00001.jsonl"),
        ("a-{timestamp:%Y%m%d}.jsonl", "a-20241227.jsonl"),
        ("a-{timestamp:%d.%m.%Y %H:%M:%S}.jsonl", "a-27.12.2024 12:00:00.jsonl"),
        ("{timestamp:%Y%m%dT%H%M%S.%f}", "20241227T120000.000000"),
        ("{{{timestamp:%Y}}}-{{x}}.jsonl", "{2024}-{x}.jsonl"),
        ("{app_name}{app_name}-{index}", "profilisprofilis-001"),
    ],
)
def test_fields_take_formats(template: str, name: str) -> None:
    assert first(template) == name


def test_hostname_field_is_the_machines_name() -> None:
    assert first("{hostname}.{index}") == f"{os.uname().nodename}.001"


def test_braces_in_the_app_name_are_only_braces() -> None:
    assert first("{app_name}-{index}.jsonl", "{index}{x}{{%Y") == "{index}{x}{{%Y-001.jsonl"


def test_template_that_ends_in_gz_takes_its_suffix_before_the_whole_extension() -> None:
    names = SegmentNames("profilis-{timestamp}.jsonl.gz")
    elder = names.after(None, MOMENT, nothing_taken)
    younger = names.after(elder, MOMENT, nothing_taken)
    assert [elder.text, younger.text] == ["profilis-20241227-120000.jsonl.gz", "profilis-20241227-120000_001.jsonl.gz"]
    assert names.parse(younger.text) == younger
    assert names.latest([younger.text, elder.text]) == younger


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    if time.strftime("%H%M", time.localtime(MOMENT // SECOND)) != "1300":
        pytest.skip("no time zone data on this machine")
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_local_time_is_written_only_when_asked_for() -> None:
    assert SegmentNames("{timestamp}").after(None, MOMENT, nothing_taken).text == "20241227-120000"
    assert SegmentNames("{timestamp}", local_time=True).after(None, MOMENT, nothing_taken).text == "20241227-130000"


# Never twice, always forward.


@pytest.mark.parametrize(
    ("template", "app_name"),
    [
        ("profilis-{timestamp}.jsonl", ""),
        ("profilis-{timestamp}", ""),
        ("{timestamp}-{app_name}.jsonl", "my.app"),
        ("{timestamp}{app_name}.tar.jsonl", "x"),
        ("{timestamp}.{hostname}", ""),
    ],
)
def test_second_name_of_a_second_takes_a_suffix_that_sorts_after(template: str, app_name: str) -> None:
    names = SegmentNames(template, app_name or "profilis")
    given_names = [names.after(None, MOMENT, nothing_taken)]
    for _ in range(11):
        given_names.append(names.after(given_names[-1], MOMENT, nothing_taken))
    texts = [name.text for name in given_names]
    assert len(set(texts)) == 12
    assert sorted(texts) == texts
    assert sorted(given_names, key=SegmentName.age) == given_names
    assert "_001" in texts[1]


def test_suffix_stands_before_the_extension() -> None:
    names = SegmentNames("profilis-{timestamp}.jsonl")
    elder = names.after(None, MOMENT, nothing_taken)
    assert names.after(elder, MOMENT, nothing_taken).text == "profilis-20241227-120000_001.jsonl"


@pytest.mark.parametrize("form", ["", ".gz", ".zst", ".gz.tmp", ".zst.tmp"])
def test_name_that_exists_in_any_form_is_not_taken_again(tmp_path: Path, form: str) -> None:
    (tmp_path / f"profilis-20241227-120000.jsonl{form}").touch()
    (tmp_path / f"profilis-20241227-120000_001.jsonl{form}").touch()
    names = SegmentNames("profilis-{timestamp}.jsonl")
    name = names.after(None, MOMENT, lambda text: name_is_taken(str(tmp_path), text))
    assert name.text == "profilis-20241227-120000_002.jsonl"


def test_dangling_symlink_takes_a_name_too(tmp_path: Path) -> None:
    (tmp_path / "a-001.jsonl").symlink_to(tmp_path / "nowhere")
    names = SegmentNames("a-{index}.jsonl")
    assert names.after(None, MOMENT, lambda text: name_is_taken(str(tmp_path), text)).text == "a-002.jsonl"


def test_index_starts_again_with_a_new_timestamp() -> None:
    names = SegmentNames("app-{timestamp}-{index}.jsonl")
    elder = names.after(None, MOMENT, nothing_taken)
    younger = names.after(elder, MOMENT, nothing_taken)
    assert younger.text == "app-20241227-120000-002.jsonl"
    assert names.after(younger, MOMENT + SECOND, nothing_taken).text == "app-20241227-120001-001.jsonl"


def test_index_alone_goes_on_beyond_its_width() -> None:
    names = SegmentNames("app-{index}.jsonl")
    name, listing = SegmentName(0, 997, "app-997.jsonl"), []
    for step in range(5):
        name = names.after(name, MOMENT - step * DAY, nothing_taken)
        listing.append(name.text)
    assert listing == ["app-998.jsonl", "app-999.jsonl", "app-1000.jsonl", "app-1001.jsonl", "app-1002.jsonl"]
    assert names.latest(sorted(listing)) == name


# Seven nines: a moment that a float of seconds rounds up to the next second.
nanoseconds = st.integers(0, 3 * SECOND) | st.sampled_from([SECOND - 1, 999_999_950, SECOND, 2 * SECOND - 1])


@relaxed
@given(
    st.sampled_from(["profilis-{timestamp}.jsonl", "{timestamp:%Y%m%d}", "{timestamp}-{index}.jsonl", "{index:04d}.j"]),
    st.lists(st.tuples(st.sampled_from([0, 0, 0, -DAY, DAY, -3600 * SECOND]), nanoseconds), min_size=2, max_size=40),
)
def test_names_move_forward_and_never_repeat_whatever_clock_and_deletions_do(
    template: str, moves: list[tuple[int, int]]
) -> None:
    names = SegmentNames(template)
    given_names: list[SegmentName] = []
    for far, near in moves:
        # Nothing is ever found on disk: every segment was deleted as soon as it was sealed.
        elder = given_names[-1] if given_names else None
        given_names.append(names.after(elder, MOMENT + far + near, nothing_taken))
    texts = [name.text for name in given_names]
    assert len(set(texts)) == len(texts)
    assert sorted(texts) == texts
    assert sorted(given_names, key=SegmentName.age) == given_names


@pytest.mark.usefixtures("berlin")
def test_names_in_local_time_move_forward_when_summer_time_ends() -> None:
    names = SegmentNames("{timestamp}.jsonl", local_time=True)
    texts: list[str] = []
    name = None
    for minutes in range(0, 180, 15):  # 2024-10-27, 02:00 CEST to 04:00 CET
        name = names.after(name, (1_729_987_200 + 60 * minutes) * SECOND, texts.__contains__)
        texts.append(name.text)
    assert sorted(texts) == texts


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("local_time", [False, True])
@pytest.mark.parametrize("spec", ["%Y%m%d", "%d.%m.%Y", "%b %d %Y"])
def test_each_days_segment_bears_its_own_date_whether_or_not_dates_sort_as_text(spec: str, local_time: bool) -> None:
    names = SegmentNames(f"{{timestamp:{spec}}}", local_time=local_time)
    name = None
    for day in range(0, 400, 9):
        name = names.after(name, MOMENT + day * DAY, nothing_taken)
        assert name == names.render(MOMENT + day * DAY, 0)


# What is refused.


HOSTILE = ["a/b", "/etc/x", "..", "a..b", "../x", "a\\b", "a\0b", "a\nb", "a\x1bb", "a\x7fb", "a\ud800b"]
CONTROL_CHARACTERS_BEYOND_ASCII = ["a\x85b", "a\x9bb"]


@pytest.mark.parametrize("value", [*HOSTILE, *CONTROL_CHARACTERS_BEYOND_ASCII, "", None, b"app", 7])
def test_hostile_app_name_is_refused_by_name(value: str) -> None:
    assert refusal("{app_name}-{index}.jsonl", value).argument == "app_name"


@pytest.mark.parametrize(
    "value", [*(f"{hostile}-{{index}}" for hostile in [*HOSTILE, *CONTROL_CHARACTERS_BEYOND_ASCII]), "", None, b"x"]
)
def test_hostile_template_is_refused_by_name(value: str) -> None:
    assert refusal(value).argument == "filename_template"


@pytest.mark.parametrize(
    "template",
    [
        "{pid}-{index}",
        "{}-{index}",
        "{0}-{index}",
        "{index.real}",
        "{index[0]}",
        "{app_name.__class__}-{index}",
        "{index!r}",
        "{timestamp!s}",
        "{app_name:>20}-{index}",
        "{hostname:x}-{index}",
        "{index:x}",
        "{index:>3}",
        "{index:,}",
        "{index:0100d}",
        "{index:{index}}",
        "{timestamp:{index}}",
        "{index",
        "index}-{index}",
        "plain.jsonl",
        "{app_name}-{hostname}.jsonl",
        ".hidden-{index}",
        "{index}.jsonl.tmp",
        "{timestamp:%D}",
        "{timestamp:%n}",
        "{timestamp:..}",
        "x" * 300 + "{index}",
        "{index:99d}{timestamp}{index:99d}",
    ],
)
def test_template_that_could_give_a_bad_name_is_refused(template: str) -> None:
    assert refusal(template).argument == "filename_template"


@pytest.mark.parametrize("app_name", [".hidden", "x" * 250, "€" * 80])
def test_app_name_that_only_together_with_the_template_is_bad_is_refused(app_name: str) -> None:
    assert refusal("{app_name}-{timestamp}.jsonl", app_name).argument in {"app_name", "filename_template"}


def test_two_halves_of_a_parent_reference_are_refused_together() -> None:
    refusal("a.{app_name}{index}", ".")


def test_stream_name_of_an_accepted_app_name_fits_into_a_directory_entry() -> None:
    """Percent-encoding triples what is not ASCII: a name that fits a file may give a stream name that does not."""
    for length in (20, 40, 60, 80):
        names = accepted("{app_name}-{timestamp}.jsonl", "é" * length)
        assert names is None or len(os.fsencode(names.stream)) <= 255, length


# Reading names back.


@pytest.mark.parametrize(
    "template",
    [
        "{timestamp}-{hostname}.jsonl",
        "{hostname}-{timestamp}.jsonl",
        "{hostname}-{timestamp}-{index}.jsonl",
        "{app_name}.{hostname}.{timestamp:%Y-%m-%d}.jsonl",
    ],
)
@pytest.mark.parametrize("host", ["vm", "web-1", "web-7d9f8b-x2x4k", "db.example.org", "10-0-0-1"])
def test_names_are_recognised_whatever_the_host_is_called(template: str, host: str) -> None:
    """Control file, janitor and account take a file for the stream's own only if its name is recognised."""
    names = SegmentNames(template)
    name = names.render(MOMENT, 1, host)
    parsed = names.parse(name.text)
    assert parsed is not None
    assert (parsed.text, parsed.number) == (name.text, 1)


@pytest.mark.parametrize(
    "template",
    [
        "{timestamp}{index}.jsonl",
        "{index}{timestamp}.jsonl",
        "{index:5d}.jsonl",
        "{index:3}.jsonl",
        "{timestamp:%F}.jsonl",
        "{timestamp:%s}.jsonl",
        "{timestamp:%Y-W%U}.jsonl",
        "{timestamp:%-d.%m.%Y}.jsonl",
        "{timestamp:%Y%m%d}-{timestamp:%H%M%S}.jsonl",
        "{index}-{index:05d}.jsonl",
        "{timestamp:%Y%}.jsonl",
        "{timestamp:%Y%m%d %Z}.jsonl",
        "{timestamp:%A, %d %B %Y}.jsonl",
        "{timestamp:%y%j-%I%p}.jsonl",
    ],
)
def test_template_is_refused_unless_its_own_names_are_recognised(template: str) -> None:
    names = accepted(template)
    if names is None:
        assert refusal(template).argument == "filename_template"
        return
    for stamp_ns in (MOMENT, LATE_MOMENT):
        name = names.after(None, stamp_ns, nothing_taken)
        parsed = names.parse(name.text)
        assert parsed is not None, name.text
        assert (parsed.text, parsed.number) == (name.text, name.number)
        assert names.latest([name.text]) == parsed


@pytest.mark.parametrize("spec", ["%H%M%S", "%m%d", "%d-%H", "fixed"])
def test_timestamp_that_comes_again_is_refused(spec: str) -> None:
    """Without the year a name returns after its file was deleted, and cannot be told from its namesake."""
    template = f"{{timestamp:{spec}}}.jsonl"
    assert refusal(template).argument == "filename_template"


literals = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/\\"), max_size=6)
fields = st.sampled_from(
    ["{timestamp}", "{timestamp:%Y%m%d}", "{timestamp:%Y-%m-%dT%H:%M:%S.%f}", "{index}", "{index:d}", "{index:06d}"]
)


def templates() -> st.SearchStrategy[str]:
    """Any literals around one or two fields, the second one set off by a character that is in neither."""
    escaped = literals.map(lambda text: text.replace("{", "{{").replace("}", "}}"))
    one = st.tuples(escaped, fields, escaped).map("".join)
    two = st.tuples(escaped, st.sampled_from(["{timestamp}", "{timestamp:%Y%m%d}"]), escaped, escaped).map(
        lambda parts: f"{parts[0]}{parts[1]}~{parts[2]}{{index}}{parts[3]}"
    )
    return one | two


def names_of(template: str, app_name: str = "profilis") -> SegmentNames:
    names = accepted(template, app_name)
    assume(names is not None)
    assert names is not None
    return names


@relaxed
@given(templates(), st.integers(0, LATE_MOMENT // SECOND), st.integers(0, 5000))
def test_name_reads_back_as_what_it_was_made_of(template: str, seconds: int, number: int) -> None:
    names = names_of(template)
    number = max(number, names.first_index)
    name = names.render(seconds * SECOND, number)
    parsed = names.parse(name.text)
    assert parsed is not None
    assert (parsed.number, parsed.text) == (number, name.text)
    assert parsed.stamp_ns <= name.stamp_ns
    assert names.render(parsed.stamp_ns, parsed.number) == parsed
    assert names.parse_any(f"{name.text}.gz") == parsed


@relaxed
@given(
    st.sampled_from(["profilis-{timestamp}.jsonl", "a{timestamp:%Y%m%d%f}", "{timestamp}-{index}.gz", "{index:d}x"]),
    st.integers(0, LATE_MOMENT // SECOND),
    st.integers(1, 2000),
    st.data(),
)
def test_whatever_else_is_parsed_is_nothing_or_renders_the_same(
    template: str, seconds: int, number: int, data: st.DataObject
) -> None:
    names = SegmentNames(template)
    text = names.render(seconds * SECOND, number).text
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 3))
    put = data.draw(st.text(st.sampled_from("0159-_.%xgz\u0663\n \0") | st.characters(), max_size=4))
    mutant = text[:at] + put + text[at + cut :]
    parsed = names.parse(mutant)
    assert parsed is None or names.render(parsed.stamp_ns, parsed.number).text == parsed.text == mutant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "profilis-.jsonl",
        "profilis-20241227-120000.jsonl.gz",
        "profilis-20241227-120000.jsonl.1",
        "profilis-20241227-120000.jsonl\n",
        "profilis-20241227-120000_1.jsonl",
        "profilis-20241227-120000_000.jsonl",
        "profilis-20241227-120000_0001.jsonl",
        "profilis-20241227-120000_\u0660\u0660\u0661.jsonl",
        "profilis-20241227-120000-001.jsonl",
        "profilis-20241327-120000.jsonl",
        "profilis-20241227-120060.jsonl",
        "profilis-2024122-120000.jsonl",
        "profilis-20241227-1200000.jsonl",
        "profilis-\u0662\u0660\u0662\u06641227-120000.jsonl",
        "Profilis-20241227-120000.jsonl",
        "xprofilis-20241227-120000.jsonl",
        "profilis-20241227-120000xjsonl",
        "./profilis-20241227-120000.jsonl",
        "profilis-{timestamp}.jsonl",
    ],
)
def test_look_alike_is_not_a_segment(text: str) -> None:
    assert SegmentNames("profilis-{timestamp}.jsonl").parse(text) is None


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("profilis-{timestamp}.jsonl", "profilis-20241227-120000_99999999999999999999999.jsonl"),
        ("profilis-{timestamp}.jsonl", "profilis-99991231-235959.jsonl"),
        ("a-{index:d}.jsonl", "a-99999999999999999999999.jsonl"),
        ("{timestamp:%Y%m%d%H%M%S%f}", "99991231235959999999"),
        ("{timestamp}", "19691231-235959"),
    ],
)
def test_name_beyond_what_the_control_file_can_hold_is_not_a_segment(template: str, text: str) -> None:
    """Stamp and number go into words of 64 bits: anybody can put a file with such a name into the directory."""
    assert SegmentNames(template).parse_any(text) is None


def test_latest_looks_at_compressed_segments_and_past_strangers() -> None:
    names = SegmentNames("profilis-{timestamp}.jsonl")
    listing = [
        "profilis-20241227-120000.jsonl",
        "profilis-20241227-120001_002.jsonl.zst",
        "profilis-20241227-120001_010.jsonl.gz",
        "profilis-20241227-120001.jsonl",
        "profilis-20241228-120000.jsonl.gz.tmp",
        "profilis-20241229-120000.jsonl.bz2",
        "other-20241230-120000.jsonl",
        ".profilis-mp",
    ]
    assert names.latest(listing) == SegmentName(MOMENT + SECOND, 10, "profilis-20241227-120001_010.jsonl")
    assert names.latest([]) is None
    assert names.latest(listing[-4:]) is None


# The stream's name.


def test_stream_reads_like_its_template() -> None:
    assert SegmentNames("{app_name}-{timestamp}-{index}.jsonl", "my app").stream == "my%20app-{timestamp}-{index}.jsonl"
    assert SegmentNames("{timestamp:%Y}-{index:05d}").stream == "{timestamp%3A%25Y}-{index%3A05d}"


def test_app_name_and_the_same_text_in_the_template_are_one_stream() -> None:
    assert SegmentNames("{app_name}-{index}", "a").stream == SegmentNames("a-{index}").stream


@relaxed
@given(st.text(min_size=1, max_size=40), templates())
@example("{index}", "{app_name}{index}")
@example("%7Bindex%7D%", "{app_name}{index}")
@example("a.b", "{index}-{app_name}.jsonl")
def test_stream_name_gives_the_stream_back(app_name: str, template: str) -> None:
    names = names_of("{app_name}" + template, app_name)
    again = SegmentNames.of_stream(names.stream)
    assert again.stream == names.stream
    assert "/" not in names.stream
    assert names.stream not in {".", ".."}
    for number in (1, 2, 1000):
        assert again.render(MOMENT, number) == names.render(MOMENT, number)


@relaxed
@given(
    st.text(min_size=1), st.sampled_from(["{app_name}-{timestamp}.jsonl", "x{app_name}{index}", "{index}{app_name}"])
)
def test_no_app_name_whatever_leaves_the_directory(app_name: str, template: str) -> None:
    names = names_of(template, app_name)
    name = names.after(None, MOMENT, nothing_taken).text
    assert app_name in name
    assert os.path.basename(name) == name
    assert os.path.dirname(os.path.normpath(f"logs/{name}")) == "logs"
    assert not re.search(r"[\x00-\x1f\x7f]", name)
    assert not name.startswith(".")


@pytest.mark.parametrize("stream", ["README", "", ".", "..", "lost+found", "{pid}", "a%2Fb-{index}", "%2E%2E{index}"])
def test_directory_that_is_no_streams_is_refused(stream: str) -> None:
    with pytest.raises(ConfigError):
        SegmentNames.of_stream(stream)
