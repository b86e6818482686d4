import pytest
from pydantic import ValidationError

from minitron_nas.execution.settings import RunnerSettings


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379"])
def test_a_cluster_is_named_by_auto_or_by_host_and_port(address: str | None) -> None:
    assert RunnerSettings(address=address).address == address


def test_an_address_of_ray_client_is_refused() -> None:
    with pytest.raises(
        ValidationError,
        match=r"ray://head:10001 is an address of Ray Client, .*; run the command on a node of the cluster and say "
        r"runner\.address=auto",
    ):
        RunnerSettings(address="ray://head:10001")
