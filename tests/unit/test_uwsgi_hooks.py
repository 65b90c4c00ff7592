"""Outside of uWSGI. What register does inside of it, tests/hosts/test_uwsgi.py shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import fork, reap

from profilis_mp import AsyncCollector, ConfigError, SharedWriter
from profilis_mp.account import lines_of, segments_of
from profilis_mp.sharedlog import forks
from profilis_mp.uwsgi import register


def test_outside_of_uwsgi_register_does_nothing() -> None:
    collector = AsyncCollector([].extend)
    assert register(collector) is False
    assert collector.close()


@pytest.mark.parametrize("collector", [None, "logs", object(), AsyncCollector])
def test_what_cannot_be_flushed_is_refused_by_name(collector: Any) -> None:
    with pytest.raises(ConfigError, match=r"^collector"):
        register(collector)


def test_importing_it_imports_no_server() -> None:
    code = "import sys, profilis_mp.uwsgi; print({'uwsgi', 'pyuwsgi', 'uwsgidecorators'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done


def test_a_child_that_takes_part_helps_without_having_written(tmp_path: Path) -> None:
    """Its parent sleeps with an event in its spool, and at this interval never looks for it."""
    writer = SharedWriter(tmp_path, flush_interval=1e6)
    writer.write(b"from the parent\n")

    def child() -> None:
        forks.take_part()
        session = writer._session
        assert session.mark
        assert session.helper is not None
        session.helper.step(5.0, at_once=True)
        assert writer.stats()["events"] == 0

    assert reap(fork(child)) == 0
    assert [line for path in segments_of(str(tmp_path)) for _, line in lines_of(path)] == [b"from the parent\n"]
    forks.take_part()  # in a process that was not forked it changes nothing
    assert writer.stats()["events"] == 1
    assert writer.close()


def test_a_child_does_not_take_part_for_a_writer_that_its_parent_had_closed(tmp_path: Path) -> None:
    writer = SharedWriter(tmp_path)
    writer.write(b"from the parent\n")
    assert writer.close()

    def child() -> None:
        forks.take_part()
        assert writer._session.helper is None

    assert reap(fork(child)) == 0
