"""The code on the frameworks' pages runs as it stands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import django
import httpx
import pytest
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.test import override_settings
from django.urls import path
from werkzeug.test import Client

from profilis_mp import read_events

ROOT = Path(__file__).parents[2]
PAGES = ["asgi.md", "django.md", "flask.md", "functions.md", "wsgi.md"]

if not settings.configured:
    settings.configure(SECRET_KEY="only in tests")
django.setup()


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    return {"__name__": "example", "BASE_DIR": tmp_path, "MIDDLEWARE": []}


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def run(page: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run each block of a page's code, in one namespace; returns this namespace as it is after each."""
    after = []
    for block in blocks(page):
        exec(block, names)
        after.append(dict(names))
    return after


def routes(names: dict[str, Any]) -> list[str]:
    names["collector"].close()
    with read_events("./logs") as events:
        return [event["route"] for event in events]


def test_flasks_page(names: dict[str, Any]) -> None:
    page, factory = run("flask.md", names)
    assert page["app"].test_client().get("/users/7").text == "user 7"
    factory["create_app"]().test_client().get("/nothing")
    assert routes(names) == ["/users/<int:user>", "<unmatched>"]


def test_wsgis_page(names: dict[str, Any]) -> None:
    (page,) = run("wsgi.md", names)
    assert Client(page["application"]).get("/x").text == "hello"
    assert routes(names) == ["<unmatched>"]


def test_asgis_page(names: dict[str, Any]) -> None:
    async def get(app: Any, path: str) -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.test") as client:
            await client.get(path)

    async def start_and_stop(app: Any) -> None:
        messages = iter(({"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}))
        answers: list[str] = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            answers.append(message["type"])

        await app({"type": "lifespan"}, receive, send)
        assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    page, with_lifespan = run("asgi.md", names)
    asyncio.run(get(page["app"], "/users/7"))
    asyncio.run(start_and_stop(with_lifespan["app"]))
    with read_events("./logs") as events:  # flushed by the lifespan's end
        assert [event["route"] for event in events] == ["/users/{user}"]


def test_djangos_page(names: dict[str, Any]) -> None:
    urls = (path("users/<int:pk>/", lambda request, pk: HttpResponse(str(pk))),)
    as_settings, as_application = blocks("django.md")
    exec(as_settings, names)
    ours = {"MIDDLEWARE": names["MIDDLEWARE"], "PROFILIS": names["PROFILIS"]}
    with override_settings(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], **ours):
        assert Client(get_wsgi_application()).get("/users/7/", buffered=True).text == "7"
        exec(as_application, names)
        assert Client(names["application"]).get("/users/8/", buffered=True).text == "8"
    assert routes(names["PROFILIS"]) == ["/users/<int:pk>/"] * 2


def test_functions_page(names: dict[str, Any]) -> None:
    run("functions.md", names)
    names["emitter"]._collector.close()
    with read_events("./logs") as events:
        *prices, total = events
    assert [event["fn"] for event in prices] == ["price", "price"]
    assert {event["parent_span_id"] for event in prices} == {total["span_id"]}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_test_on_a_page_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
    for target in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / target).exists(), target


def test_the_page_of_functions_shows_the_benchmarks_own_figures() -> None:
    result = (ROOT / "benchmarks" / "results" / "profile_function.txt").read_text()
    figures = [line for line in result.splitlines() if line.endswith(" us")]
    assert len(figures) == 4
    assert "\n".join(figures) in (ROOT / "docs" / "functions.md").read_text()
