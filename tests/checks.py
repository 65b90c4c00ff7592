"""The one check that crash, stress and host tests end with."""

from __future__ import annotations

from collections.abc import Mapping

from profilis_mp.account import Account, take_account

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
    assert account.balanced, f"{context}: {account}"
    # One event per worker may be there without having been acknowledged; nothing else may.
    assert account.acknowledged <= account.on_disk <= account.acknowledged + len(expected), f"{context}: {account}"
    return account
