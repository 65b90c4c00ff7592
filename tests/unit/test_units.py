"""What people write for durations and sizes."""

from __future__ import annotations

import pytest

from profilis_mp.units import bytes_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604_800), ("2w", 1_209_600), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "-5m", "5 minutes", "1e3s", "nan", "inf", "٣s", "99999999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration|too long"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("10M", 10 << 20), ("2g", 2 << 30), ("1.5KiB", 1536), ("3 TB", 3 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "10X", "10MM", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|too large"):
        bytes_of(text)


def test_a_size_is_exact_where_a_float_would_not_be() -> None:
    assert bytes_of(str(2**53 + 1)) == 2**53 + 1
    assert bytes_of(f"{2**43 + 1}K") == 2**53 + 1024
    assert bytes_of(".5K") == 512
    assert bytes_of("5.K") == 5120


def test_mb_is_what_the_users_page_calls_10_mb() -> None:
    """``rotate_bytes=10*1024*1024  # 10MB per file``"""
    assert bytes_of("10MB") == bytes_of("10MiB") == bytes_of("10M") == 10 * 1024 * 1024
