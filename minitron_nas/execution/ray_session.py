"""A connection to Ray for as long as work needs it, on an embedded Ray or on a cluster."""

import json
import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

# Set before ray is imported: no usage reports.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# A trial of a Ray that is started here works where this process does, so that a relative path means the same to both.
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")

import psutil
import ray
import torch
from ray._private import services, utils, worker
from ray.actor import ActorHandle

from minitron_nas.errors import PlanError, TrainingProcessError
from minitron_nas.execution.preemption import answer_again, fail, put_off
from minitron_nas.execution.settings import NO_RAY_CLIENT, is_ray_client
from minitron_nas.memory import available_memory, is_limited, total_memory
from minitron_nas.storage.locks import Process
from minitron_nas.storage.machine import require_writable

_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 5.0
_SILENT_SECONDS = 45.0
"""How long a head may be silent, which may start again; after 60, Ray ends this process by a fault of its own."""
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_HTTP2_SETTINGS, _HTTP2_HEAD = 4, 9
"""What a gRPC server, such as Ray's head, answers first: a frame of this type, after so many bytes of its head."""

_KIND = "accelerator_type:"
"""What Ray calls the kind of a node's GPUs behind, as one of its resources."""

_OWNER = "minitron_nas.json"
"""In the folder of a Ray that is started here: the process that has started it."""
_STARTING = "minitron_nas_{pid}.json"
"""Beside the folders of Rays, while one is started: by whom."""
_JOIN_SECONDS = 120.0
"""How long a cluster may have no node that computes, because all of them are still starting."""

_SOCKET_BYTES = 107
_LONGEST_SOCKET = "ray/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"
_SHORT_FOLDER = "/tmp"  # noqa: S108  # Ray's own choice where nobody names one
_OBJECTS_FRACTION = 0.1
_LEAST_OBJECTS_BYTES, _MOST_OBJECTS_BYTES = 80 << 20, 2 << 30
"""Of Ray's store of objects; jobs hand over a few numbers."""


def check(address: str | None) -> str | None:
    """Refuse a cluster that does not answer, or a folder in which no Ray can be started, within seconds.

    Args:
        address: As in `connected`.

    Returns:
        Where the cluster is, host:port; None if Ray would be started here.

    Raises:
        PlanError: If no cluster answers, or the path of Ray's sockets would be too long.
        MachineError: If Ray's folder cannot be written to.
    """
    if ray.is_initialized():
        return None
    where = _cluster(address)
    if where is None:
        require_writable(Path(_temporary()))
    return where


@contextmanager
def connected(address: str | None, folder: Path) -> Iterator[None]:
    """Be connected to Ray while the block runs; a connection that is there is used and left.

    Args:
        address: A running cluster; None starts Ray here, whatever other cluster this machine is of.
        folder: Where the block's work keeps Ray's state; removed at the end.

    Raises:
        PlanError: If no cluster answers at the address, or none of its nodes computes, or the path of Ray's sockets
            would be too long.
        MachineError: If Ray's folder cannot be written to.
    """
    started_here, over = not ray.is_initialized(), threading.Event()
    session: Path | None = None
    try:
        if started_here:
            with put_off():
                session = _start(address)
        head = ray.get_runtime_context().gcs_address
        if started_here and session is None:
            _wait_for_nodes(head)
        watched = (_local_raylet(), head, over)
        threading.Thread(target=_watch, args=watched, daemon=True, name="ray").start()
        yield
    finally:
        over.set()
        shutil.rmtree(folder, ignore_errors=True)
        if started_here:
            with put_off(), _signals_answered_again():
                ray.shutdown()
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)


def refused(error: BaseException, address: str) -> PlanError | None:
    """Return what a user is told whom a cluster refuses for want of its token; None if an error is another one.

    Args:
        error: Of Ray.
        address: Of the cluster.
    """
    # By its name: it may be told of in the words of another error.
    if "AuthenticationError" not in f"{type(error).__name__} {error.__cause__}":
        return None
    return PlanError(
        f"the cluster at {address} wants another token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what "
        "`ray get-auth-token` prints on its head or RAY_AUTH_TOKEN_PATH to a copy of its file"
    )


def run_one_task() -> None:
    """Start a worker and wait for what it returns.

    Raises:
        GetTimeoutError: Of Ray, if no worker answers within two minutes.
    """
    ray.get(ray.remote(num_cpus=0)(_answer).remote(), timeout=120)


def _start(address: str | None) -> Path | None:
    """Connect to a cluster, or start Ray here; return the folder of a Ray that was started.

    Raises:
        PlanError: If no cluster answers.
        TrainingProcessError: If Ray does not start.
    """
    where = check(address)
    here = {} if where is not None else {"include_dashboard": False, **_own_ray()}
    # Ray reads the token of this machine's cluster only where it is to find that cluster by itself.
    by_itself = address == os.environ.get("RAY_ADDRESS")
    asked = "local" if address is None else "auto" if by_itself else address
    starting = Path(_temporary(), "ray", _STARTING.format(pid=os.getpid())) if where is None else None
    try:
        if starting is not None:
            _sweep(starting.parent)
            starting.parent.mkdir(parents=True, exist_ok=True)
            starting.write_text(json.dumps(asdict(Process.current())))
        with _signals_left_to_us():
            node: Any = ray.init(address=asked, log_to_driver=False, logging_level=logging.ERROR, **here)
    except Exception as error:  # which is all that Ray says of a part of it that does not start
        reason = " ".join(str(error).split())
        if where is None or address is None:
            if starting is not None:
                with suppress(OSError):
                    starting.unlink()
            raise TrainingProcessError(
                f"Ray cannot be started here ({reason}); where memory or CPUs are short, free some, or set runner=local"
            ) from error
        raise refused(error, where) or _unreachable(address, where, reason) from error
    if starting is None:
        return None
    session = Path(node.address_info["session_dir"])
    session.chmod(0o700)  # sockets, and logs with names of people's files
    starting.rename(session / _OWNER)
    return session


def _wait_for_nodes(where: str) -> None:
    """Wait until a node has joined a cluster that computes: the first to be there is a head that may do none of it.

    Raises:
        PlanError: If none has joined after two minutes.
    """
    begun = time.monotonic()
    while not (most_cpus() or num_gpus()):
        if time.monotonic() - begun > _JOIN_SECONDS:
            raise PlanError(
                f"none of the {num_nodes()} nodes of the cluster at {where} has CPUs or GPUs, and no other has joined "
                f"for {_JOIN_SECONDS:g} seconds; start some with `ray start --address={where}`"
            )
        time.sleep(_POLL_SECONDS)


def _sweep(folder: Path) -> None:
    """Remove what Rays have left whose commands were killed."""
    for owner in folder.glob(f"session_*/{_OWNER}"):
        with suppress(OSError, ValueError, TypeError):
            if _noted_in(owner).is_gone:
                shutil.rmtree(owner.parent, ignore_errors=True)
    for starting in folder.glob(_STARTING.format(pid="*")):
        with suppress(OSError, ValueError, TypeError):
            process, noted = _noted_in(starting), starting.stat().st_mtime
            if process.is_gone:
                for session in folder.glob(f"session_*_{process.pid}"):
                    if _begun(session) >= noted:  # an older one is of another process of this number
                        shutil.rmtree(session, ignore_errors=True)
                starting.unlink()


def _noted_in(file: Path) -> Process:
    return Process(**json.loads(file.read_text()))


def _begun(session: Path) -> float:
    """Return when a Ray was started, by the name of its folder, in seconds since 1970."""
    _, day, clock, micros, _ = session.name.split("_")
    return datetime.strptime(f"{day}_{clock}_{micros}", "%Y-%m-%d_%H-%M-%S_%f").timestamp()  # noqa: DTZ007  # local


@contextmanager
def _signals_left_to_us() -> Iterator[None]:
    """Keep Ray from answering SIGTERM, by an end of this process without a word, while it starts."""
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextmanager
def _signals_answered_again() -> Iterator[None]:
    """Set handlers once more when Ray's core has taken its own away in C, before its processes take seconds to end."""
    node = worker._global_node
    if node is not None:
        end = node.kill_all_processes

        def answered(*args: Any, **kwargs: Any) -> None:
            answer_again()
            end(*args, **kwargs)

        node.kill_all_processes = answered
    yield


def _answer() -> int:
    return 1


def _cluster(address: str | None) -> str | None:
    """Return where a cluster is that is named, host:port, once it has answered; None if none is.

    Ray asks for a long time before it gives a cluster up that is gone.
    """
    if address is None:
        return None
    if is_ray_client(address):
        raise PlanError(f"{_named(address)} {NO_RAY_CLIENT}")
    try:
        where: str | None = services.canonicalize_bootstrap_address(address)
        assert where is not None
        host, port = services.extract_ip_port(where)
        with socket.create_connection((host, port), _ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(_HTTP2_GREETING)
                answer = connection.recv(_HTTP2_HEAD)
                if len(answer) < _HTTP2_HEAD or answer[3] != _HTTP2_SETTINGS:
                    raise ConnectionError("what answers there is no head of a Ray cluster")
    except (OSError, ValueError) as error:
        raise _unreachable(address, None, str(error)) from error
    return where


def _named(address: str) -> str:
    """Say who names a cluster; of `auto`, Ray asks the variable first."""
    variable = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS={variable}" if variable and address in (variable, "auto") else f"runner.address={address}"


def _unreachable(address: str, where: str | None, reason: str) -> PlanError:
    named = _named(address)
    instead = "unset RAY_ADDRESS" if named.startswith("RAY_ADDRESS") else "leave runner.address out"
    at = f" at {where}" if where is not None and where not in named else ""
    return PlanError(
        f"{named}: no Ray cluster can be reached{at} ({' '.join(reason.split())}); start one with `ray start --head`, "
        f"or {instead}"
    )


def _own_ray() -> dict[str, Any]:
    """Return the settings of a Ray that is started here: a folder whose paths are short enough, and its memory.

    Ray sees the machine's memory, not what a container or a job may take of it.
    """
    # Ray listens on all addresses whatever it is told; from 2.59 on it answers only who knows this.
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    settings: dict[str, Any] = {}
    if (folder := _temporary()) != _usual_folder():
        settings["_temp_dir"] = f"{folder}/ray"
    if is_limited():
        share = int(available_memory() * _OBJECTS_FRACTION)
        settings["_memory"] = total_memory()
        settings["object_store_memory"] = min(max(share, _LEAST_OBJECTS_BYTES), _MOST_OBJECTS_BYTES)
    return settings


def _usual_folder() -> str:
    """Return the folder that Ray takes by itself."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or _SHORT_FOLDER


def _temporary() -> str:
    """Return the folder for Ray's files: its own choice, unless the path of a socket in it would be too long."""
    folder = _usual_folder()
    too_many = len(os.fsencode(os.path.join(folder, _LONGEST_SOCKET))) - _SOCKET_BYTES
    if too_many <= 0:
        return folder
    if os.environ.get("RAY_TMPDIR"):
        raise PlanError(
            f"RAY_TMPDIR={folder} is {too_many} characters too long: paths of Ray's sockets in it would have more than "
            f"{_SOCKET_BYTES}; name a shorter folder, such as RAY_TMPDIR={_SHORT_FOLDER}"
        )
    return _SHORT_FOLDER


def _local_raylet() -> Process | None:
    """Return Ray's own process of this machine, without which a driver waits for ever; None if it is not found."""
    node = getattr(getattr(ray, "_private", None), "worker", None)
    socket = getattr(getattr(node, "_global_node", None), "raylet_socket_name", None)
    for process in psutil.process_iter(["name", "cmdline"]) if socket else ():
        if process.info["name"] == "raylet" and any(socket in word for word in process.info["cmdline"] or ()):
            return Process.of(process.pid)
    return None


def _watch(raylet: Process | None, head: str, over: threading.Event) -> None:
    """End the command once Ray's own process of this machine has ended, or the head of the cluster is silent."""
    answered = time.monotonic()
    while not over.wait(_POLL_SECONDS):
        if raylet is not None and raylet.is_gone:
            lost = f"its raylet, process {raylet.pid}, is gone"
        elif _listens(head):
            answered = time.monotonic()
            continue
        elif time.monotonic() - answered > _SILENT_SECONDS:
            lost = f"its head at {head} has not answered for {_SILENT_SECONDS:g} seconds"
        else:
            continue
        if not over.is_set():
            fail(TrainingProcessError(f"Ray has ended under this command: {lost}"))
        return


def _listens(address: str) -> bool:
    """Whether somebody takes connections there."""
    host, port = services.extract_ip_port(address)
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS):
            return True
    except OSError:
        return False


def most_cpus() -> float:
    """Return the CPUs of the node that has most."""
    return max(node.get("CPU", 0.0) for node in _nodes())


def most_gpus() -> float:
    """Return the GPUs of the node that has most."""
    return max(node.get("GPU", 0.0) for node in _nodes())


def cpus_beside(gpus: float) -> float:
    """Return the CPUs that go with so many GPUs of one node, on the node that has fewest for each of its GPUs.

    Args:
        gpus: How many.
    """
    shares = [node.get("CPU", 0.0) / node["GPU"] for node in _nodes() if node.get("GPU")]
    share = gpus * min(shares, default=1.0)
    return float(int(share)) if share >= 1 else share or 1.0


def num_nodes() -> int:
    """Return how many nodes are alive."""
    return len(_nodes())


def num_gpus() -> int:
    """Return the GPUs of all nodes."""
    return int(sum(node.get("GPU", 0.0) for node in _nodes()))


def devices() -> tuple[str, int]:
    """Return of what kinds the devices of all nodes are, and how many: their GPUs, or each node without any as one."""
    kinds = {kind.removeprefix(_KIND) for node in _nodes() for kind in node if kind.startswith(_KIND)}
    if number := num_gpus():
        return " and ".join(sorted(kinds)) or "cuda", number
    return "cpu", num_nodes()


def room_for(cpus: float, gpus: float) -> int:
    """Return how many workers all nodes hold together, each of which needs so many CPUs and GPUs of one node.

    Args:
        cpus: Of one worker.
        gpus: Of one worker.
    """
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(min(int(node.get(kind, 0.0) / each) for kind, each in wanted.items() if each) for node in _nodes())


def end_actor(actor: ActorHandle[Any]) -> None:
    """Kill an actor, whatever it does.

    Args:
        actor: Which.
    """
    ray.kill(actor)


def _nodes() -> list[dict[str, float]]:
    """Return what each node has; of a Ray that is still to be started here, this machine."""
    if not ray.is_initialized():
        return [{"CPU": float(utils.get_num_cpus()), "GPU": float(torch.cuda.device_count())}]
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
