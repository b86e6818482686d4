"""torch.compile where it works, and plain PyTorch where it does not."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])

_log = logging.getLogger(__name__)


def compiled(function: Function) -> Function:
    """Return a function of tensors compiled for any number of rows, or as written where nothing compiles it.

    It takes Triton for a GPU; g++ or clang and Python's headers for the CPU. Where they are missing, a
    warning says so once.

    Args:
        function: Takes and returns tensors, and frozen dataclasses of them.
    """

    @cache
    def best() -> Callable[..., Any]:
        return torch.compile(function, dynamic=True, fullgraph=True) if has_compiler() else function

    @wraps(function)
    def call(*args: Any) -> Any:
        return best()(*args)

    return cast(Function, call)


@contextmanager
def compiled_modules(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules compiled, each for the sizes that it meets; as they are where nothing compiles them.

    Modules of one class share what is compiled, so that a stack of layers costs as much as one.

    Args:
        modules: Compiled in place until the block ends.
    """
    changed = list(modules)
    if changed and not has_compiler():
        changed = []
    for module in changed:
        module.compile(dynamic=False)
    try:
        yield
    finally:
        for module in changed:
            module._compiled_call_impl = None


@contextmanager
def as_written(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run modules that may be compiled as they are written.

    Args:
        modules: Compiled or not; as before when the block ends.
    """
    compiled_calls = {module: module._compiled_call_impl for module in modules}
    try:
        for module in compiled_calls:
            module._compiled_call_impl = None
        yield
    finally:
        for module, call in compiled_calls.items():
            module._compiled_call_impl = call


@cache
def has_compiler() -> bool:
    """Whether torch.compile works on this process' device; tried with a function of one line."""
    from torch._dynamo.exc import TorchDynamoException  # deferred: importing it takes a second

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except (TorchDynamoException, UnicodeError) as error:  # torch reads its own templates as the locale spells text
        reason = str(error).strip().splitlines()[0]
        _log.warning("torch.compile does not work here, so training takes longer: %s", reason)
        return False
    return True
