"""What all processes of a training decide together."""

import torch
from torch import distributed


def any_process(device: torch.device, *flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any process; all processes must call this, and wait for each other.

    Args:
        device: Of this process.
        *flags: Of this process.
    """
    if not distributed.is_initialized():
        return flags
    told = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(told, op=distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in told.tolist())


def said_by_first(device: torch.device, flag: bool) -> bool:
    """Return what the first process says; all processes must call this.

    Args:
        device: Of this process.
        flag: Of this process.
    """
    if not distributed.is_initialized():
        return flag
    told = torch.tensor([flag], dtype=torch.int32, device=device)
    distributed.broadcast(told, 0)
    return bool(told[0])


def first_words(words: dict[str, str] | None) -> dict[str, str]:
    """Return the words of the first process that has any; all processes must call this, and one must have some.

    Args:
        words: Of this process.
    """
    if not distributed.is_initialized():
        assert words is not None
        return words
    told: list[dict[str, str] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, words)
    return next(each for each in told if each is not None)
