"""How is an exporter configured by environment variables?

One variable per option of its constructor: ``PROFILIS_`` and the option's name in capitals.

    >>> from profilis_mp import JSONLExporter
    >>> arguments_from({"PROFILIS_DIR": "/var/log/shop", "PROFILIS_ROTATE_SECS": "1h", "PATH": "/bin"}, JSONLExporter)
    {'dir': '/var/log/shop', 'rotate_secs': 3600.0}
    >>> arguments_from({"PROFILIS_ROTATE_BITES": "1MB"}, JSONLExporter)
    Traceback (most recent call last):
    ...
    profilis_mp.errors.ConfigError: PROFILIS_ROTATE_BITES: is no option of JSONLExporter; PROFILIS_ROTATE_BYTES is

The prefix is ours: whatever else begins with it is a mistake and refused, because a misspelt limit is no limit. Let
through are ``PROFILIS_DEBUG``, which is read elsewhere, and what Kubernetes and Docker set in every container that runs
beside a service of that name (``PROFILIS_PORT``, ``PROFILIS_UI_SERVICE_HOST``, ``PROFILIS_PORT_80_TCP_ADDR`` …).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from profilis_mp.errors import ConfigError
from profilis_mp.exporters.options import options_of

__all__ = ["PREFIX", "arguments_from", "built_from", "variable_of"]

PREFIX = "PROFILIS_"

_T = TypeVar("_T")

_READ_ELSEWHERE = frozenset({"PROFILIS_DEBUG"})
_OF_A_SERVICE = re.compile(
    r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)


def variable_of(option: str, prefix: str = PREFIX) -> str:
    """Return the variable that an option is read from."""
    return prefix + option.upper()


def arguments_from(environ: Mapping[str, str], kind: type, prefix: str = PREFIX) -> dict[str, Any]:
    """Return the arguments that the environment has for a class's constructor.

    Raises:
        ConfigError: Naming the variable that is unknown, or whose value is none that the option can have.
    """
    if not isinstance(prefix, str) or not prefix:
        raise ConfigError("prefix", f"{prefix!r} is no beginning of a variable's name")
    options = {variable_of(name, prefix): option for name, option in options_of(kind).items()}
    arguments: dict[str, Any] = {}
    for variable in sorted(name for name in environ if name.startswith(prefix)):
        option = options.get(variable)
        if option is None:
            if variable in _READ_ELSEWHERE or _OF_A_SERVICE.fullmatch(variable, len(prefix)):
                continue
            raise ConfigError(variable, f"is no option of {kind.__name__}{_nearest(variable, options, prefix)}")
        text = environ[variable]
        if not text.strip():
            raise ConfigError(variable, f"is empty; unset it, or give it {option.expected.replace('`', '')}")
        try:
            arguments[option.name] = option.parse(text)
        except ValueError as error:
            raise ConfigError(variable, str(error)) from None
    return arguments


def built_from(kind: type[_T], environ: Mapping[str, str], prefix: str, overrides: Mapping[str, Any]) -> _T:
    """Return an instance made as the environment says, and as ``overrides`` say before it.

    Raises:
        ConfigError: Naming the variable, or the argument where the environment does not have it.
    """
    arguments = arguments_from(environ, kind, prefix)
    try:
        return kind(**{**arguments, **overrides})
    except ConfigError as error:
        if error.argument in arguments and error.argument not in overrides:
            raise ConfigError(variable_of(error.argument, prefix), error.reason) from None
        raise


def _nearest(variable: str, options: Mapping[str, Any], prefix: str) -> str:
    import difflib  # 4 ms that only a mistake costs

    names = {name[len(prefix) :]: name for name in options}
    nearest = difflib.get_close_matches(variable[len(prefix) :].upper(), names, n=1)
    return f"; {names[nearest[0]]} is" if nearest else f"; its options are {', '.join(options)}"
