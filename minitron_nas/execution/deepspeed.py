"""DeepSpeed ZeRO: what lies in shards is put together, and whole tensors are put into shards.

The only module that imports deepspeed, and only where parameters are sharded. Of ZeRO's optimizers it
knows one attribute each, the flat shards that the optimizer inside works on.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from minitron_nas.execution.device import compute_dtype, pick_device

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's state of a parameter, by torch's and DeepSpeed's names."""

_FLAT_SHARDS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
"""Of ZeRO-3, of ZeRO-1 and 2, and of ZeRO-1 with bfloat16 weights."""


class ZeroOptimizer(Protocol):
    """What ZeRO wraps around an optimizer."""

    optimizer: Optimizer


def join_processes() -> None:
    """Make DeepSpeed know of the other processes before the first parameter is sharded."""
    import deepspeed

    deepspeed.init_distributed()


def take_one_step() -> None:
    """Train a model of one matrix for one step in all processes, its optimizer sharded.

    Raises:
        RuntimeError: If the step changes nothing.
    """
    import deepspeed

    join_processes()
    model = torch.nn.Linear(8, 8)
    before = model.weight.detach().clone()
    adam = torch.optim.AdamW(model.parameters(), lr=0.1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam, config=config)
    engine.backward(engine(torch.ones(1, 8, device=engine.device)).square().mean())
    engine.step()
    if torch.equal(engine.module.weight.detach().cpu(), before):
        raise RuntimeError("an optimizer step of DeepSpeed changed nothing")
    torch.distributed.destroy_process_group()


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter that ZeRO-3 may have sharded, as a whole.

    Where gradients are wanted a forward pass is under way, and DeepSpeed has gathered it.

    Args:
        parameter: Of any module.
    """
    if not hasattr(parameter, "ds_id") or torch.is_grad_enabled():
        return parameter
    from deepspeed import zero

    with zero.GatheredParameters([parameter]):
        return parameter.detach()


def full_weight(parameter: Tensor) -> Tensor:
    """Return a parameter in full precision, from all processes' shards.

    Args:
        parameter: Of the module that is trained.
    """
    if not _is_sharded(parameter):
        return parameter.detach()
    from deepspeed.utils import safe_get_full_fp32_param

    weight: Tensor = safe_get_full_fp32_param(parameter)
    return weight


def held_numbers(parameter: Tensor) -> range | None:
    """Return which numbers of a parameter lie in full precision in this process and in no other.

    Args:
        parameter: Of the module that is trained.

    Returns:
        Places along the flattened parameter; None where every process holds all of it.
    """
    if hasattr(parameter, "ds_id"):
        size, num_numbers = parameter.ds_tensor.numel(), parameter.ds_numel  # type: ignore[attr-defined]
        begin = min(torch.distributed.get_rank() * size, num_numbers)
        return range(begin, min(begin + size, num_numbers))
    if hasattr(parameter, "_hp_mapping"):
        if parameter._hp_mapping is None:
            return range(0)
        address = parameter._hp_mapping.lp_fragment_address
        return range(address.start, address.start + address.numel)
    return None


def held_weight(parameter: Tensor, numbers: range) -> Tensor:
    """Return numbers of a parameter, in full precision, without asking another process.

    Args:
        parameter: Of the module that is trained.
        numbers: `held_numbers`, or any where every process holds all.
    """
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_fp32_param

        shard: Tensor = safe_get_local_fp32_param(parameter)
        return shard[: len(numbers)]
    if hasattr(parameter, "_hp_mapping"):
        fragment: Tensor = parameter._hp_mapping.get_hp_fragment()
        return fragment.detach()
    return parameter.detach().flatten()[numbers.start : numbers.stop]


def held_moment(parameter: Tensor, optimizer: Optimizer | ZeroOptimizer, name: str, numbers: range) -> Tensor:
    """Return numbers of a parameter's moment without asking another process.

    Args:
        parameter: Of the module that is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
        name: One of `MOMENTS`.
        numbers: `held_numbers`, or any where every process holds all.
    """
    if isinstance(optimizer, Optimizer):
        moment: Tensor = optimizer.state[parameter][name]
        return moment.flatten()[numbers.start : numbers.stop]
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_optimizer_state

        shard: Tensor = safe_get_local_optimizer_state(parameter, name)
        return shard[: len(numbers)]
    fragment: Tensor = parameter._hp_mapping.get_hp_fragment(name)  # type: ignore[attr-defined]
    return fragment


@torch.no_grad()
def set_weight(parameter: Tensor, weight: Tensor) -> None:
    """Set a parameter in every process.

    Args:
        parameter: Of the module that is trained.
        weight: What it becomes, the same in every process; of the whole parameter's shape.
    """
    if not _is_sharded(parameter):
        parameter.copy_(weight)
        return
    from deepspeed import zero
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    weight = weight.to(parameter.device)
    with zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(weight)
    if hasattr(parameter, "ds_id"):
        safe_set_local_fp32_param(parameter, _own_shard(parameter, weight))
    else:
        safe_set_full_fp32_param(parameter, weight)


def set_moment(parameter: Tensor, optimizer: Optimizer | ZeroOptimizer, name: str, moment: Tensor) -> None:
    """Set a moment of a parameter; `begin_moments` must have been called.

    Args:
        parameter: Of the module that is trained.
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
        name: One of `MOMENTS`.
        moment: What it becomes, the same in every process; of the whole parameter's shape.
    """
    if isinstance(optimizer, Optimizer):
        optimizer.state[parameter][name].copy_(moment)
        return
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    moment = moment.to(parameter.device)
    if hasattr(parameter, "ds_id"):
        safe_set_local_optimizer_state(parameter, _own_shard(parameter, moment), name)
    else:
        safe_set_full_optimizer_state(parameter, moment, name)


def begin_moments(optimizer: Optimizer | ZeroOptimizer, num_steps: int) -> None:
    """Give an optimizer the state that torch makes in its first step, as if it had taken `num_steps`.

    ZeRO-1 and 2 look for the moments after the step of the first group of parameters and miss those of the
    others (deepspeed 0.19); here they find all.

    Args:
        optimizer: AdamW, or the optimizer that ZeRO wraps around it.
        num_steps: What Adam corrects the bias of its moments by.
    """
    adam = optimizer if isinstance(optimizer, Optimizer) else optimizer.optimizer
    group = adam.param_groups[0]
    on_device = group.get("fused") or group.get("capturable")
    for tensor in _optimized(optimizer):
        device = tensor.device if on_device else torch.device("cpu")
        adam.state[tensor] = {"step": torch.tensor(float(num_steps), device=device)}
        adam.state[tensor] |= {name: torch.zeros_like(tensor) for name in MOMENTS}
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def load_sharded_teacher(load: Callable[[torch.dtype], PreTrainedModel]) -> PreTrainedModel:
    """Load a model for inference with its parameters sharded over all processes (ZeRO-3).

    No process ever holds the whole teacher; a layer is gathered where it computes.

    Args:
        load: Loads it with `from_pretrained`, in the dtype that it is given.
    """
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    dtype = compute_dtype(pick_device())
    config = {
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": dtype == torch.bfloat16},
        "train_micro_batch_size_per_gpu": 1,
    }
    holder = HfDeepSpeedConfig(config)  # while it lives, from_pretrained shards what it reads
    engine, *_ = deepspeed.initialize(model=load(dtype).eval(), config=config)
    del holder
    sharded: PreTrainedModel = engine.module.eval()
    return sharded


def _own_shard(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this process' part of a tensor that ZeRO-3 shards, with zeros at the end where it does not divide.

    DeepSpeed's own `safe_set_full_*` (0.19) fail in the last process where the parameter has to be padded.
    """
    size: int = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
    own = whole.flatten()[torch.distributed.get_rank() * size :][:size]
    return torch.nn.functional.pad(own, (0, size - own.numel()))


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _optimized(optimizer: Optimizer | ZeroOptimizer) -> Iterator[Tensor]:
    """The tensors that Adam works on: this process' flat shards, or the parameters themselves."""
    if isinstance(optimizer, Optimizer):
        for group in optimizer.param_groups:
            yield from group["params"]
    else:
        yield from getattr(optimizer, next(name for name in _FLAT_SHARDS if hasattr(optimizer, name)))
