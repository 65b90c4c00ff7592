"""Writes docs/cli.md from ``--help``: python tests/cli_reference.py"""

from __future__ import annotations

from pathlib import Path

import click

from profilis_mp.cli.app import app

__all__ = ["PATH", "reference"]

PATH = Path(__file__).parents[1] / "docs" / "cli.md"

_WIDTH = 100
_BEGINNING = """\
# The command line

Made from `--help` by `python tests/cli_reference.py`; a test finds it current. It needs the extra `cli`:
`pip install 'profilis_mp[cli]'`. `python -m profilis_mp` is the same command.

Exit status: 0; 1 when something is wrong with the log, or could not be done; 2 when the command line is wrong, there is
no such directory, or there is no log in it (but `recover` and `clean`: they have nothing to do there, and `janitor`
waits for one). An error is one line on standard error. Ctrl-C gives 130, a closed pipe 141, both quietly.
"""


def reference() -> str:
    """What docs/cli.md should hold."""
    sections = [_BEGINNING, _section("profilis-mp", app, None)]
    with click.Context(app, info_name="profilis-mp") as parent:
        sections += [_section(f"profilis-mp {name}", app.commands[name], parent) for name in app.list_commands(parent)]
    return "\n".join(sections)


def _section(title: str, command: click.Command, parent: click.Context | None) -> str:
    name = title.rpartition(" ")[2]
    with click.Context(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH,
        help_option_names=["-h", "--help"],
    ) as context:  # fmt: skip
        return f"## {title}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(reference())
