"""Whole builds on a Ray cluster of two nodes, whose head computes nothing, and on which nodes are lost."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minitron_nas import distill, prune
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.pipeline.display import Quiet
from minitron_nas.resources import resource
from minitron_nas.text.settings import TextSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MOST_DRIVER_BYTES = 1.5e9


class TwoNodes:
    """A head without CPUs and two nodes of one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # its variables are those of the next import

        from minitron_nas.execution import ray_session  # noqa: F401  # sets what Ray reads from the environment

        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
        self._nodes = [self._cluster.add_node(num_cpus=1, num_gpus=0) for _ in range(2)]
        self.address = self._cluster.address

    def lose_one(self) -> None:
        """Kill a node as a power cut does."""
        self._cluster.remove_node(self._nodes[0], allow_graceful=False)

    def end(self) -> None:
        """Stop what is left."""
        self._cluster.shutdown()


@pytest.fixture
def two_nodes() -> Iterator[TwoNodes]:
    cluster = TwoNodes()
    yield cluster
    cluster.end()


def on(cluster: TwoNodes) -> tuple[str, str]:
    return "--set=runner.kind=ray", f"--set=runner.address={cluster.address}"


def test_a_build_on_two_nodes_gives_what_one_process_gives_while_its_command_stays_small(
    build: Any,
    uninterrupted: Any,
    finished: Callable[[Path], Any],
    two_nodes: TwoNodes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    told, most_bytes = build.watch(tmp_path / "run", *on(two_nodes))
    assert told.code == 0, told.err
    finished(tmp_path / "run").assert_equals(uninterrupted)
    assert 0 < most_bytes < MOST_DRIVER_BYTES


@pytest.mark.parametrize("stage", ["teacher signal", "90k screen", "90k tournament", "90k distil"])
def test_a_build_that_loses_a_node_gives_the_same_members(
    build: Any,
    uninterrupted: Any,
    finished: Callable[[Path], Any],
    two_nodes: TwoNodes,
    tmp_path: Path,
    stage: str,
) -> None:
    moment = uninterrupted.moment(stage, 0.5)
    told = build.survive(tmp_path / "run", moment, two_nodes.lose_one, *on(two_nodes))
    assert told.code == 0, told.err
    finished(tmp_path / "run").assert_equals(uninterrupted)


THREE = ("--set=baselines=[depth_only, random_shape]",)


@pytest.fixture(scope="module")
def three_members(build: Any, finished: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of one process, which trains a student and two baselines one after the other."""
    run = tmp_path_factory.mktemp("three") / "run"
    told = build.finish(run, *THREE)
    assert told.code == 0, told.err
    return finished(run)


def assert_side_by_side(run: Any) -> None:
    """The baselines were trained in the student's stage."""
    others = {entry["stage"]: set(entry.get("of_others", ())) for entry in run.ledger()}
    assert others["90k distil"] == {"90k-depth-only distil", "90k-random-shape distil"}


def test_three_members_that_two_nodes_train_side_by_side_are_those_that_one_process_trains(
    build: Any, three_members: Any, finished: Callable[[Path], Any], two_nodes: TwoNodes, tmp_path: Path
) -> None:
    told = build.finish(tmp_path / "run", *THREE, *on(two_nodes))
    assert told.code == 0, told.err
    run = finished(tmp_path / "run")
    run.assert_equals(three_members)
    assert_side_by_side(run)


def test_a_kill_while_members_are_trained_side_by_side_changes_nothing(
    build: Any, three_members: Any, finished: Callable[[Path], Any], two_nodes: TwoNodes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    three_members.copy_before("90k distil", run)
    under_way = lambda: len({path.parent for path in run.glob("checkpoints/*/checkpoint-*")}) > 1  # noqa: E731
    killed = build.kill_when(run, under_way, *THREE, *on(two_nodes))
    assert killed.code == -9, killed.err
    again = build.finish(run, *THREE, *on(two_nodes))
    assert again.code == 0, again.err
    finished(run).assert_equals(three_members)


def test_a_node_that_is_lost_while_members_are_trained_side_by_side_changes_nothing(
    build: Any, three_members: Any, finished: Callable[[Path], Any], two_nodes: TwoNodes, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    three_members.copy_before("90k distil", run)
    moment = three_members.moment("90k distil", 0.0, "checkpoints/90k/checkpoint-*")
    told = build.survive(run, moment, two_nodes.lose_one, *THREE, *on(two_nodes))
    assert told.code == 0, told.err
    finished(run).assert_equals(three_members)
    assert_side_by_side(finished(run))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings
def test_a_distillation_by_itself_on_two_nodes_gives_what_one_process_gives(
    trained_teacher: Path, text_file: Path, two_nodes: TwoNodes, tmp_path: Path
) -> None:
    shape, text = {"intermediate_size": 64}, TextSettings(sequence_length=64, validation_samples=16)
    plain = {"scores": "random", "start": "select", "repair": "none"}
    student = prune(trained_teacher, tmp_path / "student", shape, display=Quiet(), **plain).path
    settings = DistillationSettings(tokens=2048, batch_sequences=4, learning_rate=5e-4)
    here, there = RunnerSettings(kind="local"), RunnerSettings(address=two_nodes.address, cpus_per_trial=1)
    weights = []
    for name, runner in (("here", here), ("there", there)):
        out = tmp_path / name
        distill(student, trained_teacher, text_file, out, settings=settings, text=text, runner=runner, display=Quiet())
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_the_script_of_two_nodes_makes_a_cluster_and_a_build_on_it(
    build: Any, uninterrupted: Any, finished: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = tmp_path / "plan.yaml", tmp_path / "run"
    plan.write_text((uninterrupted.path / "plan.yaml").read_text())
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))  # where no token is kept
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MINITRON_NAS_PORT", str(free.getsockname()[1]))
    command = ["bash", str(resource("runners", "two-nodes.sh")), str(plan), str(out)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert told.returncode == 0, told.stderr
    finished(out).assert_same_results(uninterrupted)
