"""Whole builds on a Ray cluster of two nodes, whose head computes nothing, and on which nodes are lost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
