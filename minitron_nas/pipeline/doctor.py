"""`examine`: what this machine can do, in the words of a plan, and what mends what is missing."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryFile

import psutil
import torch
from huggingface_hub.constants import HF_HUB_CACHE
from packaging.requirements import Requirement

from minitron_nas.distillation.training.arguments import check_engine
from minitron_nas.errors import MinitronNasError
from minitron_nas.execution.compiler import has_compiler
from minitron_nas.execution.device import available_bytes, compute_dtype, pick_device, total_bytes
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.preflight import check_tasks
from minitron_nas.settings import about_bytes
from minitron_nas.storage.cache import cache_folder

_REHEARSAL_SECONDS = 240
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
_RAISED = re.compile(r"(\[rank\d+\]: )?[\w.]*(Error|Exception): ")
"""The line of a traceback that says what was raised."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a machine can or cannot do.

    Attributes:
        name: What it is about.
        works: Whether it is there.
        needed: Whether the plan, or every run, needs it.
        told: What was found.
        remedy: What mends it, where it does not work.
    """

    name: str
    works: bool
    needed: bool
    told: str
    remedy: str | None = None


def examine(plan: FamilyPlan | None = None) -> Iterator[Finding]:
    """Try what runs use, the parts that take seconds last.

    Args:
        plan: What needs it; without one, only what every run needs counts as needed.
    """
    yield _packages()
    yield _accelerator(plan)
    yield _memory()
    for name, folder in (("cache of teachers", cache_folder()), ("cache of the hub", Path(HF_HUB_CACHE))):
        yield _folder(name, folder)
    if plan is not None:
        yield _training(plan)
    yield _benchmarks(plan)
    yield _compiler(plan)
    yield _rehearsal("ray", (), plan is not None and plan.runner.kind == "ray")
    yield _rehearsal("deepspeed", _TORCHRUN, plan is not None and plan.distillation.deepspeed is not None)


def _packages() -> Finding:
    asked = [Requirement(line) for line in requires("minitron-nas") or ()]
    wanted = [one for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [f"{one} ({found or 'not installed'})" for one in wanted if not _fits(one, found := _version(one.name))]
    told = f"Python {platform.python_version()}, minitron-nas {version('minitron-nas')}, torch {torch.__version__}"
    if wrong:
        return Finding("packages", False, True, "; ".join(wrong), "pip install --upgrade minitron-nas")
    return Finding("packages", True, True, f"{told}; all {len(wanted)} that are asked for")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _fits(requirement: Requirement, found: str | None) -> bool:
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def _accelerator(plan: FamilyPlan | None) -> Finding:
    device = pick_device()
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    needed = plan is not None and bool(plan.runner.gpus_per_trial) and not plan.runner.on_cluster
    if device.type == "cuda":
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("GPUs", True, needed, f"{names}; computes in {dtype}")
    if Path("/dev/nvidia0").exists():
        return Finding(
            "GPUs",
            False,
            True,
            f"there is one, and torch {torch.__version__} does not see it",
            "install a build of torch for its driver, see https://pytorch.org/get-started/locally",
        )
    cpus = f"none; computes on {os.cpu_count()} CPUs in {dtype}"
    return Finding("GPUs", False, needed, cpus, "runner.gpus_per_trial=0" if needed else None)


def _memory() -> Finding:
    device = pick_device()
    free, total = available_bytes(device), total_bytes(device)
    return Finding("memory", True, True, f"{about_bytes(free)} free of {about_bytes(total)} on {device}")


def _folder(name: str, folder: Path) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"1")
    except OSError as error:
        variable = "MINITRON_NAS_CACHE" if folder == cache_folder() else "HF_HOME"
        return Finding(name, False, True, f"{folder}: {error.strerror}", f"export {variable}=a folder to write to")
    return Finding(name, True, True, f"{folder}, {about_bytes(shutil.disk_usage(folder).free)} free")


def _training(plan: FamilyPlan) -> Finding:
    try:
        check_engine(plan.distillation)
    except MinitronNasError as error:
        return Finding("training", False, True, str(error), "change what the plan says of distillation")
    return Finding("training", True, True, "engine and trackers of the plan are there")


def _benchmarks(plan: FamilyPlan | None) -> Finding:
    needed = plan is not None and bool(plan.evaluation.tasks or plan.importance.depth.criterion == "task")
    try:
        if plan is not None:
            check_tasks(plan)
    except MinitronNasError as error:
        return Finding("lm-eval", False, needed, str(error), "change evaluation.tasks")
    tasks = f", with the {len(plan.evaluation.tasks)} tasks of the plan" if plan is not None and needed else ""
    return Finding("lm-eval", True, needed, f"{version('lm-eval')}{tasks}")


def _compiler(plan: FamilyPlan | None) -> Finding:
    needed = plan is not None and plan.distillation.torch_compile is True
    if has_compiler():
        return Finding("torch.compile", True, needed, "works")
    return Finding(
        "torch.compile", False, needed, "nothing compiles; training takes longer", "install g++ and Python's headers"
    )


def _rehearsal(what: str, start: Sequence[str], needed: bool) -> Finding:
    """Do a small piece of real work in processes of its own, which may crash or hang."""
    command = [sys.executable, *start, "-m", "minitron_nas.execution.rehearsal", what]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOG_LEVEL": "ERROR"}
    remedy = f"pip install --upgrade --force-reinstall {what}"
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        try:
            _, told = process.communicate(timeout=_REHEARSAL_SECONDS)
        except subprocess.TimeoutExpired:
            return Finding(what, False, needed, f"did not answer in {_REHEARSAL_SECONDS} s", remedy)
        finally:
            if process.poll() is None:
                for one in (*psutil.Process(process.pid).children(recursive=True), process):
                    one.kill()
    if process.returncode == 0:
        processes = "a worker answered" if not start else "two processes took an optimizer step"
        return Finding(what, True, needed, f"{_version(what)}; {processes}")
    lines = told.strip().splitlines() or [f"exit code {process.returncode} without a word"]
    return Finding(what, False, needed, next(filter(_RAISED.match, lines), lines[-1]).strip(), remedy)
