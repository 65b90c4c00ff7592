"""How does every statement of a PEP 249 driver become exactly one DB event, without SQLAlchemy?

The driver's connections and cursors are wrapped. A wrapper passes everything on and adds only this: ``execute``,
``executemany``, ``executescript`` and ``callproc`` are timed, whether called on a cursor or on the connection (sqlite3
and psycopg offer that), and what the driver answers with a connection or cursor of its own comes back wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import iscoroutinefunction
from time import perf_counter_ns
from typing import Any

from profilis_mp.dbapi.recorder import Recorder, contain
from profilis_mp.dbapi.redaction import MAX_LEN
from profilis_mp.dbapi.vendors import vendor_of
from profilis_mp.errors import ConfigError

__all__ = ["ProfiledConnection", "ProfiledCursor", "wrap_connect", "wrap_connection"]

_OWN = frozenset({"_inner", "_recorder", "_connection"})
_RECORDED = frozenset({"execute", "executemany", "executescript", "callproc"})


def wrap_connection(
    connection: Any, emitter: Any, *, db_vendor: str | None = None, redact: bool = True, max_len: int = MAX_LEN
) -> Any:
    """Return a connection that does what the given one does, and records its statements.

        >>> import sqlite3
        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> from profilis_mp.core.emitter import Emitter
        >>> events = []
        >>> collector = AsyncCollector(events.extend)
        >>> connection = wrap_connection(sqlite3.connect(":memory:"), Emitter(collector))
        >>> connection.execute("SELECT 'secret'").fetchone(), collector.close()
        (('secret',), True)
        >>> [(event["query"], event["db_vendor"]) for event in events]
        [('SELECT ?', 'sqlite')]
        >>> connection.close()

    Args:
        connection: An open connection of a synchronous PEP 249 driver.
        emitter: An `Emitter`, or a collector, or an exporter.
        db_vendor: What stands in the events, and how statements are read; None goes by the driver. Needed for drivers
            that speak to several databases, such as pyodbc: a statement is read more strictly where it is not known.
        redact: False leaves literals and comments in the text.
        max_len: Longer text is cut and ends in ``…``; 0 never cuts.

    Raises:
        ConfigError: Naming the argument that was refused.
    """
    _check(connection)
    vendor = vendor_of(connection) if db_vendor is None else db_vendor
    return ProfiledConnection(connection, Recorder(emitter, vendor, redact=redact, max_len=max_len))


def wrap_connect(
    connect: Callable[..., Any],
    emitter: Any,
    *,
    db_vendor: str | None = None,
    redact: bool = True,
    max_len: int = MAX_LEN,
) -> Callable[..., Any]:
    """Return a function that connects like the given one and returns wrapped connections.

    Arguments as for `wrap_connection`; ``connect`` may be a driver's ``connect``, or any function that returns an open
    connection, such as a pool's. What it returns and cannot be wrapped is returned as it is, with a warning.
    """
    if not callable(connect):
        raise ConfigError("connect", f"a {type(connect).__name__} cannot be called")
    recorders: dict[str, Recorder] = {}
    # Refused now, and not when the first connection is made.
    checked = Recorder(emitter, db_vendor, redact=redact, max_len=max_len)
    if db_vendor is not None:
        recorders[db_vendor] = checked

    def connect_profiled(*args: Any, **kwargs: Any) -> Any:
        connection = connect(*args, **kwargs)
        try:
            _check(connection)
            vendor = vendor_of(connection) if db_vendor is None else db_vendor
            if vendor not in recorders:
                recorders[vendor] = Recorder(emitter, vendor, redact=redact, max_len=max_len)
            return ProfiledConnection(connection, recorders[vendor])
        except Exception as error:
            contain("a connection could not be profiled", error)
            return connection

    return connect_profiled


def _check(connection: Any) -> None:
    if isinstance(connection, ProfiledConnection):
        raise ConfigError("connection", "is wrapped already: every statement would be reported twice")
    kind = type(connection).__name__
    if not callable(getattr(connection, "cursor", None)):
        raise ConfigError("connection", f"a {kind} has no cursor()")
    if any(iscoroutinefunction(getattr(connection, name, None)) for name in ("commit", "execute", "cursor")):
        raise ConfigError("connection", f"a {kind} is asynchronous; those are recorded through SQLAlchemy only")


class _Wrapper:
    """Passes every attribute on, and says it is of the driver's class to whoever asks with isinstance."""

    __slots__ = ("_inner", "_recorder")

    _inner: Any
    _recorder: Recorder

    @property
    def __wrapped__(self) -> Any:
        """The driver's own object."""
        return self._inner

    @property  # type: ignore[misc]  # mypy knows __class__ as a plain attribute
    def __class__(self) -> Any:
        return type(self._inner)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not set yet: somebody makes a copy
            raise AttributeError(name)
        value = getattr(self._inner, name)
        # Here, and not as methods, so that a wrapper has just the ones that its driver has.
        return partial(self._run, name, value) if name in _RECORDED else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._inner, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._inner, name)

    def __dir__(self) -> Iterable[str]:
        return dir(self._inner)

    def __repr__(self) -> str:
        return f"<profiled {self._inner!r}>"

    def __eq__(self, other: object) -> bool:
        return bool(self._inner == getattr(other, "__wrapped__", other))

    def __hash__(self) -> int:
        return hash(self._inner)

    def __exit__(self, *exc: Any) -> Any:
        return self._inner.__exit__(*exc)

    def _run(self, name: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        statement: Any = args[0] if args else next(iter(kwargs.values()), "")  # whatever the driver calls it
        many = None
        try:
            if name == "callproc":
                statement = f"CALL {statement}"
            elif name == "executemany":
                args, many = _counted(args)
        except Exception as error:
            contain("a statement could not be profiled", error)
        began_ns = perf_counter_ns()
        try:
            answer = call(*args, **kwargs)
        except BaseException as error:
            self._recorder.record(statement, began_ns, self._inner, many=many, error=error)
            raise
        # A script leaves behind what the cursor said before it.
        cursor = None if name == "executescript" else answer if isinstance(self, ProfiledConnection) else self._inner
        self._recorder.record(statement, began_ns, cursor, many=many)
        return self._own(answer)

    def _own(self, answer: Any) -> Any:
        """What the driver answered, wrapped if it is a connection or cursor that the application goes on with."""
        raise NotImplementedError


class ProfiledConnection(_Wrapper):
    """A driver's connection, its statements recorded; made by `wrap_connection`."""

    __slots__ = ()

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self._inner = inner
        self._recorder = recorder

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """The driver's own, wrapped."""
        return self._own(self._inner.cursor(*args, **kwargs))

    def __enter__(self) -> Any:
        return self._own(self._inner.__enter__())

    def _own(self, answer: Any) -> Any:
        if answer is self._inner:
            return self
        return ProfiledCursor(answer, self._recorder, self) if hasattr(answer, "fetchone") else answer


class ProfiledCursor(_Wrapper):
    """A driver's cursor, its statements recorded."""

    __slots__ = ("_connection",)

    def __init__(self, inner: Any, recorder: Recorder, connection: ProfiledConnection) -> None:
        self._inner = inner
        self._recorder = recorder
        self._connection = connection

    @property
    def connection(self) -> Any:
        """The wrapped connection, where the driver's cursor has one at all."""
        return self._connection._own(self._inner.connection)

    def __enter__(self) -> Any:
        return self._own(self._inner.__enter__())

    def __iter__(self) -> Iterator[Any]:
        return iter(self._inner)

    def __next__(self) -> Any:
        return next(self._inner)

    def _own(self, answer: Any) -> Any:
        return self if answer is self._inner else answer


def _counted(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[], int] | None]:
    """The arguments of an executemany, and what tells afterwards how many sets of parameters there were.

    An iterator is counted on its way to the driver: nothing else could be done with it but iterate.
    """
    if len(args) < 2:
        return args, None
    sets = args[1]
    if hasattr(sets, "__len__"):
        return args, sets.__len__
    if not hasattr(sets, "__next__"):
        return args, None
    counted = 0

    def one_by_one() -> Iterator[Any]:
        nonlocal counted
        for each in sets:
            counted += 1
            yield each

    return (args[0], one_by_one(), *args[2:]), lambda: counted
