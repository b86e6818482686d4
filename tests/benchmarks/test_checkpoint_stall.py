"""How long training stands still for a checkpoint: one process writes all, each its part, each its part beside it.

Processes that hold the same weights and moments, as under DDP, take steps that wait for a device. What a checkpoint
costs is the time of the steps until it is whole, less what as many steps take without one. torch's distributed
checkpoint writes the same tensors in the same turns. Prints seconds, and what they come to for 8B on eight GPUs.
The folder is pytest's, and the memory that all processes share lies in /dev/shm.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import distributed, nn
from torch.distributed import checkpoint as torch_checkpoint
from transformers import TrainingArguments

from minitron_nas.distillation.training.checkpoints import OwnState, last_whole, load_weights, mark_whole
from minitron_nas.distillation.training.together import any_process
from minitron_nas.distillation.training.writer import CheckpointWriter

SHAPES = ((4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096))
"""Attention of one layer of Llama 3.1 8B: 42M numbers, and 0.5 GB of state."""

NUM_PROCESSES = (1, 2, 4)
ROUNDS = 3
STEP_SECONDS = 0.05
NUM_BYTES = 12 * sum(rows * columns for rows, columns in SHAPES)
STATE_8B_BYTES, NUM_GPUS, INTERVAL_SECONDS = 12 * 8.03e9, 8, 900
DISK_BYTES_PER_SECOND = 2e9
WAYS = ("one process", "each its part", "each its part, beside", "torch", "torch, beside")


class Model(nn.Module):
    """Matrices in memory that all processes share, so that several fit into one machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([shared(folder / f"weight-{n}", shape) for n, shape in enumerate(SHAPES)])
        self.optimizer = torch.optim.AdamW(self.parameters())
        for n, parameter in enumerate(self.parameters()):
            moments = {name: shared(folder / f"{name}-{n}", parameter.shape) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(1.0), **moments}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and moments by name, as torch's checkpoint takes them."""
        named = {f"weight-{n}": parameter.detach() for n, parameter in enumerate(self.parameters())}
        for n, parameter in enumerate(self.parameters()):
            named |= {f"{name}-{n}": self.optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")}
        return named


def shared(file: Path, shape: tuple[int, ...]) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.from_file(str(file), shared=True, size=size).reshape(shape)


class Worker:
    """One process of the measurement."""

    def __init__(self, folder: Path, memory: Path) -> None:
        self.folder = folder
        self.arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)  # joins the processes
        # Its thread talks with those of other processes, which must not get between what training says.
        self.group = distributed.new_group(backend="gloo") if distributed.is_initialized() else None
        self.model = Model(memory)
        self.is_whole = False
        self.writer = CheckpointWriter(
            folder / "parts", "run", self.arguments, partial(setattr, self, "is_whole", True)
        )

    def step(self, is_writing: bool = False) -> bool:
        """Wait for a device, and ask whether any process writes, as training does after every step."""
        time.sleep(STEP_SECONDS)
        return any_process(self.arguments.device, False, False, is_writing)[2]

    def seconds(self, way: str, number: int) -> tuple[float, float]:
        """Return how long training stood still for a checkpoint, and how long it took until it was whole."""
        started = time.perf_counter()
        for _ in range(20):
            self.step()
        a_step = (time.perf_counter() - started) / 20
        steps, started = 0, time.perf_counter()
        for _ in self.write(way, number):
            steps += 1
        until_whole = time.perf_counter() - started
        return until_whole - steps * a_step, until_whole

    def write(self, way: str, number: int) -> Iterator[None]:
        """Write a checkpoint, yielding after each step that is taken meanwhile."""
        if way == "one process":
            place = self.folder / "one" / f"checkpoint-{number}"
            if self.arguments.process_index == 0:
                OwnState.of(self.model, self.model.optimizer).save(place)
                mark_whole(place, "run")
            any_process(self.arguments.device, True)
        elif way.startswith("each"):
            self.is_whole, at_once = False, "beside" not in way
            self.writer.save(2 * number - at_once, self.model, self.model.optimizer, lambda _: None, at_once)
            while not self.is_whole:
                if not self.step(self.writer.is_writing):
                    self.writer.go_on()
                yield
        else:
            place = self.folder / "torch"
            if "beside" not in way:
                torch_checkpoint.save(self.model.tensors(), checkpoint_id=place)
                return
            future = torch_checkpoint.async_save(self.model.tensors(), checkpoint_id=place, process_group=self.group)
            while self.step(not future.done()):
                yield
            future.result()


def work(folder: Path, memory: Path) -> None:
    """Measure all ways in turns, in one of several processes; the first leaves what was measured."""
    worker, measured = Worker(folder, memory), {way: [] for way in WAYS}
    for number in range(1, ROUNDS + 1):
        for way in WAYS:
            if worker.arguments.process_index == 0:
                shutil.rmtree(folder / "torch", ignore_errors=True)
                os.sync()
            any_process(worker.arguments.device, True)
            measured[way].append(worker.seconds(way, number))
    state = OwnState.of(
        worker.model, worker.model.optimizer, worker.arguments.process_index, worker.arguments.world_size
    )
    copy, measured["copy"] = state.copied(), []
    for _ in range(ROUNDS):
        any_process(worker.arguments.device, True)
        started = time.perf_counter()
        copy = state.copied(copy)
        any_process(worker.arguments.device, True)
        measured["copy"].append((time.perf_counter() - started, 0.0))
    worker.writer.close()
    if worker.arguments.process_index == 0:
        (folder / "measured.json").write_text(json.dumps(measured))
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_checkpoint_beside_training_stops_it_for_a_small_share_of_what_one_process_takes(tmp_path: Path) -> None:
    print(f"a state of {NUM_BYTES / 1e9:.2f} GB, {ROUNDS} rounds in turns; medians: seconds that training stands still")
    for num_processes in NUM_PROCESSES:
        folder = tmp_path / str(num_processes)
        folder.mkdir()
        with TemporaryDirectory(dir="/dev/shm") as memory:
            fill(Path(memory))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc_per_node", str(num_processes), __file__, str(folder), memory]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            check_same(folder, Path(memory))
        tell(num_processes, json.loads((folder / "measured.json").read_text()))
        shutil.rmtree(folder)


def fill(memory: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for n, shape in enumerate(SHAPES):
        for name in ("weight", "exp_avg", "exp_avg_sq"):
            shared(memory / f"{name}-{n}", shape).normal_(generator=draw)


def check_same(folder: Path, memory: Path) -> None:
    found, expected = nn.ParameterList([torch.empty(shape) for shape in SHAPES]), Model(memory)
    load_weights(last_whole(folder / "parts", "run"), nn.ModuleDict({"matrices": found}))
    assert all(torch.equal(own, other) for own, other in zip(found, expected.matrices, strict=True))


def tell(num_processes: int, measured: dict[str, list[list[float]]]) -> None:
    """Print what was measured, and what it comes to at full size."""
    stalls = {way: statistics.median(stall for stall, _ in pairs) for way, pairs in measured.items()}
    wholes = {way: statistics.median(whole for _, whole in pairs) for way, pairs in measured.items()}
    for way in WAYS:
        print(
            f"{num_processes} processes, {way}: {stalls[way]:.2f} s ({stalls[way] / stalls['one process']:.3f} of one "
            f"process), whole after {wholes[way]:.2f} s ({NUM_BYTES / wholes[way] / 1e6:.0f} MB/s)"
        )
    own_bytes, own_8b_bytes = NUM_BYTES / num_processes, STATE_8B_BYTES / NUM_GPUS
    at_once = STATE_8B_BYTES / DISK_BYTES_PER_SECOND
    for what, seconds in (("the copy alone", stalls["copy"]), ("all that steps lose", stalls[WAYS[2]])):
        lost = own_8b_bytes * seconds / own_bytes
        print(
            f"{num_processes} processes, {what}: {own_bytes / seconds / 1e9:.2f} GB/s each; 8B on {NUM_GPUS} processes "
            f"loses {lost:.1f} s of {INTERVAL_SECONDS} at that rate: {lost / INTERVAL_SECONDS:.2%}"
        )
    print(
        f"writing {STATE_8B_BYTES / 1e9:.0f} GB at {DISK_BYTES_PER_SECOND / 1e9:.0f} GB/s takes {at_once:.0f} s: "
        f"{at_once / INTERVAL_SECONDS:.2%} if training waited"
    )


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]))
