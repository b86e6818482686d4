"""Settings of where work runs; no torch, no ray."""

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator

from minitron_nas.settings import Settings


class RunnerSettings(Settings):
    """Where trials and full distillations run.

    Attributes:
        kind: `ray` runs trials with Ray Tune and a full distillation of several processes with Ray
            Train, on a Ray that is started here or on `address`; `local` runs trials in this process,
            one after the other, and several processes with torchrun.
        address: A running Ray cluster, `auto` on one of its nodes or host:port; the run folder must then lie
            on storage that all nodes share. Without it, the one that the variable `RAY_ADDRESS` names.
        cpus_per_trial: CPUs of one trial, and of each process of a full distillation on Ray; without it, a
            process has one, and a trial its GPUs' share of their node, else all of the machine's, because
            CPU trials are bound by memory.
        gpus_per_trial: GPUs of one trial; without it, one where there are any. Several train it together, with
            `distillation.deepspeed` where that is set; with `local`, all of this machine's do.
        num_processes: Processes of one full distillation; without it, one for each GPU as far as the
            batch divides, else one. Where nodes have room for several trainings, a size's members train side by side.
        max_worker_losses: How often a trial or training whose worker died is tried again.
        max_failures: A search stops when more trials than this fail by an error of their own.
        timeout_factor: A trial is given up that takes this many times as long as the slowest that has ended in its
            rung, and a training of several processes on this machine that stands still for this many times as
            long as it ever did; null for never.
        timeout_minutes: And for at least so long.
        price_per_device_hour: What an hour of one device costs, in any currency; the report tells the cost of each
            stage by it.
    """

    kind: Literal["ray", "local"] = "ray"
    address: str | None = None
    cpus_per_trial: Annotated[float, Field(gt=0)] | None = None
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = None
    num_processes: Annotated[int, Field(ge=1)] | None = None
    max_worker_losses: Annotated[int, Field(ge=0)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 2
    timeout_factor: Annotated[float, Field(ge=1)] | None = 10.0
    timeout_minutes: Annotated[float, Field(ge=0)] = 10.0
    price_per_device_hour: Annotated[float, Field(ge=0)] | None = None

    @property
    def cluster(self) -> str | None:
        """The address of the running cluster that is named; None for a Ray that is started here, and for `local`."""
        if self.kind == "local":
            return None
        named = os.environ.get("RAY_ADDRESS")
        return self.address or (named if named != "local" else None) or None

    @property
    def on_cluster(self) -> bool:
        """Whether a running cluster is named."""
        return self.cluster is not None

    @field_validator("address")
    @classmethod
    def _no_ray_client(cls, value: str | None) -> str | None:
        if value is not None and is_ray_client(value):
            raise ValueError(f"{value} {NO_RAY_CLIENT}")
        return value


NO_RAY_CLIENT = (
    "is an address of Ray Client, over which trials cannot hand over their results; run the command on a node of the "
    "cluster and say runner.address=auto"
)


def is_ray_client(address: str) -> bool:
    """Whether an address is one of Ray Client.

    Args:
        address: Of a cluster.
    """
    return address.startswith("ray://")
