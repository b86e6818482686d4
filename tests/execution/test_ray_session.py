"""What is found out of a Ray within seconds, before it is asked to work: whether it answers, and where its files go."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

from minitron_nas.errors import MachineError, PlanError, PreemptedError, TrainingProcessError
from minitron_nas.execution import ray_session
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.memory import SETTING
from minitron_nas.storage.locks import Process

SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Ray is connected to, and none is known on this machine."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_USE_TLS", SETTING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session, "_SHORT_FOLDER", str(tmp_path))
    monkeypatch.setattr(ray_session, "_ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(ray_session.services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray_session.services, "find_bootstrap_address", lambda folder: None)


@pytest.fixture
def server() -> Iterator[Callable[[bytes | None], str]]:
    """Listen on a port and answer whoever greets with these bytes, or not at all; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(answer: bytes) -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        def start(answer: bytes | None) -> str:
            if answer is not None:
                threading.Thread(target=serve, args=(answer,), daemon=True).start()
            return f"127.0.0.1:{listening.getsockname()[1]}"

        yield start


def fake_ray(init: Callable[..., Any], shutdown: Callable[[], object] = lambda: None) -> SimpleNamespace:
    context = SimpleNamespace(gcs_address=nobody())
    return SimpleNamespace(
        is_initialized=lambda: False, init=init, shutdown=shutdown, get_runtime_context=lambda: context
    )


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"127.0.0.1:{closed.getsockname()[1]}"


def test_a_head_that_answers_is_taken(server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session.services, "resolve_ip_for_localhost", lambda host: host)
    address = server(SETTINGS_FRAME)
    assert ray_session.check(address) == address


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0"], ids=str)
def test_what_listens_and_is_no_head_or_hangs_is_refused(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    monkeypatch.setattr(ray_session.services, "resolve_ip_for_localhost", lambda host: host)
    address = server(answer)
    with pytest.raises(PlanError, match=rf"^runner.address={address}: no Ray cluster can be reached \(.*leave runner"):
        ray_session.check(address)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_cluster_that_is_gone_is_told_of_by_the_name_it_was_given(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    gone = nobody()
    monkeypatch.setenv("RAY_ADDRESS", gone)
    address = RunnerSettings(address=address).cluster
    with pytest.raises(PlanError, match=rf"^RAY_ADDRESS={gone}: no Ray cluster .*refused.*, or unset RAY_ADDRESS$"):
        ray_session.check(address)


def test_a_cluster_that_ray_noted_and_nobody_named_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_session.services, "find_bootstrap_address", lambda folder: nobody())
    assert ray_session.check(None) is None


def test_an_address_of_ray_client_is_refused_in_the_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(PlanError, match="^RAY_ADDRESS=ray://head:10001 is an address of Ray Client, .*auto$"):
        ray_session.check(RunnerSettings().cluster)


@pytest.mark.parametrize(
    ("settings", "variable", "cluster"),
    [
        ({}, None, None),
        ({}, "", None),
        ({}, "local", None),
        ({}, "head:6379", "head:6379"),
        ({"address": "auto"}, "head:6379", "auto"),
        ({"kind": "local"}, "head:6379", None),
        ({"kind": "local", "address": "auto"}, None, None),
    ],
)
def test_work_is_on_the_cluster_that_is_named_by_the_plan_or_the_variable(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], variable: str | None, cluster: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    runner = RunnerSettings(**settings)
    assert runner.cluster == cluster
    assert runner.on_cluster == (cluster is not None)


@pytest.mark.parametrize("goes", ["raylet", "head"])
def test_the_command_ends_when_ray_has_ended_under_it(monkeypatch: pytest.MonkeyPatch, goes: str) -> None:
    told = list[str]()
    monkeypatch.setattr(ray_session, "fail", lambda error: told.append(str(error)))
    monkeypatch.setattr(ray_session, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(ray_session, "_SILENT_SECONDS", 0.05)
    raylet = replace(Process.current(), started=1.0) if goes == "raylet" else Process.current()
    head = nobody()
    ray_session._watch(raylet, head, threading.Event())
    lost = f"its raylet, process {os.getpid()}, is gone"
    silent = f"its head at {head} has not answered for 0.05 seconds"
    assert told == [f"Ray has ended under this command: {lost if goes == 'raylet' else silent}"]


def test_a_head_that_answers_again_in_time_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, server: Callable[[bytes | None], str]
) -> None:
    monkeypatch.setattr(ray_session, "fail", lambda error: pytest.fail(str(error)))
    monkeypatch.setattr(ray_session, "_POLL_SECONDS", 0.01)
    answers, over = iter([True, False, False, True]), threading.Event()

    def listens(head: str) -> bool:
        if (answer := next(answers, None)) is None:
            over.set()
        return bool(answer)

    monkeypatch.setattr(ray_session, "_listens", listens)
    ray_session._watch(None, server(None), over)
    assert over.is_set()


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("auto", "runner.address=auto: no Ray cluster can be reached .Could not find any running Ray instance"),
        ("10.1.1.1", "runner.address=10.1.1.1: "),
        ("nowhere.invalid:6379", "runner.address=nowhere.invalid:6379: "),
        ("127.0.0.1:99", "runner.address=127.0.0.1:99: .*between 1024"),
    ],
)
def test_addresses_that_cannot_be_are_told_of_in_one_line(address: str, named: str) -> None:
    with pytest.raises(PlanError, match=named) as told:
        ray_session.check(address)
    assert "\n" not in str(told.value)


def test_without_a_cluster_ray_will_be_started_here() -> None:
    assert ray_session.check(None) is None


@pytest.mark.parametrize(("length", "fits"), [(30, True), (39, True), (40, False), (90, False), (200, False)])
def test_under_a_long_tmpdir_ray_takes_a_short_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, length: int, fits: bool
) -> None:
    folder = "/" + "t" * (length - 1)
    monkeypatch.setenv("TMPDIR", folder)
    assert ray_session._temporary() == (folder if fits else str(tmp_path))
    assert ray_session._own_ray() == ({} if fits else {"_temp_dir": f"{tmp_path}/ray"})


def test_a_long_folder_that_was_named_for_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "t" * 59)
    with pytest.raises(PlanError, match="^RAY_TMPDIR=/t+ is 21 characters too long: .*more than 107; name a shorter"):
        ray_session.check(None)


def test_where_files_of_a_ray_would_lie_here_is_nothing_to_a_cluster(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/{'x' * 90}")
    monkeypatch.setattr(ray_session.services, "resolve_ip_for_localhost", lambda host: host)
    monkeypatch.setattr(ray_session, "ray", fake_ray(lambda **_: None))
    with ray_session.connected(server(SETTINGS_FRAME), tmp_path / "state"):
        pass


def test_the_longest_path_is_as_long_as_those_that_ray_makes() -> None:
    made = "ray/session_2026-11-28_16-23-42_998491_15284/sockets/plasma_store"
    assert len(ray_session._LONGEST_SOCKET) == len(made) + 2, "ids of processes have up to seven digits"
    assert len(os.path.join("/" + "t" * 38, ray_session._LONGEST_SOCKET)) == 107


def test_a_folder_that_cannot_be_written_is_told_of_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/nothing")
    with pytest.raises(MachineError, match="^/proc/nothing: "):
        ray_session.check(None)


def test_a_ray_of_ones_own_gets_the_memory_that_this_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "_memory" not in ray_session._own_ray() or ray_session.is_limited()
    monkeypatch.setenv(SETTING, "1KB")
    assert ray_session._own_ray() == {"_memory": 1000, "object_store_memory": 80 << 20}


def test_ray_is_started_here_even_if_it_knows_of_a_cluster_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, session = [], tmp_path / "session"

    def init(**given: Any) -> SimpleNamespace:
        asked.append(given)
        session.mkdir()
        return SimpleNamespace(address_info={"session_dir": str(session)})

    monkeypatch.setattr(ray_session, "ray", fake_ray(init))
    with ray_session.connected(None, tmp_path / "state"):
        assert session.exists()
    assert [(given["address"], given["include_dashboard"]) for given in asked] == [("local", False)]
    assert not session.exists(), "nobody looks for the logs of a Ray that has ended well"


def test_what_a_killed_command_left_of_its_ray_goes_with_the_next_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rays = {name: tmp_path / "ray" / f"session_{name}" for name in ("killed", "working", "foreign", "broken")}
    for session in rays.values():
        session.mkdir(parents=True)
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owners = {"killed": Process.of(killed.pid), "working": Process.current()}
    for name, process in owners.items():
        (rays[name] / ray_session._OWNER).write_text(json.dumps(asdict(process)))
    (rays["broken"] / ray_session._OWNER).write_text("[")
    killed.communicate()
    ray_session._sweep(tmp_path / "ray")
    assert [name for name, session in rays.items() if session.exists()] == ["working", "foreign", "broken"]


def test_what_a_command_left_that_was_killed_while_ray_started_goes_too(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    starting = tmp_path / ray_session._STARTING.format(pid=killed.pid)
    starting.write_text(json.dumps(asdict(Process.of(killed.pid))))

    def session(seconds_later: float, pid: int) -> Path:
        begun = datetime.fromtimestamp(starting.stat().st_mtime + seconds_later)  # noqa: DTZ006  # as Ray names it
        folder = tmp_path / f"session_{begun:%Y-%m-%d_%H-%M-%S_%f}_{pid}"
        folder.mkdir()
        return folder

    mine, older, other = session(1, killed.pid), session(-1, killed.pid), session(1, killed.pid + 1)
    ray_session._sweep(tmp_path)
    assert mine.exists(), "the command still runs"
    killed.communicate()
    ray_session._sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([other, older])


def test_a_signal_while_ray_starts_leaves_nothing_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    session = tmp_path / "ray" / "session"

    def init(**_: Any) -> SimpleNamespace:
        session.mkdir(parents=True)
        os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(address_info={"session_dir": str(session)})

    monkeypatch.setattr(ray_session, "ray", fake_ray(init))
    with pytest.raises(PreemptedError), ray_session.connected(None, tmp_path / "state"):
        pass
    assert list((tmp_path / "ray").iterdir()) == []


def test_a_cluster_whose_nodes_are_still_starting_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([[{}], [{}], [{}, {"CPU": 2.0}]])
    now = [{}]

    def nodes() -> list[dict[str, float]]:
        now[:] = next(seen, now)
        return now

    monkeypatch.setattr(ray_session, "_POLL_SECONDS", 0)
    monkeypatch.setattr(ray_session, "_nodes", nodes)
    ray_session._wait_for_nodes("head:6379")
    monkeypatch.setattr(ray_session, "_nodes", lambda: [{}])
    monkeypatch.setattr(ray_session, "_JOIN_SECONDS", 0.01)
    with pytest.raises(PlanError, match=r"^none of the 1 nodes of the cluster at head:6379 has CPUs or GPUs, and no"):
        ray_session._wait_for_nodes("head:6379")


@pytest.mark.parametrize("by_variable", [True, False])
def test_ray_is_left_to_find_this_machines_cluster_whose_token_it_reads_only_then(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_variable: bool
) -> None:
    asked, noted = list[str](), server(SETTINGS_FRAME)
    if by_variable:
        monkeypatch.setenv("RAY_ADDRESS", noted)
    address = RunnerSettings(address=None if by_variable else "auto").cluster
    monkeypatch.setattr(ray_session.services, "resolve_ip_for_localhost", lambda host: host)
    monkeypatch.setattr(ray_session.services, "find_gcs_addresses", lambda: {noted})
    monkeypatch.setattr(ray_session.services, "find_bootstrap_address", lambda folder: noted)
    init = lambda address, **_: asked.append(address)  # noqa: E731
    monkeypatch.setattr(ray_session, "ray", fake_ray(init))
    with ray_session.connected(address, tmp_path / "state"):
        pass
    assert asked == ["auto"]


@pytest.mark.parametrize("in_words", [False, True])
def test_a_cluster_that_wants_another_token_is_told_of_as_such(
    server: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, in_words: bool
) -> None:
    class AuthenticationError(RayError):  # which Ray has from 2.52 on
        pass

    def init(**_: Any) -> None:
        refused = AuthenticationError("InvalidAuthToken")
        if not in_words:
            raise refused
        cause = RuntimeError(f"Last connection error: Traceback\nray.exceptions.{type(refused).__name__}: {refused}")
        raise ConnectionError("Failed to connect to Ray cluster") from cause

    monkeypatch.setattr(ray_session.services, "resolve_ip_for_localhost", lambda host: host)
    monkeypatch.setattr(ray_session, "ray", fake_ray(init))
    address = server(SETTINGS_FRAME)
    told = f"^the cluster at {address} wants another token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what "
    with pytest.raises(PlanError, match=told), ray_session.connected(address, tmp_path / "state"):
        pass


def test_a_ray_that_does_not_start_is_told_of_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def init(**_: Any) -> None:
        raise Exception("The current node timed out.\nSome of it has failed.")  # noqa: TRY002  # as Ray itself says it

    monkeypatch.setattr(ray_session, "ray", fake_ray(init))
    told = r"^Ray cannot be started here \(The current node timed out. Some of it has failed.\); .*local$"
    with pytest.raises(TrainingProcessError, match=told), ray_session.connected(None, tmp_path / "state"):
        pass


def test_a_signal_while_ray_starts_ends_the_work_once_ray_has_started_and_is_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, session = [], tmp_path / "session"
    session.mkdir()

    def init(**_: Any) -> SimpleNamespace:
        ray_session.utils.set_sigterm_handler(lambda *_: done.append("ended by Ray"))
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("started")
        return SimpleNamespace(address_info={"session_dir": str(session)})

    monkeypatch.setattr(ray_session, "ray", fake_ray(init, lambda: done.append("ended")))
    with pytest.raises(PreemptedError, match="^stopped by SIGTERM; "), ray_session.connected(None, tmp_path / "state"):
        done.append("worked")
    assert done == ["started", "ended"]


@pytest.mark.parametrize(
    ("nodes", "devices"),
    [
        ([{"CPU": 8.0}, {"CPU": 4.0}], ("cpu", 2)),
        ([{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0, "accelerator_type:H100": 1.0}], ("H100", 4)),
        (
            [{"GPU": 8.0, "accelerator_type:H100": 1.0}, {"GPU": 8.0, "accelerator_type:A100": 1.0}],
            ("A100 and H100", 16),
        ),
        ([{"GPU": 2.0}], ("cuda", 2)),
    ],
)
def test_devices_of_a_cluster_are_its_gpus_or_its_nodes(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], devices: tuple[str, int]
) -> None:
    monkeypatch.setattr(ray_session, "_nodes", lambda: nodes)
    assert ray_session.devices() == devices
