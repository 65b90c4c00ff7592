"""Was this exception raised by what was called, or thrown in by a signal handler meanwhile?

A soft time limit or a Ctrl-C is meant for the application: whoever catches an exception in order to mend what raised it
must not catch that. The exception's traceback tells: its innermost frames are the handler's.

    >>> try:
    ...     [].pop()
    ... except IndexError as error:
    ...     was_thrown_in(error)
    False
"""

from __future__ import annotations

import signal
from functools import partial
from types import CodeType

__all__ = ["was_thrown_in"]


def was_thrown_in(error: BaseException) -> bool:
    """Whether a function that is now the handler of a signal appears in the traceback of ``error``."""
    traceback = error.__traceback__
    if traceback is None or traceback.tb_next is None:
        return False  # raised by the very function that caught it, or by C code that it called
    codes: set[CodeType] = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        function = getattr(handler, "__func__", handler)  # of a bound method
        if not hasattr(function, "__code__") and handler is not None:
            function = getattr(type(handler), "__call__", None)  # noqa: B004  # of a callable object
        code = getattr(function, "__code__", None)
        if code is not None:
            codes.add(code)
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False
