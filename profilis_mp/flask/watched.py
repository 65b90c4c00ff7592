"""What does Flask know of a request: which route it has, and whether an exception was only a way to answer?"""

from __future__ import annotations

from typing import Any

import flask
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from profilis_mp.web.request import UNMATCHED

__all__ = ["is_answer", "is_page", "template"]


def template(request: Any) -> str:
    """Return the template of the route that a request of Flask's has, or missed by its method only."""
    if request.url_rule is not None:
        return str(request.url_rule.rule)
    missed = request.routing_exception
    if isinstance(missed, MethodNotAllowed) and missed.valid_methods:
        adapter = flask.current_app.create_url_adapter(request)
        if adapter is not None:
            try:
                rule, _ = adapter.match(method=next(iter(missed.valid_methods)), return_rule=True)
            except HTTPException:
                return UNMATCHED
            return str(rule.rule)
    return UNMATCHED


def is_page(value: object) -> bool:
    """Return whether a response is to be made from an exception alone, by the text that it has."""
    return isinstance(value, HTTPException) and value.response is None


def is_answer(error: BaseException, request: Any) -> bool:
    """Return whether an exception is only a way to answer: a redirect, a finished response, the router's 404 or 405."""
    if not isinstance(error, HTTPException):
        return False
    return error is request.routing_exception or error.response is not None or (error.code or 500) < 400
