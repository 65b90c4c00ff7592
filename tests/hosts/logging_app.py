"""A WSGI application that knows nothing of profilis_mp and logs; what its logs go through, gunicorn is told.

Nothing happens at import: gunicorn calls ``make``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any


def make() -> Callable[..., Iterable[bytes]]:
    logger = logging.getLogger("shop.orders")
    logger.info("made", extra={"request": "make"})

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = environ["PATH_INFO"][1:]
        try:
            if number.isdigit() and int(number) % 7 == 0:
                raise KeyError(number)
            logger.info("order %s", number, extra={"request": number})
        except KeyError:
            logger.exception("no order %s", number, extra={"request": number})
        start_response("200 OK", [("Content-Length", str(len(number)))])
        return [number.encode()]

    return app
