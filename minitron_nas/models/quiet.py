"""transformers without what it reports of models and configs that are not the user's own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from reporting what is so on purpose: tensors left out, defaults of other families."""
    from transformers.utils import logging  # deferred: importing transformers takes seconds

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
