"""How well a latency model of few measurements predicts whole models that it has not seen.

Random weights, no data: `python tests/benchmarks/study_latency.py PART [--teacher NAME] [--cpu-seconds]`. What is
measured goes to `measured/latency.json` beside this file; a figure that is there is not measured again, so that the
study goes on where it was. Times are kept over those of a reference in the same turns, and the reference's own seconds
beside them.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from study import Measurements, say

from minitron_nas.architecture.config import architecture_of
from minitron_nas.architecture.costs import count_parameters
from minitron_nas.evaluation import latency_bench
from minitron_nas.evaluation.latency import (
    PHASES,
    LatencyModel,
)
from minitron_nas.evaluation.latency_bench import Bench, setting_of
from minitron_nas.evaluation.latency_design import Lengths, StackTimes, WholeTimes, at_random, far_apart
from minitron_nas.evaluation.latency_fit import fit_latency
from minitron_nas.evaluation.latency_terms import (
    layer_sizes,
)
from minitron_nas.families.catalog import layout_of
from minitron_nas.space.axes import SearchSpace
from minitron_nas.space.enumerate import legal_columns, parameters_of

TEACHERS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
    },
    "Gemma 3 270M": {
        "model_type": "gemma3_text",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 262144,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "tie_word_embeddings": True,
    },
}
HEADS = {"SmolLM2-135M": ([9, 6, 4, 3, 2], [3, 2, 1]), "Gemma 3 270M": ([4, 3, 2], [1])}
LENGTHS = Lengths(batch=1, prompt_tokens=128, context_tokens=256)
NUM_SHAPES = 20
NUM_WHOLE = 12
NUM_AGAIN = 6
PART_OF_THE_TEACHER = (0.5, 0.75)
"""Parameters of the whole models, over the teacher's."""


class LatencyStudy:
    """One teacher: what is measured of it, and the model that is fitted to it."""

    def __init__(self, name: str, measurements: Measurements) -> None:
        self.name, self.measurements = name, measurements
        self.config = TEACHERS[name]
        self.layout = layout_of(self.config["model_type"])
        self.source = architecture_of(self.config, self.layout)
        heads, groups = HEADS[name]
        axes = {
            "num_hidden_layers": {"min_fraction": 0.5, "step_fraction": 1 / self.source.num_hidden_layers},
            "hidden_size": {"min_fraction": 0.5, "step_fraction": 0.0625, "multiple_of": 8},
            "intermediate_size": {"min_fraction": 0.375, "step_fraction": 0.0625, "multiple_of": 8},
            "num_attention_heads": {"values": heads},
            "num_key_value_heads": {"values": groups},
        }
        self.columns = legal_columns(SearchSpace.model_validate({"axes": axes}), self.source, self.layout)
        self.setting = setting_of(self.source, self.layout, LENGTHS)

    @cached_property
    def bench(self) -> Bench:
        return Bench(self.config, self.source, self.layout, LENGTHS)

    def stacks(self) -> dict[str, dict[str, int]]:
        found = far_apart(self.columns, layer_sizes(self.setting), NUM_SHAPES)
        return {f"{self.name} | layer | {words(shape)}": shape for shape in found}

    def wholes(self) -> dict[str, dict[str, int]]:
        counts = parameters_of(self.columns, self.source, self.layout)
        total = count_parameters(self.source, self.layout)
        low, high = (part * total for part in PART_OF_THE_TEACHER)
        inside = {name: column[(counts >= low) & (counts <= high)] for name, column in self.columns.items()}
        return {f"{self.name} | whole | {words(shape)}": shape for shape in at_random(inside, NUM_WHOLE)}

    def measure(self) -> None:
        """Shapes of layers and whole models in turns, so that neither has the quiet hours alone."""
        stacks, wholes = list(self.stacks().items()), list(self.wholes().items())
        for place in range(max(len(stacks), len(wholes))):
            for key, shape in stacks[place : place + 1]:
                self.measurements.once(key, lambda shape=shape: asdict(self.bench.layer(shape)))
            for key, shape in wholes[place : place + 1]:
                self.measurements.once(key, lambda shape=shape: asdict(self.bench.whole(shape)))

    def repeat(self) -> None:
        """Some whole models again: how far two measurements of one model are apart here."""
        for key, shape in list(self.wholes().items())[:NUM_AGAIN]:
            self.measurements.once(f"{key} | again", lambda shape=shape: asdict(self.bench.whole(shape)))

    def apart(self) -> list[list[float]]:
        """Return the relative differences of models that were measured twice, prefill and decode."""
        known = self.measurements.all()
        twice = [
            (known[key]["whole"], known[f"{key} | again"]["whole"])
            for key in self.wholes()
            if f"{key} | again" in known
        ]
        return [[abs(new / old - 1) for old, new in zip(*pair, strict=True)] for pair in twice]

    def fitted(self) -> LatencyModel:
        known = self.measurements.all()
        stacks = [StackTimes(**figures(known[key])) for key in self.stacks() if key in known]
        wholes = [WholeTimes(**figures(known[key])) for key in self.wholes() if key in known]
        return fit_latency(self.setting, stacks, wholes)


@contextmanager
def cpu_seconds() -> Iterator[None]:
    """Where others share the machine: one thread, and the seconds that it computed instead of those that passed.

    These spread little, so that fewer of them do.
    """
    torch.set_num_threads(1)
    few = patch.multiple(latency_bench, ROUNDS=3, DECODE_TOKENS=4)
    with few, patch.object(time, "perf_counter", time.process_time):
        yield


def words(shape: dict[str, int]) -> str:
    return " ".join(f"{name.removeprefix('num_').split('_')[0]} {size}" for name, size in shape.items())


def figures(known: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name != "seconds"}


def show(study: LatencyStudy) -> None:
    """Print R² and errors, and every whole model."""
    model = study.fitted()
    print(f"{study.name}: {model.num_measurements} stacks measured, {len(model.held_out)} whole models held out")
    for phase in PHASES:
        fit, off = model.phase(phase), 100 * np.abs(model.errors(phase))
        measured = np.array([getattr(each, f"{phase}_seconds") for each in model.held_out])
        missed = measured * model.errors(phase)
        whole = 1 - np.sum(missed**2) / np.sum((measured - measured.mean()) ** 2)
        print(
            f"{phase}: stacks, cross-validated R² {fit.r_squared:.4f}, median error {fit.layer_error:.2%}; whole "
            f"models R² {whole:.4f}, error in %: median {np.median(off):.2f}, mean {off.mean():.2f}, "
            f"most {off.max():.2f}; {'with' if fit.residual else 'without'} residual; outside {fit.outside}; "
            f"layer {fit.layer}"
        )
    if apart := study.apart():
        print(f"{len(apart)} whole models measured twice are apart by {np.median(apart, axis=0)} (medians)")
    for each, first, rest in zip(model.held_out, *map(model.errors, PHASES), strict=True):
        print(
            f"| {words(each.shape)} | {each.prefill_seconds:.3f} | {first:+.1%} | {each.decode_seconds * 1e3:.2f} | "
            f"{rest:+.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("measure", "repeat", "show"))
    parser.add_argument("--teacher", choices=TEACHERS, default="SmolLM2-135M")
    parser.add_argument("--cpu-seconds", action="store_true")
    arguments = parser.parse_args()
    file = Path(__file__).parent / "measured" / "latency.json"
    study = LatencyStudy(arguments.teacher, Measurements(file))
    if arguments.part != "show":
        with cpu_seconds() if arguments.cpu_seconds else nullcontext():
            study.measure() if arguments.part == "measure" else study.repeat()
        say("measured")
    show(study)


if __name__ == "__main__":
    main()
