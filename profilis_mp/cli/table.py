"""How do rows become a table?  Rich's on a terminal; plain columns, never cut, in a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["print_rows"]

_GAP = "  "


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table.

    Args:
        headings: One per column; one that begins with ``>`` is for numbers, which stand to the right. All of them empty
            is a table without headings.
        rows: The cells.
    """
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _print_rich(headings, rows)
        return
    cells = [*([[heading.removeprefix(">") for heading in headings]] if any(headings) else []), *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    for row in cells:
        aligned = [
            cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        print(_GAP.join(aligned).rstrip())


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(headings))
    for heading in headings:
        # A query may take several lines; a number never.
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)
