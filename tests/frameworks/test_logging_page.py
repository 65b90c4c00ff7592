"""What docs/logging.md shows is run: with the real Django, structlog, loguru and concurrent-log-handler."""

from __future__ import annotations

import inspect
import logging.handlers
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from concurrent_log_handler import ConcurrentRotatingFileHandler

from profilis_mp.account import segments_of
from profilis_mp.logging import JSONLHandler

PAGE = (Path(__file__).parents[2] / "docs" / "logging.md").read_text()


def block(marker: str) -> str:
    (found,) = [
        code for code in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if marker in code
    ]
    return str(found)


def run(code: str, directory: Path) -> str:
    """Run a program, and return what it said."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=100, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def lines(directory: Path, name: str = "") -> list[str]:
    paths = [path for path in segments_of(str(directory / "logs")) if os.path.basename(path).startswith(name)]
    return [line for path in paths for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("marker", ["basicConfig", "structlog.configure", "logger.add"])
def test_the_pages_code_writes_what_it_says(tmp_path: Path, marker: str) -> None:
    assert run(block(marker), tmp_path) == ""
    (event,) = [orjson.loads(line) for line in lines(tmp_path)]
    assert (event["kind"], event["level"]) == ("LOG", "INFO")
    assert event["message"].startswith("paid")
    assert event.get("order", event.get("user")) == 7


DJANGO = """
import logging, sys
import django
from django.conf import settings
from django.http import HttpResponse
from django.test import Client
from django.urls import path

def fail(request):
    raise KeyError("no such order")

def show(request, number):
    logging.getLogger("shop.orders").info("shown %d", number, extra={"order": number})
    return HttpResponse("ok")

urlpatterns = [path("fail", fail), path("orders/<int:number>", show)]
settings.configure(LOGGING=LOGGING, ROOT_URLCONF=sys.modules["__main__"], ALLOWED_HOSTS=["*"], SECRET_KEY="x")
django.setup()
client = Client(raise_request_exception=False)
assert client.get("/orders/7").status_code == 200
assert client.get("/fail").status_code == 500
assert client.get("/missing").status_code == 404
"""


def test_djangos_own_log_goes_through_the_pages_settings(tmp_path: Path) -> None:
    run(block("LOGGING = {") + DJANGO, tmp_path)
    shown, failed, missing = [orjson.loads(line) for line in lines(tmp_path, "django-")]
    assert (shown["logger"], shown["message"], shown["order"]) == ("shop.orders", "shown 7", 7)
    assert (failed["logger"], failed["level"], failed["status_code"]) == ("django.request", "ERROR", 500)
    assert (failed["exception_type"], failed["request"]) == ("KeyError", "<WSGIRequest: GET '/fail'>")
    assert failed["_altered"] == {"request": "WSGIRequest"}
    assert failed["traceback"].endswith("KeyError: 'no such order'")
    assert (missing["level"], missing["status_code"], missing["message"]) == ("WARNING", 404, "Not Found: /missing")
    plain = lines(tmp_path, "plain-")
    assert plain[0].endswith("INFO shop.orders shown 7")
    assert plain[1].endswith("ERROR django.request Internal Server Error: /fail")
    assert plain[2] == "Traceback (most recent call last):"


INI = """
[loggers]
keys=root
[handlers]
keys=shared
[formatters]
keys=
[logger_root]
level=INFO
handlers=shared
[handler_shared]
class=profilis_mp.logging.JSONLHandler
kwargs={"filename": "logs/app.log", "maxBytes": 10000}
"""

QUEUE = """
import logging.config
logging.config.dictConfig({
    "version": 1,
    "handlers": {
        "shared": {"class": "profilis_mp.logging.JSONLHandler", "filename": "logs/app.log"},
        "queue": {"class": "logging.handlers.QueueHandler", "handlers": ["shared"]},
    },
    "root": {"level": "INFO", "handlers": ["queue"]},
})
queue = logging.getHandlerByName("queue")
queue.listener.start()
logging.getLogger("shop").info("paid")
queue.listener.stop()
"""


def test_an_ini_file_configures_the_handler(tmp_path: Path) -> None:
    (tmp_path / "logging.ini").write_text(INI)
    run("import logging.config\nlogging.config.fileConfig('logging.ini')\nlogging.info('paid')", tmp_path)
    assert [orjson.loads(line)["message"] for line in lines(tmp_path, "app-")] == ["paid"]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="dictConfig makes listeners since Python 3.12")
def test_a_queue_that_the_dictionary_asks_for_ends_in_the_handler(tmp_path: Path) -> None:
    run(QUEUE, tmp_path)
    assert [orjson.loads(line)["logger"] for line in lines(tmp_path, "app-")] == ["shop"]


@pytest.mark.parametrize("handler", [logging.handlers.RotatingFileHandler, ConcurrentRotatingFileHandler])
def test_the_file_handlers_own_defaults_are_accepted_written_out(tmp_path: Path, handler: Any) -> None:
    """All but one: nothing like concurrent-log-handler's way to leave characters out is done here."""
    parameters = inspect.signature(handler).parameters
    defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}
    defaults.pop("unicode_error_policy", None)
    JSONLHandler(tmp_path / "app.log", **defaults).close()


def test_the_page_names_every_argument_of_the_file_handlers() -> None:
    for handler in (logging.handlers.RotatingFileHandler, ConcurrentRotatingFileHandler):
        for name in inspect.signature(handler).parameters:
            assert f"`{name}`" in PAGE, name
