"""What `gpu.py` derives from seconds and bytes, and how it tells it."""

import statistics
from collections.abc import Mapping
from typing import Any

from gpu_shapes import Scale

Figures = dict[str, Any]

OTHERS = ("plain loop", "Trainer")
CACHED, AS_WRITTEN = "ours, cached", "ours, cached, layers as written"
UTILISATION, SPEED_RATIO, MEMORY_RATIO = 0.45, 1.8, 0.5
"""Goals on one H100: of the cached loop, and against the fastest of the others."""
ROUNDING = 0.01
"""By which share of them losses may differ at the first step."""

_ITEMSIZE = {"bfloat16": 2, "float32": 4}


def fill_in(scale: Scale, found: Figures) -> None:
    """Add to seconds and bytes of loops and of the signal what the tables show."""
    device = found["device"]
    for name, loops in found["students"].items():
        for loop, figures in loops.items():
            if "failed" not in figures:
                is_cached, seconds = loop in (CACHED, AS_WRITTEN), figures["step_seconds"]
                speed = scale.tokens_per_step / statistics.median(seconds)
                weights = scale.weights_bytes(name, is_cached, _ITEMSIZE[device["dtype"]])
                figures |= {
                    "tokens_per_second": speed,
                    "utilisation": speed * scale.training_flops(name, is_cached) / device["peak_flops"],
                    "above_weights_bytes": figures["peak_bytes"] - weights,
                    "waiting_fraction": sum(figures["waiting_seconds"]) / sum(seconds),
                }
    written = found["signal"]
    if "failed" not in written:
        written["utilisation"] = written["tokens_per_second"] * scale.teacher_flops() / device["peak_flops"]


def agree(loops: Mapping[str, Figures]) -> bool:
    """Whether loops had the same loss at the first step, but for rounding."""
    return apart(loops, 0) <= ROUNDING


def apart(loops: Mapping[str, Figures], step: int) -> float:
    """Return by which share of the least of them the losses of loops at a step differ."""
    losses = [figures["losses_nats"][step] for figures in loops.values() if "failed" not in figures]
    return max(losses) / min(losses) - 1 if losses else 0.0


def show(scale: Scale, found: Figures) -> None:
    """Print the tables, a line for each of the other stages, and how long it took."""
    device = found["device"]
    print(
        f"{device['name']}, {device['dtype']}, torch {device['torch']}, transformers {device['transformers']}: "
        f"{device['peak_flops'] / 1e12:.3g} TFLOP/s by {device['peak_source']}"
    )
    for name, loops in found["students"].items():
        print(f"\n{about(scale, name)}\n\n| loop | tokens/s | utilisation | peak | above weights | waiting for data |")
        print("|---|---|---|---|---|---|")
        for loop, figures in loops.items():
            print(f"| {loop} | {' | '.join(cells(figures))} |")
        print(f"\n{verdict(loops)}")
    print()
    for stage, sentence in SENTENCES.items():
        print(f"{stage}: {found[stage].get('failed') or sentence(found[stage])}")
    print(f"{found['seconds']:.0f} s in all")


def about(scale: Scale, name: str) -> str:
    """Say what a student is, and how it is trained."""
    student, billions = scale.students[name], scale.num_parameters(scale.config(name)) / 1e9
    batch = f"{scale.batch_sequences} sequences of {scale.sequence_length} tokens a step"
    again = ", activations computed again" if student.gradient_checkpointing else ""
    return f"{name}: {billions:.3g}B parameters, {batch}, {student.micro_batch_sequences} at a time{again}"


def cells(figures: Figures) -> list[str]:
    """Return what a row says of a loop."""
    if "failed" in figures:
        return [figures["failed"], "", "", "", ""]
    return [
        f"{figures['tokens_per_second']:,.0f}",
        f"{figures['utilisation']:.2g}",
        gibibytes(figures["peak_bytes"]),
        gibibytes(figures["above_weights_bytes"]),
        f"{100 * figures['waiting_fraction']:.1f} %",
    ]


def verdict(loops: Mapping[str, Figures]) -> str:
    """Say whether the loops compute the same, and how the cached one stands to its goals."""
    if sum("failed" not in figures for figures in loops.values()) < 2:
        return "Too few loops were measured to compare."
    first, last = apart(loops, 0), apart(loops, -1)
    said = f"Losses differ by {first:.1e} of them at the first step, by {last:.1e} at the last"
    said += "." if agree(loops) else ": THEY DO NOT COMPUTE THE SAME."
    ours, rivals = loops[CACHED], [loops[loop] for loop in OTHERS if "failed" not in loops[loop]]
    if "failed" in ours or not rivals:
        return said
    best = max(rivals, key=lambda each: float(each["tokens_per_second"]))
    speed, memory = (ours[key] / best[key] for key in ("tokens_per_second", "above_weights_bytes"))
    return (
        f"{said}\nCached: utilisation {ours['utilisation']:.2g} (the goal is {UTILISATION}), {speed:.2f} times the "
        f"fastest other loop ({SPEED_RATIO}), {memory:.2f} of its memory above weights ({MEMORY_RATIO})."
    )


def gibibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"


SENTENCES = {
    "signal": lambda found: (
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['bytes_per_second'] / 1e9:.3g} GB/s, utilisation "
        f"{found['utilisation']:.2g}, peak {gibibytes(found['peak_bytes'])}"
    ),
    "teacher": lambda found: f"saved by transformers at {found['bytes_per_second'] / 1e9:.3g} GB/s",
    "surgery": lambda found: (
        f"{found['student']} cut, written and read back at {found['bytes_per_second'] / 1e9:.3g} GB/s, in "
        f"{found['seconds']:.2f} s; peak resident {gibibytes(found['resident_peak_bytes'])}"
    ),
    "screening": lambda found: (
        f"{', '.join(f'{name} {seconds:.2f} s' for name, seconds in found['seconds'].items())}, on "
        f"{found['validation_tokens']:,} tokens; KL of the teacher to itself {found['own_kl_nats']:.1e} nats; peak "
        f"{gibibytes(found['peak_bytes'])}"
    ),
}
