"""No literal of a statement, and no comment, gets into the text that is written; what is not understood goes whole."""

from __future__ import annotations

import gc
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from profilis_mp.dbapi import redaction
from profilis_mp.dbapi.redaction import Redactor, redact_statement
from profilis_mp.errors import ConfigError

VENDORS = ["sqlite", "postgresql", "mysql", "oracle", "mssql"]

# Secrets are made of Q, X, Z, digits and whatever could lead a tokenizer astray; statements around them have none of
# these letters, so that a single leaked one shows.
HOSTILE = [
    "'",
    '"',
    "\\",
    "$",
    "--",
    "/*",
    "*/",
    "#",
    "\n",
    ";",
    "`",
    "[",
    "]",
    "{",
    "}",
    "?",
    " ",
    "é",
    "%",
    "$$",
    "''",
]
SECRET = re.compile(r"[QXZ0-9]")


# A busy machine is no finding.
SEARCH = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# -- how each database would have a text written as a literal


def doubled(quote: str, before: str = "") -> Callable[[str], str]:
    return lambda text: before + quote + text.replace(quote, quote + quote) + quote


def escaped(quote: str, before: str = "") -> Callable[[str], str]:
    return lambda text: before + quote + text.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote


def escaped_and_doubled(quote: str, before: str = "") -> Callable[[str], str]:
    return lambda text: before + quote + text.replace("\\", "\\\\").replace(quote, quote + quote) + quote


def dollars(tag: str) -> Callable[[str], str]:
    mark = f"${tag}$"

    def write(text: str) -> str:
        while (text + mark).find(mark) != len(text):
            text = text.replace("$", "Q")
        return mark + text + mark

    return write


def alternative(start: str, end: str) -> Callable[[str], str]:
    return lambda text: f"q'{start}" + text.replace(end + "'", "Q") + f"{end}'"


def digits(before: str, after: str = "") -> Callable[[str], str]:
    return lambda text: before + text.encode().hex().upper() + after


def number(shape: str) -> Callable[[str], str]:
    return lambda text: shape.format(10 + len(text))


def block(text: str) -> str:
    return "/*" + text.replace("*/", "Q").replace("/*", "Q").replace("*", "Q").replace("/", "Z") + "*/"


def line(start: str) -> Callable[[str], str]:
    return lambda text: start + text.replace("\n", "Q") + "\n"


NUMBERS = [number("{0}"), number("{0}.{0}"), number(".{0}"), number("{0}e{0}"), number("-{0}E+{0}"), number("{0}.")]
EVERYWHERE = [doubled("'"), *NUMBERS]
LITERALS = {
    "sqlite": [*EVERYWHERE, doubled('"'), digits("x'", "'"), digits("0x")],
    "postgresql": [
        *EVERYWHERE,
        *(escaped("'", "E"), escaped_and_doubled("'", "e"), escaped_and_doubled("'", "U&"), doubled("'", "N")),
        *(dollars(""), dollars("t"), dollars("a_b"), digits("x'", "'"), digits("0x")),
        *(number("B'10{0:b}'"), number("{0}_{0}"), doubled("'", "date ")),
    ],
    "mysql": [
        *NUMBERS,
        *(escaped("'"), escaped('"'), escaped_and_doubled("'"), escaped_and_doubled('"'), escaped("'", "N")),
        *(escaped("'", "_ascii"), escaped('"', "_binary "), digits("x'", "'"), digits("0x"), number("b'10{0:b}'")),
    ],
    "oracle": [*EVERYWHERE, doubled("'", "N"), alternative("[", "]"), alternative("(", ")"), alternative("!", "!")],
    "mssql": [*EVERYWHERE, doubled("'", "N"), doubled('"'), digits("0x"), number("${0}.{0}")],
}
COMMENTS = {vendor: [block, line("--"), line("-- ")] for vendor in VENDORS}
COMMENTS["mysql"] = [block, line("-- "), line("#"), lambda text: "/*!50000" + block(text)[2:]]

# Settings of a server that its clients do not see.
OTHERWISE = {
    "mysql": [doubled("'"), escaped("'")],  # NO_BACKSLASH_ESCAPES; ANSI_QUOTES
    "postgresql": [escaped("'"), escaped_and_doubled("'")],  # standard_conforming_strings = off
}

texts = st.lists(st.sampled_from(["Q", "XZ", "7Q7", *HOSTILE]), min_size=1, max_size=9).map("".join)
TEMPLATES = [
    "select {}, t.a from t where b = {} and c in ({}, {}) {} order by d",
    "insert into t (a, b) values ({}, {}), ({},{}){}",
    "{} update t set a={} ,b= {} where c < {} or d={}",
    "select t.a as b, coalesce({}, %(p)s, ?, :p) from t {} where a like {} and b between {} and {}",
]


def statements(literals: list[Callable[[str], str]], comments: list[Callable[[str], str]]) -> st.SearchStrategy[str]:
    pieces = st.tuples(st.sampled_from(literals), texts).map(lambda drawn: drawn[0](drawn[1]))
    aside = st.tuples(st.sampled_from(comments), texts).map(lambda drawn: drawn[0](drawn[1]))
    return st.builds(
        lambda template, parts, comment: template.format(*parts) + " " + comment,
        st.sampled_from(TEMPLATES),
        st.lists(pieces, min_size=5, max_size=5),
        aside,
    )


@pytest.mark.parametrize("vendor", VENDORS)
@settings(SEARCH, max_examples=80)
@given(data=st.data())
def test_a_secret_in_any_literal_or_comment_never_appears(vendor: str, data: st.DataObject) -> None:
    statement = data.draw(statements(LITERALS[vendor], COMMENTS[vendor]))
    shown = redact_statement(statement, db_vendor=vendor)
    assert not SECRET.search(shown), shown
    # Nor is the way out taken without need.
    assert not shown.startswith("<"), shown
    # Of a database that is not known: what is a literal to it is one.
    assert not SECRET.search(redact_statement(statement, db_vendor=None))
    # However little of it there is.
    cut = statement[: data.draw(st.integers(0, len(statement)))]
    for one in (vendor, None):
        shown = redact_statement(cut, db_vendor=one)
        assert not SECRET.search(shown), (cut, shown)


@pytest.mark.parametrize("vendor", sorted(OTHERWISE))
@settings(SEARCH, max_examples=80)
@given(data=st.data())
def test_a_secret_never_appears_where_the_server_is_set_to_read_strings_otherwise(
    vendor: str, data: st.DataObject
) -> None:
    literals = [data.draw(st.sampled_from(OTHERWISE[vendor]))]
    statement = data.draw(statements(literals, COMMENTS[vendor]))
    shown = redact_statement(statement, db_vendor=vendor)
    assert not SECRET.search(shown), shown


def test_a_comment_only_to_a_server_that_reads_strings_otherwise_is_none_to_be_shown() -> None:
    """A real PostgreSQL told: with standard_conforming_strings off this is a string, the name a, and a comment.

    The reading that has it so was thrown away, because a word touches a string in it, and the comment was shown.
    """
    assert redact_statement("select 'Q\\''a --E' Q$a$", db_vendor="postgresql") == "select ?"


@settings(SEARCH, max_examples=200)
@given(
    statement=st.lists(
        st.sampled_from(["select ", "Q", "'X'", "a", ",", "=", "N", "E", *HOSTILE, "$t$", "\r", "\0", "\ud800"])
    ).map("".join),
    vendor=st.sampled_from([*VENDORS, None]),
)
@example(statement="", vendor="sqlite")
@example(statement=" \n ", vendor=None)
def test_any_text_at_all_is_answered_with_a_line(statement: str, vendor: str | None) -> None:
    shown = redact_statement(statement, db_vendor=vendor)
    assert isinstance(shown, str)
    assert "\n" not in shown
    assert "'" not in re.sub(r'"[^"]*"|`[^`]*`|\[[^\]]*\]', "", shown)


# -- the shape that stays


@pytest.mark.parametrize(
    ("vendor", "statement", "shown"),
    [
        ("postgresql", "SELECT a FROM t\n  WHERE b = 'x' AND c > 7", "SELECT a FROM t WHERE b = ? AND c > ?"),
        ("postgresql", "SELECT $$it's$$, $1::int, %(p)s, %s", "SELECT ?, $1::int, %(p)s, %s"),
        ("postgresql", 'SELECT "Users"."Name" FROM "Users"', 'SELECT "Users"."Name" FROM "Users"'),
        ("postgresql", "SELECT a -> 'k' ->> 'l' #> '{m}' @> '{}'", "SELECT a -> ? ->> ? #> ? @> ?"),
        ("postgresql", "SELECT /* a /* nested */ 'secret' */ 1", "SELECT ?"),
        ("postgresql", "EXPLAIN SELECT 'secret'", "EXPLAIN SELECT ?"),
        ("postgresql", "SELECT 12secret, 1_000", "SELECT ?, ?"),
        ("postgresql", "SELECT a$t$b, 'x $t$ secret', 'y $t$ z $t$ w'", "SELECT a$t$b, ?, ?"),
        ("cockroachdb", "SELECT E'it\\'s'", "SELECT ?"),
        (
            "sqlite",
            'SELECT ?1, :1, @b, $c FROM [a b] WHERE x = "secret"',
            "SELECT ?1, :1, @b, $c FROM [a b] WHERE x = ?",
        ),
        (
            "sqlite",
            'SELECT "T"."A" AS "B" FROM "T" WHERE "T"."A" = ?',
            'SELECT "T"."A" AS "B" FROM "T" WHERE "T"."A" = ?',
        ),
        (
            "mysql",
            "SELECT `a` FROM t WHERE b = 'it\\'s' OR c = \"x\" # secret",
            "SELECT `a` FROM t WHERE b = ? OR c = ?",
        ),
        ("mariadb", "SELECT 5--1", "SELECT ?--?"),
        ("oracle", "SELECT q'[it's]', :1 FROM dual", "SELECT ?, :1 FROM dual"),
        ("oracle", "ALTER USER scott IDENTIFIED BY tiger", "ALTER USER scott IDENTIFIED BY ?"),
        ("mssql", "SELECT [a b], N'x', $12.34 FROM t", "SELECT [a b], ?, ?.? FROM t"),
        (None, "INSERT INTO users (name, age) VALUES ('Alice', 42)", "INSERT INTO users (name, age) VALUES (?, ?)"),
        ("nosuchdb", 'SELECT a FROM t WHERE b = "x"', "SELECT a FROM t WHERE b = ?"),
        ("sqlite", "select 1 /*traceparent='00-secret-01'*/", "select ?"),
    ],
)
def test_names_operators_and_parameters_stay(vendor: str | None, statement: str, shown: str) -> None:
    assert redact_statement(statement, db_vendor=vendor) == shown


@pytest.mark.parametrize(
    ("vendor", "statement", "shown"),
    [
        ("postgresql", "SELECT 'secret", "<unparsable SELECT>"),
        ("postgresql", "/* first */ SELECT 'secret", "<unparsable statement>"),
        ("postgresql", "secret 'x", "<unparsable statement>"),
        ("postgresql", "insert into t values ($t$ secret $s$)", "<unparsable INSERT>"),
        ("postgresql", "SELECT 'pa'ss'word'", "<unparsable SELECT>"),
        ("postgresql", "SELECT q'[it's secret]'", "<unparsable SELECT>"),
        ("sqlite", "SELECT E'a\\' secret'", "<unparsable SELECT>"),
        ("oracle", "SELECT 1 -- a\rsecret FROM dual", "<unparsable SELECT>"),
        ("mysql", "SELECT \\N, 'x'", "<unparsable SELECT>"),
        (None, "SELECT E'it\\'s secret'", "<unparsable SELECT>"),
    ],
)
def test_what_cannot_be_read_with_certainty_is_replaced_as_a_whole(vendor: str, statement: str, shown: str) -> None:
    assert redact_statement(statement, db_vendor=vendor) == shown


def test_a_long_text_is_cut_with_a_mark_and_a_huge_one_is_not_even_read() -> None:
    columns = ", ".join(f"column_{letter * 9}" for letter in "abcdefgh")
    cut = redact_statement(f"SELECT {columns} FROM t WHERE secret = 'secret'", max_len=40)
    assert len(cut) == 40
    assert cut == "SELECT column_aaaaaaaaa, column_bbbbbbb…"
    assert "…" not in redact_statement(f"SELECT {columns} FROM t", max_len=0)
    huge = "INSERT INTO t VALUES ('secret')" + ", ('secret')" * 100_000
    assert redact_statement(huge) == f"<long INSERT, {len(huge)} characters>"
    assert Redactor(redact=False, max_len=9)("SELECT 'plain'") == "SELECT '…"


def test_a_tokenizer_that_stumbles_costs_the_text_and_not_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> bytearray:
        raise IndexError("theirs")

    redact = Redactor("sqlite")
    monkeypatch.setattr("profilis_mp.dbapi.lexing.spans", stumble)
    assert redact("SELECT 'secret'") == "<unparsable SELECT>"


def test_without_redaction_the_text_is_as_it_was() -> None:
    statement = "SELECT 'it''s',\n  \"x\" -- why\n"
    assert Redactor("mysql", redact=False)(statement) == statement


# -- the memory


def test_a_statement_is_read_once_and_not_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = redaction._redacted

    def reading(statement: str, *, dialect: str | None) -> str:
        read.append(statement)
        return whole(statement, dialect=dialect)

    monkeypatch.setattr(redaction, "_redacted", reading)
    redact = Redactor("sqlite")
    for _ in range(3):
        assert redact("SELECT 'x'") == "SELECT ?"
    assert read == ["SELECT 'x'"]
    for each in range(2_500):
        redact(f"SELECT {each}")
    assert len(read) == 2_501
    assert len(redact._known) <= 1_000
    wide = "SELECT '" + "x" * 19_000 + "'"
    for each in range(900):
        redact(wide + str(each))
    assert sum(map(len, redact._known)) < 5_000_000


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"db_vendor": 7}, "db_vendor"),
        ({"redact": "no"}, "redact"),
        ({"max_len": -1}, "max_len"),
        ({"max_len": True}, "max_len"),
        ({"max_len": "many"}, "max_len"),
    ],
)
def test_a_bad_argument_is_refused_by_name(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Redactor(**arguments)
    assert refused.value.argument == argument


def test_what_a_signal_handler_throws_in_while_a_statement_is_read_is_the_applications() -> None:
    """sqlglot turns any exception into a TokenError: a soft time limit would have become an unparsable statement."""

    class OutOfTimeError(Exception):
        pass

    def out_of_time(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, out_of_time)
    redact = Redactor("postgresql")
    statement = "SELECT " + ", ".join(["'x'", "y"] * 2_000)
    thrown = 0
    gc.disable()  # hypothesis has a callback there, and what is raised in it goes nowhere
    try:
        for attempt in range(20):
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            try:
                shown = redact(f"{statement}, z{'z' * attempt}")
            except OutOfTimeError:
                thrown += 1
            else:
                assert not shown.startswith("<")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    assert thrown > 0
