"""The command `minitron-nas`."""

import sys

import typer

from minitron_nas.cli import aligning, families, judging, looking, planning, runs, steps  # noqa: F401  # they add their verbs
from minitron_nas.cli.command import app
from minitron_nas.errors import MinitronNasError, printable
from minitron_nas.memory import spare_memory


def main() -> None:
    """Run the command.

    A MinitronNasError, a fault of the machine and whatever the system refuses are one line and exit code 2, a signal
    one line and 128 + its number.
    """
    try:
        spare_memory()
        app()
    except MinitronNasError as error:
        typer.echo(f"minitron-nas: {printable(str(error))}", err=True)
        sys.exit(2)
    except Exception as error:
        from minitron_nas.storage.machine import refusal  # deferred: a fault is rare

        if (told := refusal(error)) is None:
            raise
        typer.echo(f"minitron-nas: {told}", err=True)
        sys.exit(2)
