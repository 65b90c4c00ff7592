"""The command ``profilis-mp``, also ``python -m profilis_mp``.

It needs the extra ``cli`` (Click and Rich). What a command calls is imported when it runs: ``profilis-mp --help`` loads
neither Rich nor the encoder. Nothing outside this package imports it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]

_UNUSABLE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; None takes the process's.

    Returns:
        The exit status: 0; 1 when something is wrong with the log; 2 when the command line is wrong, or there is no
        log to look at. What a signal or a closed pipe ends has 128 and the signal's number, as a shell would say it.
    """
    try:
        try:
            from profilis_mp.cli.app import run
        except ModuleNotFoundError as error:
            if error.name != "click":
                raise
            print("profilis-mp: the command line needs Click: pip install 'profilis_mp[cli]'", file=sys.stderr)
            return _UNUSABLE
        status = run(arguments)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    try:
        sys.stdout.flush()
    except OSError:
        # It was said already. What is left in the buffer has nowhere to go, and the interpreter must not try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status
