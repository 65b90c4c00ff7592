"""A private PostgreSQL server for a test: unprivileged, on a Unix socket of its own, and gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import wait_until

__all__ = ["postgres"]


def _installed() -> Path | None:
    """Where the server's binaries are: on the path, or where Debian keeps each version's."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(versions, key=lambda path: float(path.parent.name), default=None)


@contextmanager
def postgres() -> Iterator[str]:
    """Start a server; yields the directory of its socket. Skips where none is installed."""
    binaries = _installed()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    # Not pytest's directory, which other users may not enter. And the server refuses to be root.
    directory = Path(tempfile.mkdtemp(prefix="pg-"))
    owner = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    os.chown(directory, owner.pw_uid, owner.pw_gid)
    user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    data = directory / "data"
    output = (directory / "server.log").open("wb")
    server: subprocess.Popen[bytes] | None = None
    try:
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--no-locale"], check=True, stdout=output, stderr=output, cwd=directory, **user)
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=40", "-k", directory]
        command = [binaries / "postgres", "-D", data, *options]
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=directory, **user)
        ready = [binaries / "pg_isready", "-q", "-h", directory, "-U", "postgres"]
        wait_until(
            lambda: server.poll() is not None or subprocess.run(ready, check=False).returncode == 0,
            timeout_s=60,
            what="PostgreSQL answers",
        )
        assert server.poll() is None, (directory / "server.log").read_text()
        yield str(directory)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast stop: it disconnects and ends its children
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)  # an immediate one, which ends them too
                server.wait(30)
        output.close()
        shutil.rmtree(directory, ignore_errors=True)
