"""What the training loop replaces in Hugging Face's Trainer, private methods among it."""

import transformers
from transformers import Trainer

from minitron_nas.errors import PlanError

OVERRIDDEN = (
    "_get_train_sampler",
    "_load_from_checkpoint",
    "_prepare_for_training",
    "_save_checkpoint",
    "compute_loss",
    "create_scheduler",
    "evaluate",
)
"""Trainer's methods by the names that Trainer calls; under another name it would call its own, and lose weights."""

_KNOWN_TO_WORK = "5.16 to 5.24"


def check_trainer() -> None:
    """Refuse a transformers whose Trainer lacks a method that is replaced here.

    Raises:
        PlanError: Names the methods, and the versions that are known to have them.
    """
    missing = [name for name in OVERRIDDEN if not hasattr(Trainer, name)]
    if missing:
        raise PlanError(
            f"the Trainer of transformers {transformers.__version__} has no {', '.join(missing)}, which distillation "
            f"replaces; install a version from {_KNOWN_TO_WORK}, with which it is known to work"
        )
