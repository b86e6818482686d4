"""Handing a plan to a running Ray cluster, which builds the family without this machine."""

import json
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.plan import load_plan
from minitron_nas.storage.machine import expanded
from minitron_nas.storage.remote import as_path, as_uri

if TYPE_CHECKING:
    from minitron_nas.execution.ray_jobs import JobEnd

_VARIABLE = "MINITRON_NAS_PLAN"
_NAMES = {"teacher", "data", "path", "include_path", "deepspeed", "latency", "extends"}
"""Keys of a plan whose values may be files."""

_MOST_BYTES = 100_000
"""Of a plan: an environment variable has no more than 128 KiB on Linux."""


def submit(
    plan: str | Path, address: str, out: str | Path, overrides: Iterable[str] = (), python: str = "python"
) -> str:
    """Hand a plan to a cluster and return the id of the job that builds it there.

    Nothing but the plan goes to the cluster. Teacher, text and run folder are paths that all of its nodes see, or hub
    names; files that are named from here on are named from the root on. The plan is held against the cluster there,
    before any work. The job takes no GPU: its stages ask for theirs.

    Args:
        plan: A YAML file.
        address: Of the head's dashboard, such as http://head:8265.
        out: The run folder on the cluster, an absolute path on storage that all nodes share; or a URI.
        overrides: `key.subkey=value` strings that replace what the plan says.
        python: The Python of the cluster that has minitron_nas, by name or path.

    Raises:
        PlanError: If the plan has faults, the folder is relative, or no cluster takes the job.
    """
    place = as_uri(out) or str(as_path(out))
    if as_uri(out) is None and not PurePosixPath(place).is_absolute():
        raise PlanError(
            f"--out {out} is relative, and a job works in a folder of Ray's own that ends with the cluster; give an "
            "absolute path on storage that all nodes share, or a URI"
        )
    planned = load_plan(plan, overrides)
    runner = planned.runner.model_copy(update={"kind": "ray", "address": "auto"})
    text = json.dumps(_from_root(planned.model_copy(update={"runner": runner}).to_dict()))
    if len(text) > _MOST_BYTES:
        raise PlanError(
            f"{plan} has {len(text):,} characters, and goes to the cluster as a variable of at most {_MOST_BYTES:,}; "
            "name fewer files in data, a folder or a glob"
        )
    from minitron_nas.execution.ray_jobs import JobServer  # deferred: Ray is imported where it is used

    build = shlex.join([python, "-m", "minitron_nas", "build", "--plan", "-", "--out", place])
    server = JobServer(address)
    return server.submit(f'printf %s "${_VARIABLE}" | {build}', {_VARIABLE: text}, {"minitron_nas": place})


def _from_root(value: Any, key: str = "") -> Any:
    """Return a plan's values with the files that it names from here named from the root on."""
    if isinstance(value, dict):
        return {name: _from_root(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_from_root(inner, key) for inner in value]
    if key not in _NAMES or not isinstance(value, str):
        return value
    path = expanded(value)
    return str(path.absolute()) if path.exists() or set(value) & set("*?[") else value


def attach(job: str, address: str, write: Callable[[str], object]) -> "JobEnd":
    """Pass on what a job prints until it has ended, and return how it has.

    Args:
        job: What `submit` returned.
        address: Of the head's dashboard.
        write: Gets the text.

    Raises:
        PlanError: If the cluster does not answer, or knows no such job.
    """
    from minitron_nas.execution.ray_jobs import JobServer  # deferred: Ray is imported where it is used

    return JobServer(address).follow(job, write)


def stop(job: str, address: str) -> bool:
    """End a job, and return whether it was running; `submit` with the same folder goes on with its run.

    Args:
        job: What `submit` returned.
        address: Of the head's dashboard.

    Raises:
        PlanError: If the cluster does not answer, or knows no such job.
    """
    from minitron_nas.execution.ray_jobs import JobServer  # deferred: Ray is imported where it is used

    return JobServer(address).stop(job)
