"""Measuring stacks of layers: stock models of random weights, in turns with one of the teacher's sizes."""

import copy
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from minitron_nas.architecture.config import with_sizes
from minitron_nas.architecture.kinds import best_of_each_kind, shares
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.rules import fewest_with_attention
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import LatencyError
from minitron_nas.evaluation.clock import decode, prefill, random_prompt, timed
from minitron_nas.evaluation.latency_design import Lengths, StackTimes, WholeTimes
from minitron_nas.evaluation.latency_terms import (
    Setting,
)
from minitron_nas.evaluation.turns import Player, Reals, take_turns
from minitron_nas.execution.device import compute_dtype, pick_device, release_memory
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.config import layer_lists
from minitron_nas.models.stock import filled_config

ROUNDS = 5
DECODE_TOKENS = 8
MOST_TRIES = 4
_PART_OF_THE_TEACHER = 5
"""A stack is a fifth of the teacher's layers, and the longer one of a pair two fifths."""


class Bench:
    """Where stacks of one teacher's family are measured, each in turns with a reference of the teacher's own sizes.

    Attributes:
        num_layers: N: layers of the shorter stack of a pair, and of the reference.
    """

    def __init__(self, config: Mapping[str, Any], source: Architecture, layout: Layout, lengths: Lengths) -> None:
        """Build the reference.

        Args:
            config: The teacher's `config.json`.
            source: Its shape.
            layout: The table of its family.
            lengths: Of what is timed.
        """
        self._config, self._source, self._layout, self._lengths = config, source, layout, lengths
        self._filled = AutoConfig.for_model(**copy.deepcopy(dict(config))).to_dict()
        self.device = pick_device()
        self.dtype = compute_dtype(self.device)
        fewest = fewest_with_attention(source, layout)
        self.num_layers = stack_layers(self._filled, source.num_hidden_layers, fewest)
        self._reference = self._stack({}, self._of_each_kind(self.num_layers))

    def layer(self, shape: Mapping[str, int]) -> StackTimes:
        """Measure what a layer of a shape takes: the difference of two stacks cancels all that comes once.

        What cannot be, a layer or a head that takes no time, is measured again.

        Args:
            shape: Sizes by name, without the number of layers.

        Raises:
            LatencyError: If it stays so.
        """
        num = self.num_layers
        release_memory()
        layers = self._of_each_kind(num)
        players = [self._reference, *(self._stack(shape, layers * twice) for twice in (1, 2))]
        for _ in range(MOST_TRIES):
            times = take_turns(players, ROUNDS, others_over_reference)
            short, long = others_over_reference(times).swapaxes(0, 1)
            layer, stack = np.median(long - short, axis=0) / num, np.median(long, axis=0)
            if np.all(layer > 0) and np.all(stack > 2 * num * layer):
                return StackTimes(dict(shape), num, _pair(layer), _pair(stack), _seconds(times))
        raise LatencyError(
            f"{MOST_TRIES} times over, {2 * num} layers of {dict(shape)} took no longer than {num}, or more than twice "
            f"as long: {_pair(layer)} and {_pair(stack)} times the reference a layer and a stack (prefill, decode); "
            "measure on a quieter machine, or with more tokens or a larger batch"
        )

    def whole(self, shape: Mapping[str, int]) -> WholeTimes:
        """Measure a whole model.

        Args:
            shape: Sizes by name, with the number of layers.
        """
        sizes = {name: size for name, size in shape.items() if name != "num_hidden_layers"}
        release_memory()
        model = self._stack(sizes, self._of_each_kind(shape["num_hidden_layers"]))
        times = take_turns([self._reference, model], ROUNDS, others_over_reference)
        whole = np.median(others_over_reference(times)[:, 0], axis=0)
        return WholeTimes(dict(shape), _pair(whole), _seconds(times))

    def _of_each_kind(self, num_layers: int) -> tuple[int, ...]:
        """Return layers of the teacher, of each kind as many as models of so many layers have."""
        return best_of_each_kind(self._source.kinds, range(self._source.num_hidden_layers), num_layers)

    def _shares_keys(self, layer: int) -> bool:
        """Whether a layer of the teacher reads keys of another, as the last of any model do."""
        return shares(self._source.kinds[layer])

    def _stack(self, sizes: Mapping[str, int], layers: Sequence[int]) -> Player:
        """Build a model of the kinds of layers that some of the teacher's are."""
        layers, changes = sorted(layers, key=self._shares_keys), dict[str, Any](sizes)
        kinds = layer_lists(self._filled, self._source.num_hidden_layers, layers)
        target = replace(self._source.with_layers(layers), **changes)
        content = with_sizes({**self._config, **kinds}, target, self._layout)
        with torch.random.fork_rng(devices=[]), torch.device(self.device):
            torch.manual_seed(0)
            model: CausalLM = AutoModelForCausalLM.from_config(filled_config(content), dtype=self.dtype)
        return _player(model.eval(), self._lengths)


@torch.inference_mode()
def _player(model: CausalLM, lengths: Lengths) -> Player:
    prompt = random_prompt(model, lengths.batch, lengths.prompt_tokens)
    tokens, context = prefill(model, random_prompt(model, lengths.batch, lengths.context_tokens))

    @torch.inference_mode()
    def play() -> Sequence[float]:
        first, _ = timed(model.device, lambda: prefill(model, prompt))
        cache = copy.deepcopy(context)
        rest, _ = timed(model.device, lambda: decode(model, tokens, cache, DECODE_TOKENS))
        return first, rest / DECODE_TOKENS

    return play


def setting_of(source: Architecture, layout: Layout, lengths: Lengths) -> Setting:
    """Return what a bench of this process measures.

    Args:
        source: The teacher's shape.
        layout: The table of its family.
        lengths: Of what is timed.
    """
    device = pick_device()
    return Setting(
        model_type=source.model_type,
        vocab_size=source.vocab_size,
        head_dim=source.head_dim,
        num_experts_per_tok=source.num_experts_per_tok,
        neurons=source.ffn_field,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        dtype=str(compute_dtype(device)).removeprefix("torch."),
        threads=0 if device.type == "cuda" else torch.get_num_threads(),
        batch=lengths.batch,
        prompt_tokens=lengths.prompt_tokens,
        context_tokens=lengths.context_tokens,
        torch=str(torch.__version__),
        transformers=transformers.__version__,
        has_mamba=layout.has_mamba,
    )


def processor_name() -> str:
    """Return what the system calls this machine's processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()


def others_over_reference(times: Reals) -> Reals:
    """Return the times of all models but the first over those of the first in the same turn.

    Args:
        times: (num_rounds, num_players, 2).

    Returns:
        (num_rounds, num_players - 1, 2).
    """
    return times[:, 1:] / times[:, :1]


def stack_layers(filled: Mapping[str, Any], num_layers: int, fewest: int = 1) -> int:
    """Return how many layers a stack has: about a fifth of a model's, and whole periods of its kinds of layers.

    Args:
        filled: The content of a `config.json` with all that transformers fills in.
        num_layers: Of the model.
        fewest: No stack has fewer, so that one of them has attention, without which transformers does not decode.
    """
    kinds = layer_lists(filled, num_layers, range(num_layers)).values()
    period = next(n for n in range(1, num_layers + 1) if all(each[n:] == each[:-n] for each in kinds))
    wanted = max(fewest, num_layers // _PART_OF_THE_TEACHER)
    return -(-wanted // period) * period if 2 * period <= num_layers else wanted


def _seconds(times: Reals) -> tuple[float, float]:
    return _pair(np.median(times[:, 0], axis=0))


def _pair(values: Reals) -> tuple[float, float]:
    first, second = values.tolist()
    return first, second
