"""How does gunicorn's access log become REQ events?  With a logger class, which gunicorn calls for every request.

    gunicorn --logger-class profilis_mp.gunicorn.AccessLogger --env PROFILIS_DIR=/var/log/shop shop:app

Everything that gunicorn logs otherwise stays as its settings say; ``--access-logfile`` still writes lines of text. The
events are a stream of their own in ``PROFILIS_DIR`` (./logs without it): ``access-{timestamp}.jsonl``.

What an event says besides a REQ event's own keys (`profilis_mp.core.events`) is what ``access_log_format`` asks for,
so who has taken the addresses out of the one log does not find them in the other:

    %(h)s %(u)s            remote_addr, user
    %(r)s                  method, path (also the event's route), query, protocol
    %(m)s %(U)s %(q)s %(H)s   the same one by one
    %(b)s %(B)s            response_bytes
    %(f)s %(a)s            referer, user_agent
    %(p)s                  pid
    %({name}i)s            request_headers, by name; {name}o: response_headers; {name}e: environ

``route`` is ``<hidden>`` where the format asks for no path. Status, duration and time are always there; what the
request does not have is left out. A valid ``traceparent`` header gives the trace.

gunicorn logs a request once its answer is sent: a worker that is killed in between has answered it and not logged it.
Who needs an event for each answer takes the middleware of the framework.
"""

from __future__ import annotations

import re
from typing import Any

from gunicorn.glogging import Logger

from profilis_mp.core.events import Event, req_event
from profilis_mp.core.traceparent import parse_traceparent
from profilis_mp.diagnostics import warn
from profilis_mp.exporters.jsonl import JSONLExporter
from profilis_mp.gunicorn.configured import exporter_of, worker_of
from profilis_mp.interrupts import was_thrown_in

__all__ = ["AccessLogger"]

HIDDEN = "<hidden>"
_ATOM = re.compile(r"%\(((?:\{[^}]+\}[ioe])|[a-zA-Z])\)")
_KEYS = {
    "h": "remote_addr",
    "u": "user",
    "m": "method",
    "U": "path",
    "q": "query",
    "H": "protocol",
    "B": "response_bytes",
    "f": "referer",
    "a": "user_agent",
    "p": "pid",
}
_MEANS = {"r": ("m", "U", "q", "H"), "b": ("B",)}
_GROUPS = {"i": "request_headers", "o": "response_headers", "e": "environ"}


class AccessLogger(Logger):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn's logger, which also writes each access as an event. See the module.

    A log directory that cannot be used stops gunicorn at its start, as an unwritable ``--access-logfile`` does. After
    that nothing is raised: what cannot be written is counted and warned about by the exporter.
    """

    def setup(self, cfg: Any) -> None:
        """Called by gunicorn at the start, and again on a reload."""
        super().setup(cfg)
        self._atoms = _atoms_of(cfg.access_log_format)
        exporter = exporter_of(cfg)
        elder: JSONLExporter | None = getattr(self, "exporter", None)
        if elder is None or elder.dir != exporter.dir:
            if worker_of(cfg) is not None:
                exporter.prepare()  # the workers may not make it, as gunicorn makes its log files for them
            self.exporter = exporter
            if elder is not None:
                elder.close()

    @property
    def access_log_enabled(self) -> bool:
        """Always: worker classes that ask would not call ``access`` otherwise."""
        return True

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Called by gunicorn's workers when a request is done."""
        if getattr(super(), "access_log_enabled", True):  # before gunicorn 24 `access` looks by itself
            super().access(resp, req, environ, request_time)
        try:
            self.exporter.emit(self._event(resp, req, environ, request_time))
        except Exception as error:
            if was_thrown_in(error):
                raise  # it is meant for the application
            warn("gunicorn: access", f"AccessLogger: a request was not reported: {error!r}")

    def _event(self, resp: Any, req: Any, environ: Any, request_time: Any) -> Event:
        atoms: dict[str, Any] = self.atoms(resp, req, environ, request_time)
        extra: dict[str, Any] = {}
        for atom in self._atoms:
            value = atoms.get(atom.lower() if atom.startswith("{") else atom)
            if value in (None, "", "-"):
                continue
            if atom.startswith("{"):
                extra.setdefault(_GROUPS[atom[-1]], {})[atom[1:-2].lower()] = str(value)
            else:
                extra[_KEYS[atom]] = int(value.strip("<>")) if atom == "p" else value
        route = extra.get("path", HIDDEN)
        event = req_event(route, _status(atoms["s"]), int(atoms["D"]) * 1000, **extra)
        trace = parse_traceparent(environ.get("HTTP_TRACEPARENT"))
        if trace is not None:
            event["trace_id"], event["parent_span_id"] = trace
        return event


def _atoms_of(text: str) -> list[str]:
    """Which of the format's atoms an event holds, each once, the line of the request taken apart."""
    found = [one for atom in _ATOM.findall(text) for one in _MEANS.get(atom, (atom,))]
    return list(dict.fromkeys(atom for atom in found if atom in _KEYS or atom.startswith("{")))


def _status(value: Any) -> int:
    return int(str(value).split(None, 1)[0])
