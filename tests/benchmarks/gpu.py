"""Distillation, the teacher's signal, surgery and screening on one GPU: speed, memory, and time waiting for data.

`python tests/benchmarks/gpu.py` needs torch, transformers and this package; nothing is downloaded, all weights and
tokens are random. The teacher has the shape of Llama 3.1 8B, the students 0.5B to 4B; 16 sequences of 2048 tokens make
an optimizer step. Our loop, beside the teacher and with what it said in a cache, is compared with those that people
write: a plain loop and Hugging Face's Trainer, both over whole logits. Everything is measured in a process of its own,
so that memory is its own and one that runs out of it is a line of the table. What does not fit into `--minutes` is
skipped, and named. It takes 28 GB of disk in `--folder`, and more main memory than the teacher's 16 GB.

- Tokens per second: the median over steps after the first.
- Utilisation: operations that no loop can do without (products of matrices and attention, forward and backward; those
  of the teacher where it is not cached; nothing twice) against what the device multiplies, which is its data sheet's
  figure where it is known here, and else that of a large product in bfloat16.
- Peak: the most memory that tensors took; above weights: without the student's weights, gradients and moments, and the
  teacher's weights, of a cached one its head. On a CPU the resident set, with Python and libraries in it.
- Waiting for data: from when the device has done what it was given before a batch, or what the teacher said of it, was
  asked for, to when that lies in its memory; as a share of the measured steps. A fetch that the device does not notice
  counts nothing. The cache is read from the disk.

Teacher and students of all loops start from the same weights and read the same batches, so that their losses at the
first step are equal but for rounding; where they are not, the script says so and fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product, starmap
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_shapes import FULL, TINY, Scale
from gpu_tables import AS_WRITTEN, CACHED, Figures, agree, fill_in, show

FIRST, LATER = ("plain loop", CACHED), ("Trainer", "ours, online")
"""Loops that are compared for all students before others are."""

STAGES = ("device", "signal", "teacher", "surgery", "screening")
NEEDS = {CACHED: ("signal",), AS_WRITTEN: ("signal",), "surgery": ("teacher",), "screening": ("signal", "teacher")}

ONLY = "measure this in this process, with what signal and teacher have left in --folder, and print JSON"


@dataclass(frozen=True)
class Task:
    """Something to measure, of one student or of all."""

    name: str
    student: str | None = None

    def __str__(self) -> str:
        return self.name if self.student is None else f"{self.name}, {self.student}"


@dataclass
class Session:
    """What is measured within a time, and what was found.

    Attributes:
        scale: Teacher, students and batches.
        folder: For what one task leaves to another.
        seconds: How long it may take.
        is_tiny: Whether the shapes are those for tests.
        found: Figures of every task, or why there are none, under `failed`.
    """

    scale: Scale
    folder: Path
    seconds: float
    is_tiny: bool
    found: dict[Task, Figures] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()

    @property
    def passed_seconds(self) -> float:
        return time.monotonic() - self._started

    def tasks(self) -> Iterator[Task]:
        """Yield what is to be measured, the most important first."""
        yield from (Task("device"), Task("signal"))
        yield from starmap(Task, product(FIRST, self.scale.students))
        yield from map(Task, ("teacher", "surgery", "screening"))
        as_written = () if self.is_tiny else (AS_WRITTEN,)  # which they are on a CPU anyhow
        yield from starmap(Task, product((*LATER, *as_written), self.scale.students))

    def measure(self) -> None:
        """Measure one after the other, as far as time goes."""
        for task in self.tasks():
            begin = self.passed_seconds
            self.found[task] = self._measured(task, self.seconds - begin)
            self.found[task]["process_seconds"] = self.passed_seconds - begin
            word = self.found[task].get("failed", "measured")
            print(f"{self.passed_seconds:4.0f} s  {task}: {word}", file=sys.stderr)

    def _measured(self, task: Task, left: float) -> Figures:
        if lacking := [name for name in NEEDS.get(task.name, ()) if "failed" in self.found[Task(name)]]:
            return {"failed": f"needs {' and '.join(lacking)}"}
        loops = (figures["process_seconds"] for known, figures in self.found.items() if known.student is not None)
        if left < (max(loops, default=0) if task.student is not None else 0) or left <= 0:
            return {"failed": f"skipped: {max(left, 0):.0f} s were left"}
        return in_own_process(self._command(task), left)

    def _command(self, task: Task) -> list[str]:
        students = task.student or ",".join(self.scale.students)
        options = ["--only", task.name, "--students", students, "--folder", str(self.folder)]
        return [sys.executable, __file__, *options, *(["--tiny"] if self.is_tiny else [])]

    def figures(self) -> Figures:
        """Return what was found, by stage, and by student and loop."""
        stages = {task.name: figures for task, figures in self.found.items() if task.student is None}
        students: Figures = {}
        for task, figures in self.found.items():
            if task.student is not None:
                students.setdefault(task.student, {})[task.name] = figures
        return {**stages, "students": students, "seconds": self.passed_seconds}


def in_own_process(command: list[str], seconds: float) -> Figures:
    """Run a command of this script and return what it prints, or why it prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {seconds:.0f} s, when time was over"}
    if done.returncode < 0:
        return {"failed": f"killed by {signal.Signals(-done.returncode).name}"}
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return {"failed": done.stderr.strip().splitlines()[-1], "is_defect": True}
    figures: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def prepare_environment() -> None:
    """Let this process and its own see one device and no network; torch must not have been imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Freed blocks of other sizes would be lost to what comes next, which the largest student cannot spare.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def measure_here(scale: Scale, task: str, folder: Path) -> Figures:
    """Measure one thing in this process."""
    from minitron_nas.errors import MinitronNasError
    from minitron_nas.execution.runner import is_out_of_memory

    try:
        if task == "device":
            from gpu_device import device

            return device(scale)
        if task in STAGES:
            import gpu_stages

            return gpu_stages.STAGES[task](scale, folder)
        from gpu_contenders import Setup, contend

        (student,) = scale.students
        return contend(Setup(scale, student, folder), task)
    except (MinitronNasError, MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            return {"failed": "out of memory"}
        if isinstance(error, MinitronNasError):
            return {"failed": str(error)}
        raise


def parsed(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", help=f"of {', '.join(FULL.students)}, with commas between them; all")
    parser.add_argument("--minutes", type=float, default=8.0, help="what has not begun by then is skipped; 8")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--folder", type=Path, help="an existing folder on a disk with room; a temporary one")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--only", choices=(*STAGES, *FIRST, *LATER, AS_WRITTEN), help=ONLY)
    arguments = parser.parse_args(words)
    scale = TINY if arguments.tiny else FULL
    names = arguments.students.split(",") if arguments.students else list(scale.students)
    if unknown := set(names) - set(scale.students):
        parser.error(f"no student {', '.join(sorted(unknown))}; choose from {', '.join(scale.students)}")
    if arguments.only and (arguments.folder is None or (arguments.only not in STAGES and len(names) > 1)):
        parser.error("--only needs --folder, and for a loop one of --students")
    arguments.scale = replace(scale, students={name: scale.students[name] for name in names})
    return arguments


def main(words: list[str] | None = None) -> int:
    arguments = parsed(words)
    prepare_environment()
    if arguments.only:
        print(json.dumps(measure_here(arguments.scale, arguments.only, arguments.folder)))
        return 0
    with TemporaryDirectory(dir=arguments.folder) as folder:
        session = Session(arguments.scale, Path(folder), 60 * arguments.minutes, arguments.tiny)
        session.measure()
    found = session.figures()
    if "failed" in found["device"]:
        print(f"no device: {found['device']['failed']}")
        return 1
    fill_in(arguments.scale, found)
    show(arguments.scale, found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    is_broken = any("is_defect" in figures for figures in session.found.values())
    return int(is_broken or not all(agree(loops) for loops in found["students"].values()))


if __name__ == "__main__":
    sys.exit(main())
