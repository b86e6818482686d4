"""For tests of this package and of families in others: tiny models of every family, and the conformance suite."""

from minitron_nas.testing.conformance import CHECKS, check_family
from minitron_nas.testing.shapes import conformance_shapes
from minitron_nas.testing.subject import Subject
from minitron_nas.testing.tiny import (
    SPECIAL_TOKENS,
    rewrite_tensors,
    tiny_checkpoint,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
)
from minitron_nas.testing.use import USES, check_use

__all__ = [
    "CHECKS",
    "SPECIAL_TOKENS",
    "USES",
    "Subject",
    "check_family",
    "check_use",
    "conformance_shapes",
    "rewrite_tensors",
    "tiny_checkpoint",
    "tiny_config",
    "tiny_model",
    "tiny_tokenizer",
]
