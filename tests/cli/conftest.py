"""The command in this process."""

import sys
from collections.abc import Callable

import pytest

from minitron_nas.cli import app


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call `minitron-nas` in this process; gives its exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minitron-nas", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            app.main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call
