"""How does every statement of a SQLAlchemy engine become exactly one DB event?

By the engine's own events, around each call of the driver: of Core, of the ORM, textual, server-side defaults and
sequences. What SQLAlchemy does with a connection and not for the application is not a statement: what it asks when it
connects for the first time, the pool's pings, BEGIN, COMMIT and ROLLBACK. What the event says:
`profilis_mp.dbapi.recorder`.

An INSERT of many rows that SQLAlchemy sends as several statements (insertmanyvalues) is as many events. Each has the
text of one row's INSERT, so that batches of all sizes count together, and its number of rows as ``executemany``.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from profilis_mp.dbapi.recorder import Recorder, contain
from profilis_mp.dbapi.redaction import MAX_LEN, redact_statement
from profilis_mp.errors import ConfigError

try:
    from sqlalchemy import Engine, event
except ImportError as error:
    raise ImportError('instrument_engine needs SQLAlchemy 2: pip install "profilis_mp[sqlalchemy]"') from error

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["instrument_async_engine", "instrument_engine", "redact_statement", "uninstrument"]


def instrument_engine(engine: Engine, emitter: Any, *, redact: bool = True, max_len: int = MAX_LEN) -> None:
    """Record every statement that an engine executes from now on.

        >>> from sqlalchemy import create_engine, text
        >>> from profilis_mp.core.async_collector import AsyncCollector
        >>> from profilis_mp.core.emitter import Emitter
        >>> events = []
        >>> collector = AsyncCollector(events.extend)
        >>> engine = create_engine("sqlite://")
        >>> instrument_engine(engine, Emitter(collector))
        >>> with engine.connect() as connection:
        ...     connection.execute(text("SELECT 'secret'")).scalar()
        'secret'
        >>> collector.close(), [(event["query"], event["db_vendor"]) for event in events]
        (True, [('SELECT ?', 'sqlite')])

    It may be done before a fork or after it, and outlives ``engine.dispose()``. An engine made by
    ``engine.execution_options()`` is recorded with its parent; where it is instrumented itself, by itself alone.
    Whatever fails here is logged and fails no statement.

    Args:
        engine: A synchronous engine. Once only; `uninstrument` ends it.
        emitter: An `Emitter`, or a collector, or an exporter.
        redact: False leaves literals and comments in the text.
        max_len: Longer text is cut and ends in ``…``; 0 never cuts.

    Raises:
        ConfigError: Naming the argument that was refused. The engine is untouched.
    """
    if not isinstance(engine, Engine):
        better = "; that is for instrument_async_engine" if hasattr(engine, "sync_engine") else ""
        raise ConfigError("engine", f"a {type(engine).__name__} is no Engine{better}")
    if engine in _hooks:
        raise ConfigError("engine", "is instrumented already: every statement would be reported twice")
    hooks = _Hooks(Recorder(emitter, engine.dialect.name, redact=redact, max_len=max_len))
    # Ours is the last before the driver and the first after it: other listeners' time is not the database's, and one
    # that raises keeps nothing from us.
    event.listen(engine, "before_cursor_execute", hooks.before, retval=True)
    event.listen(engine, "after_cursor_execute", hooks.after, insert=True)
    event.listen(engine, "handle_error", hooks.failed, insert=True)
    _hooks[engine] = hooks


def instrument_async_engine(
    async_engine: AsyncEngine, emitter: Any, *, redact: bool = True, max_len: int = MAX_LEN
) -> None:
    """The same for an engine of ``create_async_engine``; arguments as for `instrument_engine`."""
    engine = getattr(async_engine, "sync_engine", None)
    if not isinstance(engine, Engine):
        raise ConfigError("async_engine", f"a {type(async_engine).__name__} is no AsyncEngine")
    instrument_engine(engine, emitter, redact=redact, max_len=max_len)


def uninstrument(engine: Engine | AsyncEngine) -> bool:
    """Record no more statements of an engine, of either kind; return whether any were recorded before."""
    sync: Any = getattr(engine, "sync_engine", engine)
    hooks = _hooks.pop(sync, None)
    if hooks is None:
        return False
    event.remove(sync, "before_cursor_execute", hooks.before)
    event.remove(sync, "after_cursor_execute", hooks.after)
    event.remove(sync, "handle_error", hooks.failed)
    return True


class _Hooks:
    """What one engine's events call.

    A statement that is under way is noted in its execution context, with whoever noted it first. So it is reported
    once, whether it ends well or not, and however many instrumented engines see it. An error while a result is fetched
    belongs to no statement under way.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        # Bound once: SQLAlchemy finds a listener again by its identity.
        self.before = self._before
        self.after = self._after
        self.failed = self._failed

    def _before(
        self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        try:
            noted = context.__dict__
            pending = noted.get(_UNDER_WAY)
            if pending is None or pending.hooks is self:
                noted[_UNDER_WAY] = _UnderWay(self, context, parameters) if executemany else _UnderWay(self)
        except Exception as error:
            contain("a statement could not be profiled", error)
        return statement, parameters

    def _after(
        self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> None:
        try:
            pending = context.__dict__.get(_UNDER_WAY)
            if pending is None or pending.hooks is not self:
                return
            del context.__dict__[_UNDER_WAY]
            self._recorder.record(pending.of_a_row or statement, pending.began_ns, cursor, many=pending.many)
        except Exception as error:
            contain("a statement was not reported", error)

    def _failed(self, about: Any) -> None:
        try:
            context = about.execution_context
            pending = None if context is None else context.__dict__.get(_UNDER_WAY)
            if pending is None or pending.hooks is not self:
                return
            del context.__dict__[_UNDER_WAY]
            self._recorder.record(
                pending.of_a_row or about.statement,
                pending.began_ns,
                None,
                many=pending.many,
                error=about.original_exception,
            )
        except Exception as error:
            contain("a failed statement was not reported", error)


class _UnderWay:
    """A statement that the driver has been given.

    Attributes:
        of_a_row: The text of one row's INSERT, where this is a batch of insertmanyvalues.
        many: How many sets of parameters; None is one.
    """

    __slots__ = ("began_ns", "hooks", "many", "of_a_row")

    def __init__(self, hooks: _Hooks, many_of: Any = None, parameters: Any = ()) -> None:
        self.hooks = hooks
        self.of_a_row: str | None = None
        self.many: int | None = None
        if many_of is not None:
            if many_of.execute_style.name == "INSERTMANYVALUES":
                self.of_a_row = many_of.statement
                self.many = _rows_in_batch(many_of, parameters)
            else:
                self.many = len(parameters)
        self.began_ns = perf_counter_ns()


_UNDER_WAY = "_profilis_mp_under_way"
_hooks: WeakKeyDictionary[Engine, _Hooks] = WeakKeyDictionary()


def _rows_in_batch(context: Any, parameters: Any) -> int | None:
    """Return how many rows an insertmanyvalues' batch has; only its flattened parameters are to be seen.

    Those that stand outside of VALUES (an ON CONFLICT's) are in it once.
    """
    one = context.parameters[0]
    if isinstance(parameters, dict):
        once = sum(name in parameters for name in one)
        return 1 if once == len(one) else (len(parameters) - once) // (len(one) - once)
    of_a_row = getattr(context.compiled, "_insertmanyvalues", None)
    of_a_row = getattr(of_a_row, "num_positional_params_counted", 0)
    return (len(parameters) - len(one)) // of_a_row + 1 if of_a_row else None
