"""The command `minitron-nas`."""

import os
import sys
from collections.abc import Iterable
from contextlib import suppress

import typer

from minitron_nas.cli import aligning, families, judging, looking, planning, runs, steps  # noqa: F401  # they add their verbs
from minitron_nas.cli.command import app
from minitron_nas.errors import MinitronNasError, PlanError, printable
from minitron_nas.memory import spare_memory


def main() -> None:
    """Run the command.

    A MinitronNasError, a fault of the machine and whatever the system refuses are one line and exit code 2, a signal
    one line and 128 + its number.
    """
    try:
        _require_spelling(_names())
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


def _names() -> Iterable[str]:
    """Yield what may be a path, or stand before one."""
    yield from sys.argv[1:]
    with suppress(FileNotFoundError):  # where it was removed
        yield os.getcwd()


def _require_spelling(names: Iterable[str]) -> None:
    """Refuse names that would reach tokenizers and safetensors, which take UTF-8 alone, as others.

    Raises:
        PlanError: Says whether it is the locale or the name.
    """
    encoding = sys.getfilesystemencoding()
    for name in names:
        written = os.fsencode(name)
        shown = written.decode("utf-8", "replace")
        if encoding != "utf-8" and not written.isascii():
            raise PlanError(
                f"this locale, whose encoding is {encoding}, cannot spell {shown!r}; set PYTHONUTF8=1 or another locale"
            )
        if os.fsencode(shown) != written:
            raise PlanError(f"{shown!r} is no name in UTF-8; rename it")
