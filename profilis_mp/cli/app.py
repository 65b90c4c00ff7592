"""Which commands are there, and how does one end?  Every error is one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from profilis_mp import __version__
from profilis_mp.cli import look, operate, watch
from profilis_mp.errors import ConfigError, ProfilisError

__all__ = ["app", "run"]


# What an error of the library calls an argument, and what it is called here.
_CALLED = {
    "compression": "--compression",
    "compression_level": "--compression-level",
    "dir": "DIR",
    "stream": "--stream",
}


class _Commands(click.Group):
    """The commands in the order in which somebody new would need them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="profilis-mp")
@click.pass_context
def app(ctx: click.Context) -> int:
    """Many processes, one log directory, nothing lost.

    DIR is the log directory that the processes share. What these commands do is safe at any time, while others write.
    """
    if ctx.invoked_subcommand is not None:
        return 0
    click.echo(ctx.get_help(), err=True)
    return 2


for _command in (
    operate.demo,
    look.tail,
    look.cat,
    look.stats,
    watch.health,
    watch.doctor,
    operate.janitor,
    operate.recover,
    operate.rotate,
    operate.clean,
):
    app.add_command(_command)


def run(arguments: Sequence[str] | None) -> int:
    """Run one command; returns its exit status."""
    try:
        # Not app.main: it would take a Ctrl-C and a closed pipe for itself, and not quietly.
        with app.make_context("profilis-mp", list(sys.argv[1:] if arguments is None else arguments)) as ctx:
            status: Any = app.invoke(ctx)
        sys.stdout.flush()  # while it can still be said that it failed
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "profilis-mp"
        return _refuse(f"{error.format_message().rstrip('.')}; see {path} --help", error.exit_code, path)
    except click.ClickException as error:
        return _refuse(error.format_message(), error.exit_code)
    except BrokenPipeError:
        raise
    except ConfigError as error:
        return _refuse(f"{_CALLED.get(error.argument, error.argument)}: {error.reason}", 2)
    except (ProfilisError, OSError) as error:
        return _refuse(str(error), 1)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        install = "Rich is missing: pip install 'profilis_mp[cli]'"
        return _refuse(install if missing == "rich" else str(error), 2)
    return status if isinstance(status, int) else 0


def _refuse(text: str, status: int, program: str = "profilis-mp") -> int:
    click.echo(f"{program}: {' '.join(text.split())}", err=True)
    return status
