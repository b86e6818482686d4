"""What tests of the scripts in this folder need."""

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import modules that lie beside this file."""
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module
