"""Measured speed and memory of stock folders: in turns with the teacher, each model in a process of its own.

A machine is never quiet for long. So a figure that people read is a median of rounds, compared within rounds: the model
and its teacher are timed one after the other, again and again, and the speedup is the median of the rounds' ratios.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
import torch

from minitron_nas.errors import MinitronNasError
from minitron_nas.evaluation.clock import decode, prefill, random_prompt, timed
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.evaluation.turns import Reals, spread, take_turns
from minitron_nas.execution.device import available_bytes, pick_device
from minitron_nas.models.loading import load_whole
from minitron_nas.models.placement import is_larger_than_device, whole_model_bytes

_END = "end"


@dataclass(frozen=True, slots=True)
class Speed:
    """Batch 1, in the device's compute dtype; nothing of a model that is larger than the device.

    Attributes:
        prefill_tokens_per_second: Prompt tokens over the median time to the first new token.
        decode_tokens_per_second: New tokens over the median time from the first one on.
        peak_memory_bytes: Peak resident set of the measuring process on a CPU; peak allocated
            memory on CUDA.
        prefill_speedup: The teacher's time over this model's, median of the rounds; 1 for the teacher itself, None
            where that is larger than the device.
        decode_speedup: The same of decoding.
        prefill_spread: Interquartile range over median of the rounds' speedups; of its own times where there are none.
        decode_spread: The same of decoding.
    """

    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    prefill_speedup: float | None = None
    decode_speedup: float | None = None
    prefill_spread: float | None = None
    decode_spread: float | None = None


def measure_speed(path: Path, settings: EvaluationSettings, teacher: Path | None = None) -> Speed:
    """Measure a model in turns with its teacher, each in a fresh process, so that its peak memory is its own.

    Processes last for all rounds where the models fit into memory together, else for one round each.
    There are `settings.repeats` rounds after one to warm up, and again as many, up to three times as many in all, while
    a spread is above `turns.WIDE_SPREAD`.
    What is larger than the device is not timed: that would be the time in which weights come to it.

    Args:
        path: A stock folder.
        settings: Lengths of prompt and answer, and how many rounds there are at least.
        teacher: The teacher's folder; None if the model is the teacher.

    Raises:
        MinitronNasError: If a process fails; the message ends with its last line.
    """
    if is_larger_than_device(path):
        return Speed()
    models = [path] if teacher is None or is_larger_than_device(teacher) else [path, teacher]
    if _fit_together(models):
        with ExitStack() as stack:
            workers = [stack.enter_context(_worker(each, settings)) for each in models]
            times = take_turns([worker.take for worker in workers], settings.repeats, compared)
            peak_memory_bytes = workers[0].end()
    else:
        times = take_turns([partial(_take_afresh, each, settings) for each in models], settings.repeats, compared)
        with _worker(path, settings) as worker:
            worker.take()
            peak_memory_bytes = worker.end()
    prefill_seconds, decode_seconds = np.median(times[:, 0], axis=0)
    figures = compared(times)
    speedups: Sequence[float | None] = [None, None] if teacher is not None else [1.0, 1.0]
    if len(models) > 1:
        speedups = np.median(figures, axis=0).tolist()
    return Speed(
        settings.prompt_tokens / float(prefill_seconds),
        settings.decode_tokens / float(decode_seconds),
        peak_memory_bytes,
        *speedups,
        *spread(figures).tolist(),
    )


def compared(times: Reals) -> Reals:
    """Return the figures whose spread counts: how much faster than the teacher each round was, else its own times.

    Args:
        times: (num_rounds, num_models, 2), of the model, then of its teacher if there is one.

    Returns:
        (num_rounds, 2), for prefill and decode.
    """
    return times[:, 1] / times[:, 0] if times.shape[1] > 1 else times[:, 0]


class _Worker:
    """A process that holds a model and times it when it is asked to."""

    def __init__(self, path: Path, process: "subprocess.Popen[str]", errors: IO[str]) -> None:
        self._path, self._process, self._errors = path, process, errors

    def take(self) -> Sequence[float]:
        """Return the seconds of one prefill and of one decoding."""
        first, rest = self._ask("take")
        return first, rest

    def end(self) -> int:
        """End the process and return its peak memory in bytes."""
        peak: int = self._ask(_END)
        return peak

    def _ask(self, word: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or [f"exit code {code}"])[-1]
            raise MinitronNasError(f"measuring the speed of {self._path} failed: {last}")
        return json.loads(answer)


def _fit_together(models: Sequence[Path]) -> bool:
    """Whether models fit into the device's memory side by side."""
    if len(models) == 1:
        return True
    return sum(map(whole_model_bytes, models)) <= available_bytes(pick_device())


def _take_afresh(path: Path, settings: EvaluationSettings) -> Sequence[float]:
    """Time a model once in a process of its own, after once to warm up."""
    with _worker(path, settings) as worker:
        worker.take()
        return worker.take()


@contextmanager
def _worker(path: Path, settings: EvaluationSettings) -> Iterator[_Worker]:
    command = [sys.executable, "-m", "minitron_nas.evaluation.speed"]
    command += [str(path), str(settings.prompt_tokens), str(settings.decode_tokens)]
    with TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            yield _Worker(path, process, errors)
        finally:
            process.kill()
            process.communicate()


@torch.inference_mode()
def _answer(path: Path, prompt_tokens: int, decode_tokens: int) -> None:
    """Load a model; then time it once for each line read, until the last asks for the peak memory."""
    answers = sys.stdout
    with redirect_stdout(sys.stderr):
        model = load_whole(path)
        device = model.device
        prompt = random_prompt(model, 1, prompt_tokens)
        for line in sys.stdin:
            if line.strip() == _END:
                print(_peak_memory_bytes(device), file=answers, flush=True)
                return
            first, (token, cache) = timed(device, lambda: prefill(model, prompt))
            rest, _ = timed(device, lambda token=token, cache=cache: decode(model, token, cache, decode_tokens))  # type: ignore[misc]
            print(json.dumps([first, rest]), file=answers, flush=True)


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage would count the parent too: its peak outlives exec.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # deferred: exists on Unix only

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    folder, *counts = sys.argv[1:]
    _answer(Path(folder), *(int(count) for count in counts))
