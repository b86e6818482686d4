"""Who may write at a URI, where no store has locks."""

import json
import platform
import threading
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from minitron_nas.errors import RunFolderError
from minitron_nas.storage import claim
from minitron_nas.storage.claim import Claim
from minitron_nas.storage.remote import Store

URI = "memory://bucket/run"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, seconds in (("_BEAT_SECONDS", 0.02), ("_SILENT_SECONDS", 0.3), ("_POLL_SECONDS", 0.02)):
        monkeypatch.setattr(claim, name, seconds)
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def elsewhere(memory: Any, beat: int = 0, machine: str = "another") -> None:
    """A command of another machine says that it is at work."""
    process = {"pid": 2**22 + 1, "started": 1.0, "machine": machine, "command": "minitron-nas build"}
    memory.pipe_file("/bucket/run/.owners/other.json", json.dumps({"process": process, "beat": beat}).encode())


def owners(memory: Any) -> list[str]:
    return [path.rpartition("/")[2] for path in memory.find("/bucket/run/.owners")]


def test_a_claim_is_there_while_it_is_held(memory: Any) -> None:
    with Claim(Store(URI)).held(print):
        assert len(owners(memory)) == 1
        with pytest.raises(RunFolderError, match=f"{URI} is in use by process"), Claim(Store(URI)).held(print):
            pass
        assert len(owners(memory)) == 1
    assert owners(memory) == []


def test_a_command_of_this_machine_that_is_gone_is_not_waited_for(memory: Any) -> None:
    elsewhere(memory, machine=platform.node())
    told: list[str] = []
    with Claim(Store(URI)).held(told.append):
        assert len(owners(memory)) == 1
    assert told == []


def test_one_of_another_machine_that_is_silent_is_waited_for_and_taken_for_dead(memory: Any) -> None:
    elsewhere(memory)
    told: list[str] = []
    with Claim(Store(URI)).held(told.append):
        assert "other.json" not in owners(memory)
    assert "waiting up to" in told[0]
    assert "(minitron-nas build) on another" in told[0]


def test_one_of_another_machine_that_speaks_is_left_alone(memory: Any) -> None:
    over = threading.Event()

    def speak() -> None:
        beat = 0
        while not over.wait(0.05):
            beat += 1
            elsewhere(memory, beat)

    elsewhere(memory)
    thread = threading.Thread(target=speak)
    thread.start()
    try:
        said = "in use by process .* on another; wait for it"
        with pytest.raises(RunFolderError, match=said), Claim(Store(URI)).held(print):
            pass
    finally:
        over.set()
        thread.join()
    assert owners(memory) == ["other.json"]


def test_one_that_was_taken_for_dead_finds_out(memory: Any) -> None:
    mine = Claim(Store(URI))
    with mine.held(print):
        mine.require()
        memory.rm(memory.find("/bucket/run/.owners"))
        with pytest.raises(RunFolderError, match=f"{URI} was taken over by another command"):
            mine.require()
    assert owners(memory) == []
