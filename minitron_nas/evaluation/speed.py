"""Measured speed and memory of a stock folder, in a process of its own."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from minitron_nas.errors import MinitronNasError
from minitron_nas.evaluation.settings import EvaluationSettings
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_inference


@dataclass(frozen=True, slots=True)
class Speed:
    """Batch 1, in the device's compute dtype.

    Attributes:
        prefill_tokens_per_second: Prompt tokens over the time to the first new token.
        decode_tokens_per_second: New tokens over the time from the first one on.
        peak_memory_bytes: Peak resident set of the measuring process on a CPU; peak allocated
            memory on CUDA.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_memory_bytes: int


def measure_speed(path: Path, settings: EvaluationSettings) -> Speed:
    """Measure a model in a fresh process, so that its peak memory is its own.

    Args:
        path: A stock folder.
        settings: Lengths of prompt and answer, and how often they are measured.

    Raises:
        MinitronNasError: If the process fails; the message ends with its last line.
    """
    arguments = [str(path), str(settings.prompt_tokens), str(settings.decode_tokens), str(settings.repeats)]
    result = subprocess.run(
        [sys.executable, "-m", "minitron_nas.evaluation.speed", *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise MinitronNasError(f"measuring the speed of {path} failed: {last}")
    return Speed(**json.loads(result.stdout.strip().splitlines()[-1]))


@torch.inference_mode()
def _measure(path: Path, prompt_tokens: int, decode_tokens: int, repeats: int) -> Speed:
    model = load_for_inference(path)
    device = model.device
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, prompt_tokens), generator=generator).to(device)
    prefill_seconds, decode_seconds = [], []
    for repeat in range(repeats + 1):
        first, output = _timed(device, lambda: model(input_ids=prompt, use_cache=True, logits_to_keep=1))
        rest, _ = _timed(device, lambda output=output: _decode(model, output, decode_tokens))  # type: ignore[misc]
        if repeat:
            prefill_seconds.append(first)
            decode_seconds.append(rest)
    return Speed(
        prompt_tokens / statistics.median(prefill_seconds),
        decode_tokens / statistics.median(decode_seconds),
        _peak_memory_bytes(device),
    )


def _decode(model: CausalLM, output: CausalLMOutputWithPast, decode_tokens: int) -> None:
    for _ in range(decode_tokens):
        assert output.logits is not None
        token = output.logits[:, -1:].argmax(dim=-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)


def _timed(device: torch.device, action: Callable[[], Any]) -> tuple[float, Any]:
    _synchronize(device)
    started = time.perf_counter()
    result = action()
    _synchronize(device)
    return time.perf_counter() - started, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    print(json.dumps(asdict(_measure(Path(folder), *(int(count) for count in counts)))))
