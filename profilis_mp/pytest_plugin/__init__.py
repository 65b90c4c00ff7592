"""How does pytest come to know of ``--profilis-dir``, at no cost for those who do not use it?

pytest imports every plugin that is installed, in every run. So this module imports nothing of the package: without the
option (or ``profilis_dir`` in the ini file) that is all there is. With it, `profilis_mp.pytest_plugin.run` takes over.

    pytest -n 4 --profilis-dir=.profilis
"""

from __future__ import annotations

import pytest

__all__ = ["pytest_addoption", "pytest_configure"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and the same for the ini file."""
    group = parser.getgroup("profilis_mp", "where the time goes (profilis_mp)")
    group.addoption(
        "--profilis-dir",
        metavar="DIR",
        help="write each test's set-up, call and tear-down as FN events into this directory, from all xdist workers",
    )
    group.addoption(
        "--profilis-slowest",
        metavar="N",
        type=int,
        help="show the N slowest tests that --profilis-dir has recorded (default 10, 0 for all)",
    )
    parser.addini("profilis_dir", "as --profilis-dir; relative to the root directory", type="string", default="")
    parser.addini("profilis_slowest", "as --profilis-slowest", type="string", default="10")


def pytest_configure(config: pytest.Config) -> None:
    """Attach the recording to this run, if it was asked for."""
    if config.getoption("profilis_dir") is not None or config.getini("profilis_dir"):
        from profilis_mp.pytest_plugin.run import attach

        attach(config)
