"""Settings of where trials run; no torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field

from minitron_nas.settings import Settings


class RunnerSettings(Settings):
    """Where trials run.

    Attributes:
        kind: `ray` runs them as Ray Tune trials, on a Ray that is started here or on `address`;
            `local` runs the same function in this process, one after the other.
        address: A running Ray cluster ("auto" or ray://host:port); the run folder must then lie on
            storage that all nodes share.
        cpus_per_trial: CPUs of one trial; without it, one where there are GPUs, else all of the
            machine's, because CPU trials are bound by memory.
        gpus_per_trial: GPUs of one trial; without it, one where there are any.
        max_worker_losses: How often a trial whose worker died is tried again.
        max_failures: A search stops when more trials than this fail by an error of their own.
    """

    kind: Literal["ray", "local"] = "ray"
    address: str | None = None
    cpus_per_trial: Annotated[float, Field(gt=0)] | None = None
    gpus_per_trial: Annotated[float, Field(ge=0)] | None = None
    max_worker_losses: Annotated[int, Field(ge=0)] = 2
    max_failures: Annotated[int, Field(ge=0)] = 2
