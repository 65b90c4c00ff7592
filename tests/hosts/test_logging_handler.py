"""Many processes log through the standard library's `logging`, and are killed: what was logged is there once."""

from __future__ import annotations

import collections
import itertools
import logging
import logging.config
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from checks import check_log
from log_servers import clients_of, end, gunicorn, kill_workers
from processes import Acknowledgements, fork, reap, wait_until

from profilis_mp import recover
from profilis_mp.account import segments_of, take_account
from profilis_mp.logging import JSONLHandler

ROTATE_BYTES = 32 * 1024
PROCESSES = 4
SECONDS = 3.0
MOST_WORKERS = 400


def storm(work: Callable[[int, Acknowledgements], None], dice: random.Random) -> tuple[dict[int, int], int]:
    """Keep some workers busy and kill them one by one; returns what they had acknowledged, and the kills."""
    acknowledged = Acknowledgements(MOST_WORKERS)
    numbers = itertools.count()
    living: list[int] = []
    kills = 0
    deadline = time.monotonic() + SECONDS
    try:
        while time.monotonic() < deadline and kills < MOST_WORKERS - PROCESSES:
            while len(living) < PROCESSES:
                number = next(numbers)
                living.append(fork(lambda number=number: work(number, acknowledged)))  # type: ignore[misc]
            total = acknowledged.total()
            wait_until(lambda total=total: acknowledged.total() > total + 50, what="workers log")  # type: ignore[misc]
            time.sleep(dice.uniform(0, 0.1))
            victim = living.pop(dice.randrange(len(living)))
            os.kill(victim, signal.SIGKILL)
            assert reap(victim) == -signal.SIGKILL
            kills += 1
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)
            reap(pid)
    return acknowledged.by_worker(), kills


@pytest.mark.parametrize("made", ["before the fork", "in each worker"])
def test_every_record_whose_log_call_returned_is_there_once(tmp_path: Path, made: str) -> None:
    seed = random.randrange(1 << 32)
    directory = tmp_path / "logs"

    def make() -> logging.Logger:
        logger = logging.Logger("shop")
        logger.addHandler(JSONLHandler(directory / "shop.log", maxBytes=ROTATE_BYTES))
        return logger

    before = make()
    before.info("the parent has logged already", extra={"worker": MOST_WORKERS, "seq": 0})
    parents, stop = itertools.count(1), threading.Event()

    def log_while_others_fork() -> None:
        while not stop.wait(0.001):
            before.info("and goes on to", extra={"worker": MOST_WORKERS, "seq": next(parents)})

    def work(worker: int, acknowledged: Acknowledgements) -> None:
        logger = before if made == "before the fork" else make()
        for number in itertools.count():
            try:
                if number % 10 == 9:
                    raise ValueError(number)
                logger.info("record %d", number, extra={"worker": worker, "seq": number})
            except ValueError:
                logger.exception("record %d", number, extra={"worker": worker, "seq": number})
            acknowledged[worker] = number + 1

    thread = threading.Thread(target=log_while_others_fork)
    thread.start()
    try:
        acknowledged, kills = storm(work, random.Random(seed))
    finally:
        stop.set()
        thread.join()
    before.handlers[0].close()
    assert not recover(directory).failures
    context = f"seed {seed}, {kills} kills"
    acknowledged[MOST_WORKERS] = next(parents)
    account = check_log(directory, acknowledged, rotate_bytes=ROTATE_BYTES, context=context)
    assert kills >= 3, context
    assert account.segments > 5, context


def test_plain_lines_and_records_of_several_are_whole_and_there_once(tmp_path: Path) -> None:
    """Each third record is of two lines: they belong together, in one segment, with nothing between them."""
    seed = random.randrange(1 << 32)
    directory = tmp_path / "logs"
    logger = logging.Logger("shop")
    logger.addHandler(JSONLHandler(directory / "shop.log", maxBytes=ROTATE_BYTES, format="text"))

    def work(worker: int, acknowledged: Acknowledgements) -> None:
        number = 0
        while True:
            line = f'{{"worker":{worker},"seq":%d,"part":%d}}'
            if number % 4:
                logger.info(line, number, 0)
                number += 1
            else:
                logger.info(f"{line}\n{line}", number, 1, number + 1, 2)
                number += 2
            acknowledged[worker] = number

    acknowledged, kills = storm(work, random.Random(seed))
    logger.handlers[0].close()
    assert not recover(directory).failures
    context = f"seed {seed}, {kills} kills"
    account = take_account(str(directory), acknowledged, rotate_bytes=ROTATE_BYTES)
    assert account.balanced, f"{context}: {account}"
    assert kills >= 3, context
    pairs = 0
    for path in segments_of(str(directory)):
        lines = [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]
        for first, second in itertools.pairwise([{"part": 0}, *lines, {"part": 0}]):
            assert (first["part"] == 1) == (second["part"] == 2), f"{context}: {path}: {first}, {second}"
            if first["part"] == 1:
                assert (first["worker"], first["seq"] + 1) == (second["worker"], second["seq"]), f"{context}: {path}"
                pairs += 1
    assert pairs > 50, context


def configuration(directory: str) -> dict[str, Any]:
    """Both ways in which dictConfig makes a handler, with values as YAML and JSON may have them."""
    shared = {"filename": f"{directory}/jobs.jsonl", "maxBytes": "32KiB", "backupCount": 0, "delay": "true"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"span": {"()": "profilis_mp.logging.SpanFilter"}},
        "handlers": {
            "jobs": {"class": "profilis_mp.logging.JSONLHandler", "level": "INFO", **shared},
            "audit": {"()": "profilis_mp.logging.JSONLHandler", "dir": directory, "max_age_secs": "7d"},
        },
        "loggers": {
            "jobs": {"level": "DEBUG", "handlers": ["jobs"], "filters": ["span"], "propagate": False},
            "audit": {"level": "DEBUG", "handlers": ["audit"], "propagate": False},
        },
    }


def set_up(directory: str) -> None:
    logging.config.dictConfig(configuration(directory))


def job(number: int) -> int:
    logging.getLogger("jobs").debug("below the handler's level")
    logging.getLogger("jobs").info("job %d", number, extra={"job": number})
    logging.getLogger("audit").info("job %d", number, extra={"audited": number})
    return number


@pytest.mark.parametrize("ending", ["close", "terminate"])
def test_spawned_workers_configured_by_a_dictionary(tmp_path: Path, ending: str) -> None:
    directory = str(tmp_path / "logs")
    context = multiprocessing.get_context("spawn")
    pool = context.Pool(2, initializer=set_up, initargs=(directory,))
    try:
        done = pool.map(job, range(300), chunksize=10)
        getattr(pool, ending)()  # terminate is a SIGTERM, upon which no exit hook runs
        pool.join()
    finally:
        pool.terminate()
        pool.join()
    assert not recover(directory).failures
    counts: collections.Counter[tuple[str, int]] = collections.Counter()
    for path in segments_of(directory):
        for line in Path(path).read_bytes().splitlines():
            event = orjson.loads(line)
            counts.update((key, event[key]) for key in ("job", "audited") if key in event)
    assert counts == {(key, number): 1 for number in done for key in ("job", "audited")}


def made_in(logs: Path) -> int:
    """How often the log says that the application was made."""
    return sum(Path(path).read_bytes().count(b'"request":"make"') for path in segments_of(str(logs)))


@pytest.mark.parametrize("preload", [(), ("--preload",)])
def test_gunicorns_own_log_and_its_applications(tmp_path: Path, preload: tuple[str, ...]) -> None:
    """The handler is made in the master, which logs before it forks; then workers are killed, and the master."""
    seed = random.randrange(1 << 32)
    config = Path(__file__).with_name("logging_gunicorn.py")
    logs = tmp_path / "logs"
    with gunicorn(tmp_path, "logging_app:make()", f"--config={config}", *preload, LOGS=str(logs)) as (port, master):
        # Each worker has made the application, which without --preload comes before the first kill otherwise.
        wait_until(lambda: made_in(logs) >= (1 if preload else 3), what="the application is made")
        with clients_of(port) as clients:
            kill_workers(master, clients, 4, random.Random(seed))
        end(master, signal.SIGKILL)
    assert not recover(logs).failures
    requests: collections.Counter[str] = collections.Counter()
    access: collections.Counter[str] = collections.Counter()
    told: list[str] = []
    for path in segments_of(str(logs)):
        assert os.path.getsize(path) <= 32 * 1024
        for line in Path(path).read_bytes().splitlines():
            event = orjson.loads(line)
            if event["logger"] == "shop.orders":
                requests[event["request"]] += 1
                if event["request"].isdigit():
                    assert ("exception_type" in event) == (int(event["request"]) % 7 == 0)
            elif event["logger"] == "gunicorn.access":
                access[event["message"].split('"GET /')[1].split()[0]] += 1
            else:
                told.append(event["message"])
    context = f"seed {seed}, {len(clients.answered)} answered"
    assert [number for number in clients.answered if requests[str(number)] != 1] == [], context
    assert requests["make"] == 1 if preload else requests["make"] >= 3, context
    # gunicorn writes its access log after the answer, so a kill can come before it: once at most, seldom not at all.
    assert access.pop("ready") >= 1
    assert max(access.values()) == 1, context
    assert len(clients.answered) - len(access) <= 8, context
    assert any(text.startswith("Starting gunicorn") for text in told), context
    assert len(segments_of(str(logs))) > 1, context
