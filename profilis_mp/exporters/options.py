"""Which options does an exporter take, and what does one mean when it is written as text?

Read off the constructor's signature, so that an option that is added there is known to the environment
(`profilis_mp.exporters.environment`) and to logging configurations (`profilis_mp.logging`) at once. The annotation says
what is meant: a ``float`` is a duration, an ``int`` is a size where the name ends in ``_bytes`` or ``_size`` and a mode
(octal) where it ends in ``_mode``. What nobody can write, a function for instance, is no option here.

    >>> from profilis_mp import JSONLExporter
    >>> options = options_of(JSONLExporter)
    >>> options["rotate_bytes"].parse("64KiB"), options["file_mode"].parse("0640"), options["max_age_secs"].parse("7d")
    (65536, 416, 604800.0)
    >>> options["janitor"].parse("external"), options["janitor"].parse("off"), options["max_files"].parse("none")
    ('external', False, None)
    >>> "clock" in options
    False
"""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from profilis_mp.units import bytes_of, seconds_of

__all__ = ["Option", "mode_of", "number_of", "options_of"]

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_KINDS: tuple[tuple[type, str], ...] = ((bool, "switch"), (int, "number"), (float, "duration"), (str, "text"))


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a constructor.

    Attributes:
        name: The argument's name.
        default: What it is when nobody says; ``inspect.Parameter.empty`` where somebody has to.
        kinds: What its text may be: ``switch``, ``size``, ``mode``, ``number``, ``duration``, ``text``, ``none``.
        choices: Words that it may be.
    """

    name: str
    default: Any
    kinds: frozenset[str]
    choices: tuple[str, ...]

    @property
    def expected(self) -> str:
        """What its text looks like, for documents and errors."""
        shown = {
            "switch": "`true` or `false`",
            "size": "a size (`10MB`, `64KiB`)",
            "mode": "an octal mode (`0640`)",
            "number": "a whole number",
            "duration": "a duration (`0.5s`, `1h`, `7d`)",
            "text": "text",
            "none": "`none`",
        }
        parts = [shown[kind] for kind in shown if kind in self.kinds and kind != "none"]
        parts += [f"`{choice}`" for choice in self.choices]
        parts += [shown["none"]] if "none" in self.kinds else []
        return ", ".join(parts)

    def parse(self, text: str) -> Any:
        """Return what the text means.

        Raises:
            ValueError: Saying what was expected.
        """
        word = text.strip().lower()
        if "none" in self.kinds and word == "none":
            return None
        if word in self.choices:
            return word
        if "switch" in self.kinds and word in _WORDS:
            return _WORDS[word]
        reason = f"{text!r} is not {self.expected.replace('`', '')}"
        for kind, read in (("mode", mode_of), ("size", bytes_of), ("number", number_of), ("duration", seconds_of)):
            if kind in self.kinds:
                try:
                    return read(text)
                except ValueError as error:
                    reason = str(error) or reason
        if "text" in self.kinds:
            return text
        raise ValueError(reason)


def options_of(kind: type) -> dict[str, Option]:
    """Return the options of a class's constructor by name, those that it hands on with ``**options`` included."""
    options: dict[str, Option] = {}
    for parameter, annotation in _parameters(kind):
        kinds, choices = _meaning(parameter.name, annotation)
        if kinds - {"none"} or choices:
            options.setdefault(parameter.name, Option(parameter.name, parameter.default, kinds, choices))
    return options


def _parameters(kind: type) -> Iterator[tuple[inspect.Parameter, Any]]:
    for one in kind.__mro__:
        constructor = vars(one).get("__init__")
        if constructor is None:
            continue
        hands_on = False
        parameters = list(inspect.signature(constructor).parameters.values())
        for parameter in parameters[1:]:
            hands_on = hands_on or parameter.kind is parameter.VAR_KEYWORD
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                yield parameter, _annotation(parameter, getattr(constructor, "__globals__", {}))
        if not hands_on:
            return


def _annotation(parameter: inspect.Parameter, names: dict[str, Any]) -> Any:
    """What the parameter is annotated with; where nothing, or nothing that can be found, the type of its default."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)  # as typing.get_type_hints does, one at a time
        except Exception:  # imported under TYPE_CHECKING only, or no Python at all
            annotation = parameter.empty
    if isinstance(annotation, str):  # a string within one
        annotation = parameter.empty
    if annotation is not parameter.empty:
        return annotation
    return str if parameter.default is parameter.empty else type(parameter.default)


def _meaning(name: str, annotation: Any) -> tuple[frozenset[str], tuple[str, ...]]:
    kinds: set[str] = set()
    choices: list[str] = []
    for member in get_args(annotation) if _is_union(annotation) else (annotation,):
        if member is None or member is types.NoneType:
            kinds.add("none")
        elif get_origin(member) is Literal:
            choices += [choice for choice in get_args(member) if isinstance(choice, str)]
        elif member is os.PathLike or get_origin(member) is os.PathLike:
            kinds.add("text")
        elif isinstance(member, type):
            kinds |= {kind for base, kind in _KINDS if member is base}
    if "number" in kinds and name.endswith(("_bytes", "_size", "_mode")):
        kinds = (kinds - {"number"}) | {"mode" if name.endswith("_mode") else "size"}
    return frozenset(kinds), tuple(choices)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def mode_of(text: str) -> int:
    """Permissions, in octal digits.

    Raises:
        ValueError: They are none.
    """
    digits = text.strip().lower().removeprefix("0o")
    if not digits.isascii() or not digits.isdigit() or set(digits) & {"8", "9"}:
        raise ValueError(f"{text!r} is no octal mode such as 0640")
    return int(digits, 8)


def number_of(text: str) -> int:
    """A whole number.

    Raises:
        ValueError: It is none.
    """
    digits = text.strip()
    if not digits.isascii() or not digits.removeprefix("-").isdigit() or len(digits) > 20:
        raise ValueError(f"{text!r} is no whole number")
    return int(digits)
