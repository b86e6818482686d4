"""One way to distil SmolLM2 into a student with FFN 1024, timed in a process of its own.

`python tests/benchmarks/contenders.py NAME TEACHER FOLDER` prints one line of JSON. Every contender takes the same
steps of 4 x 512 tokens with forward KL, AdamW with float32 weights and bfloat16 products, on the same random tokens.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.signals.caches import keep_signal
from minitron_nas.distillation.signals.folder import SignalPlace
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.distillation.signals.teacher import OnlineTeacher, TeacherSignal
from minitron_nas.distillation.training.lesson import Lesson, Stream
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.execution.device import compute_dtype
from minitron_nas.models.checkpoint import open_checkpoint
from minitron_nas.models.loading import load_for_inference
from minitron_nas.text.tokens import PackedTokens

BATCH, LENGTH = 4, 512
WARM_STEPS, STEPS = 1, 3
DTYPE = compute_dtype(torch.device("cpu"))
HALF = DTYPE is torch.bfloat16
LEARNING_RATE = 1e-4

Tick = Callable[[], None]


def tokens() -> PackedTokens:
    """Random tokens of whole documents, so that every contender attends to the same."""
    ids = torch.randint(0, 49152, (BATCH * (WARM_STEPS + STEPS), LENGTH), generator=torch.Generator().manual_seed(0))
    return PackedTokens(ids, torch.arange(LENGTH).expand_as(ids))


def new_student(teacher: Path) -> Any:
    config = AutoConfig.from_pretrained(teacher)
    config.intermediate_size = 1024
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def plain_loop(teacher: Path, folder: Path, tick: Tick) -> None:
    """Whole logits of both models."""

    def loss(student: Any, speaker: Any, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = speaker(input_ids=ids, use_cache=False).logits
        logits = student(input_ids=ids, use_cache=False).logits
        with torch.autocast("cpu", enabled=False):
            return whole_kl(logits, target)

    written_out(teacher, tick, loss)


def chunked_kernel(teacher: Path, folder: Path, tick: Tick) -> None:
    """A plain loop with the kernel of TRL's DistillationTrainer, which projects hidden states in tiles."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    def loss(student: Any, speaker: Any, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = speaker.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        hidden = student.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        heads = (student.lm_head.weight, None, target, speaker.lm_head.weight.to(DTYPE), None)
        divergence, _ = ChunkedDivergenceFunction.apply(hidden.to(DTYPE), *heads, 0.0, 1.0, 1.0, None, 1.0, None)
        return divergence.sum() / ids.numel()

    written_out(teacher, tick, loss)


def written_out(teacher: Path, tick: Tick, loss: Callable[[Any, Any, torch.Tensor], torch.Tensor]) -> None:
    """Train in a loop without a trainer."""
    student, speaker = new_student(teacher), load_for_inference(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
    for ids in tokens().input_ids.split(BATCH):
        with torch.autocast("cpu", dtype=DTYPE, enabled=HALF):
            value = loss(student, speaker, ids)
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick()


class Distiller(Trainer):
    """Hugging Face's Trainer with a `compute_loss` over whole logits."""

    def __init__(self, student: Any, speaker: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(student, *args, **kwargs)
        self._speaker = speaker

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        with torch.no_grad():
            target = self._speaker(input_ids=inputs["input_ids"], use_cache=False).logits
        return whole_kl(model(input_ids=inputs["input_ids"], use_cache=False).logits, target)


def trainer(teacher: Path, folder: Path, tick: Tick) -> None:
    """Hugging Face's Trainer."""
    rows = [{"input_ids": ids} for ids in tokens().input_ids]
    arguments = TrainingArguments(**trainer_arguments(folder))
    speaker = load_for_inference(teacher)
    Distiller(new_student(teacher), speaker, arguments, train_dataset=rows, callbacks=[Ticker(tick)]).train()


def gkd(teacher: Path, folder: Path, tick: Tick) -> None:
    """TRL's GKDTrainer on offline data: no generation, forward KL."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = Dataset.from_dict({"input_ids": tokens().input_ids.tolist()})

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = torch.tensor([row["input_ids"] for row in batch])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    arguments = GKDConfig(
        **trainer_arguments(folder),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        max_length=LENGTH,
        gradient_checkpointing=False,
    )
    GKDTrainer(
        new_student(teacher),
        load_for_inference(teacher),
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(teacher),
        callbacks=[Ticker(tick)],
    ).train()


def ours(student: Any, text: PackedTokens, signal: TeacherSignal, folder: Path, tick: Tick, **changes: Any) -> None:
    """Our loop, once over a text, with some settings changed."""
    fixed = {"tokens": text.num_tokens, "num_evaluations": 1, "checkpoint_minutes": 1000}
    batch = {"learning_rate": LEARNING_RATE, "batch_sequences": BATCH, "micro_batch_sequences": BATCH}
    settings = DistillationSettings.model_validate({**fixed, **batch, **changes})
    schedule = Schedule.resolve(settings, text.num_tokens, text.input_ids.shape[1])
    few = Stream(text.first(1), signal)
    lesson = Lesson(Stream(text, signal), few, settings, schedule, 0)
    distill(student, lesson, folder, progress=lambda *_: tick())


def online(teacher: Path, folder: Path, tick: Tick) -> None:
    """Our loop beside the teacher."""
    signal = OnlineTeacher(load_for_inference(teacher))
    ours(new_student(teacher), tokens(), signal, folder, tick, teacher_signal="online")


def cached(teacher: Path, folder: Path, tick: Tick, torch_compile: bool = False) -> None:
    """Our loop with a cache of what the teacher said, which `write_cache` has written."""
    text = tokens()
    cache = HiddenCache(SignalPlace(folder.parent / "cache", open_checkpoint(teacher).fingerprint, text))
    kind = {"teacher_signal": "hidden_cache", "torch_compile": torch_compile}
    ours(new_student(teacher), text, cache, folder, tick, **kind)


def write_cache(teacher: Path, folder: Path) -> None:
    """Run the teacher over the text once."""
    fingerprint = open_checkpoint(teacher).fingerprint
    keep_signal(None, lambda: load_for_inference(teacher), SignalPlace(folder.parent / "cache", fingerprint, tokens()))


class Ticker(TrainerCallback):
    """Tells of every optimizer step."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self._tick()


def trainer_arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "bf16": HALF,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }


def resident_peak_bytes() -> int:
    """The greatest resident set of this process so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def whole_kl(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean KL over tokens, from logits in float32, as Trainer loops write it."""
    student, teacher = (log_softmax(side.flatten(0, 1).float(), dim=-1) for side in (logits, target))
    return kl_div(student, teacher, reduction="batchmean", log_target=True)


CONTENDERS = {
    "plain loop": plain_loop,
    "Trainer": trainer,
    "TRL GKDTrainer": gkd,
    "TRL's chunked kernel": chunked_kernel,
    "ours, online": online,
    "ours, cached": cached,
    "ours, cached, layers compiled": partial(cached, torch_compile=True),
}


def main() -> None:
    name, teacher, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if name == "write cache":
        write_cache(teacher, folder)
        return
    times = [time.perf_counter()]
    CONTENDERS[name](teacher, folder, lambda: times.append(time.perf_counter()))
    seconds = [end - start for start, end in pairwise(times)][-STEPS:]
    peak = resident_peak_bytes()
    student = sum(parameter.numel() for parameter in new_student(teacher).parameters())
    print(
        json.dumps(
            {
                "tokens_per_second": BATCH * LENGTH / statistics.median(seconds),
                "peak_bytes": peak,
                "student_parameters": student,
            }
        )
    )


if __name__ == "__main__":
    main()
