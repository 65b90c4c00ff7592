"""How do all processes of one test run write into one directory, and who tells what they wrote?

Whoever runs tests records them: pytest itself without xdist, each of its workers with it. xdist's controller runs none.
It gives its workers the directory and the run's id, records what only it can know (a test whose worker died), and at
the end reads the log and shows the slowest tests of all workers.

Nothing here may fail a run: what goes wrong is logged, and said in the summary. Only a directory that cannot be used is
refused, before the first test, with a UsageError.
"""

from __future__ import annotations

from typing import Any

import pytest

from profilis_mp.core.context import new_trace_id
from profilis_mp.errors import ConfigError, LogDirectoryError
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.forkmark import fork_mark
from profilis_mp.pytest_plugin.recorder import contain, crash_event, recording

__all__ = ["STREAM", "attach"]

STREAM = "pytest-{timestamp}.jsonl"
"""Test runs are a stream of their own: the directory may hold an application's events as well."""

_KEY = "profilis_mp"  # of what xdist carries from controller to worker, and back


def attach(config: pytest.Config) -> None:
    """Record this run.

    Raises:
        UsageError: The directory cannot be used, or a number is none. In a worker nothing is raised.
    """
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is None:
        most = _most(config)
        try:
            exporter = _exporter(_directory(config))
        except (ConfigError, LogDirectoryError) as error:
            raise pytest.UsageError(f"--profilis-dir: {error}") from None
        config.pluginmanager.register(Run(config, exporter, new_trace_id(), most), "profilis_mp_run")
    elif _KEY in workerinput:
        try:
            exporter = _exporter(workerinput[_KEY]["dir"])
        except (ConfigError, LogDirectoryError) as error:
            contain("nothing of this worker is recorded", error)
            return
        worker = Worker(config, exporter)
        worker.record(workerinput[_KEY]["run"], workerinput["workerid"])
        config.pluginmanager.register(worker, "profilis_mp_run")


def _exporter(directory: str) -> JSONLExporter:
    return JSONLExporter(directory, filename_template=STREAM)


def _directory(config: pytest.Config) -> str:
    """The absolute log directory; the command line is relative to where it was given, the ini file to the root."""
    given = config.getoption("profilis_dir")
    if given == "":
        raise pytest.UsageError("--profilis-dir: is empty")
    if given is not None:
        return str(config.invocation_params.dir / given)
    return str(config.rootpath / config.getini("profilis_dir"))


def _most(config: pytest.Config) -> int:
    """How many tests to show; 0 for all, as with pytest's own --durations."""
    given = config.getoption("profilis_slowest")
    name = "profilis_slowest" if given is None else "--profilis-slowest"
    text = config.getini("profilis_slowest") if given is None else given
    try:
        most = int(text)
    except ValueError:
        raise pytest.UsageError(f"{name}: {text!r} is not a number") from None
    if most < 0:
        raise pytest.UsageError(f"{name}: {most} is less than 0")
    return most


class Worker:
    """One process that runs tests."""

    def __init__(self, config: pytest.Config, exporter: JSONLExporter) -> None:
        self.config = config
        self.exporter = exporter
        self.mark = fork_mark()

    def record(self, run: str, worker: str) -> None:
        """Record what this process reports."""
        hook = recording(self.exporter, run, worker, self.mark)
        self.config.pluginmanager.register(_Hooks(hook), "profilis_mp_recorder")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Any:
        """Around xdist's own, which sends ``workeroutput``."""
        if self.mark:
            try:
                self.exporter.flush()
                dropped = self.exporter.stats()["dropped"]
                if dropped and hasattr(self.config, "workeroutput"):
                    self.config.workeroutput[_KEY] = dropped
            except Exception as error:
                contain("the last events stay in the spool", error)
        return (yield)

    def pytest_unconfigure(self) -> None:
        """Close; in a forked child, which inherited this, that is nothing."""
        if self.mark:
            self.exporter.close()


class _Hooks:
    """A plugin of one hook: what only some processes need costs the others nothing."""

    def __init__(self, pytest_runtest_logreport: Any) -> None:
        self.pytest_runtest_logreport = pytest_runtest_logreport


class Run(Worker):
    """The process that the user started: xdist's controller, or, without xdist, the one that runs the tests."""

    def __init__(self, config: pytest.Config, exporter: JSONLExporter, run: str, most: int) -> None:
        super().__init__(config, exporter)
        self.run = run
        self.most = most
        self.elder: frozenset[str] = frozenset()
        self.dropped: dict[str, dict[str, int]] = {}  # by worker, by reason

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """xdist is configured by now, and has started no worker yet."""
        from profilis_mp.pytest_plugin.slowest import segments_in

        try:
            self.elder = segments_in(self.exporter.dir, STREAM)
        except Exception as error:
            contain("what the directory holds could not be seen, and all of it is read at the end", error)
        manager = self.config.pluginmanager
        if manager.hasplugin("dsession"):
            manager.register(Controller(self), "profilis_mp_controller")
        else:
            self.record(self.run, "master")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Read the log and show the slowest tests."""
        if not self.mark or self.config.getoption("collectonly"):
            return
        try:
            from profilis_mp.pytest_plugin.slowest import show

            self.exporter.close()  # the workers have ended, and nothing else comes from here
            if dropped := self.exporter.stats()["dropped"]:
                self.dropped["master"] = dropped
            show(terminalreporter, self.exporter.dir, STREAM, self.run, self.most, self.elder)
            for worker, reasons in self.dropped.items():
                for reason, count in reasons.items():
                    terminalreporter.write_line(f"{worker}: {count} events were not written: {reason}")
        except Exception as error:
            contain("the slowest tests could not be shown", error)
            terminalreporter.write_line(f"profilis_mp: {self.exporter.dir} could not be read back: {error!r}")


class Controller:
    """What there is to do only where xdist distributes the tests."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker, before it starts, where to write."""
        node.workerinput[_KEY] = {"dir": self.run.exporter.dir, "run": self.run.run}

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: Any) -> None:
        """A worker died in this test; what it had reported before is in the log, this is not."""
        try:
            self.run.exporter.emit(crash_event(crashitem, self.run.run, report.node.gateway.id))
        except Exception as error:
            contain("the crash of a worker was not recorded", error)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended; if in order, it says what it could not write."""
        dropped = getattr(node, "workeroutput", {}).get(_KEY)
        if dropped:
            self.run.dropped[node.gateway.id] = dropped
