"""The one check that crash, stress and host tests end with."""

from __future__ import annotations

import os
from collections.abc import Mapping

from profilis_mp.account import Account, take_account
from profilis_mp.sharedlog.spool import BadSpool, Spool

__all__ = ["check_log"]


def check_log(
    directory: object, expected: Mapping[int, int], *, rotate_bytes: int | None = None, context: object = ""
) -> Account:
    """Every acknowledged event of every worker is on disk exactly once, whole, and in its worker's order.

    Args:
        directory: The log directory, recovered and quiet.
        expected: For each worker, how many of its events were acknowledged.
        rotate_bytes: Also check that no segment is larger.
        context: Printed with a failure: the seed, the step …
    """
    account = take_account(str(directory), expected, rotate_bytes=rotate_bytes)
    assert account.balanced, f"{context}: {account}; {_evidence(str(directory))}"
    # One event per worker may be there without having been acknowledged; nothing else may.
    assert account.acknowledged <= account.on_disk <= account.acknowledged + len(expected), f"{context}: {account}"
    return account


def _evidence(directory: str) -> list[str]:
    """What whoever wonders where an event is would look at: each file, its size, and what still waits in a spool."""
    found = []
    for place, _, names in os.walk(directory):
        for name in sorted(names):
            path = f"{place}/{name}"
            size = os.path.getsize(path)
            try:
                spool = Spool.glance(path)
                found.append(f"{path}: {size} bytes, tail {spool.tail}, head {spool.head}, flush_to {spool.flush_to}")
            except BadSpool:
                found.append(f"{path}: {size} bytes")
    return found
