"""Which route did Starlette or FastAPI choose?  They leave it in the scope: this reads it, and imports neither.

The template is what stands in the source, joined: ``/shop/{tenant}/items/{item}`` for a route ``/items/{item}`` of an
application or router that is mounted at ``/shop/{tenant}``. Below a mounted application that shows no routes, static
files for instance, it is the mount's: ``/static/{path}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["find_route"]

_FULL = 2  # starlette.routing.Match


def find_route(scope: Mapping[str, Any]) -> str | None:
    """Return the template of the route that a request has, or missed by its method only; None: none fits or shows."""
    template = getattr(_chosen(scope), "path", None)
    if isinstance(template, str):
        return f"{_mounted(template, scope)}{template}"
    if "endpoint" not in scope:
        return None
    # What an older Starlette leaves is the endpoint alone, and so does FastAPI for routes of Starlette's own class.
    return _searched(*_as_it_came(scope))


def _chosen(scope: Mapping[str, Any]) -> Any:
    """The innermost route, if it was left in the scope and is one that ends there."""
    route = scope.get("route")
    fastapi = scope.get("fastapi")
    included = fastapi.get("effective_route_context") if isinstance(fastapi, Mapping) else None
    if included is not None and (route is None or getattr(included, "original_route", None) is route):
        # Of a router that was included with a prefix: the route alone has its path without it.
        route = getattr(included, "starlette_route", None) or included
    return None if hasattr(route, "routes") else route


def _as_it_came(scope: Mapping[str, Any]) -> tuple[Iterable[Any], dict[str, Any]]:
    """The outermost router's routes, and the scope as they got it."""
    routes = getattr(scope.get("router") or scope.get("app"), "routes", ())
    # Starlette notes the root path of the application before a mount adds its own.
    return routes, {**scope, "root_path": scope.get("app_root_path", scope.get("root_path", "")), "path_params": {}}


def _mounted(template: str, scope: Mapping[str, Any]) -> str:
    """The templates of the mounts below which the route is."""
    root = scope.get("root_path", "")
    outer = scope.get("app_root_path", root)
    mounted = root[len(outer) :] if root.startswith(outer) else ""
    own = set(re.findall(r"{(\w+)", template))
    names = {str(value): name for name, value in scope.get("path_params", {}).items() if name not in own}
    if not mounted or not names:
        return str(mounted)
    found = _mounts(*_as_it_came(scope), root)
    if found is not None:
        return found
    # Where a router that FastAPI includes hides the mount: values by the names of the parameters that they are of.
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in mounted.split("/"))


def _mounts(routes: Iterable[Any], scope: dict[str, Any], root: str) -> str | None:
    """Go the router's way again as far as the last mount, which leads to ``root``."""
    for route in routes:
        below = getattr(route, "routes", None)
        if below is None:
            continue
        match, child = route.matches(scope)
        if match.value:
            here = getattr(route, "path", "")  # a Host has none
            if child.get("root_path") == root:
                return str(here)
            inner = _mounts(below, {**scope, **child}, root)
            return None if inner is None else f"{here}{inner}"
    return None


def _searched(routes: Iterable[Any], scope: dict[str, Any]) -> str | None:
    """Go the router's way again."""
    missed: str | None = None
    for route in routes:
        match, child = route.matches(scope)
        if not match.value:
            continue
        template = getattr(route, "path", "")
        if match.value != _FULL:
            missed = missed or template
            continue
        below = getattr(route, "routes", None)
        if below is None:
            return str(template)
        if not below:
            return f"{template}/{{path}}"
        inner = _searched(below, {**scope, **child})
        return None if inner is None else f"{template}{inner}"
    return missed
