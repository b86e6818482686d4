"""Next-token loss as perplexity."""

from math import exp, inf


def perplexity(loss_nats: float) -> float:
    """Return exp(loss_nats), infinity where that is no number of 64 bits.

    Args:
        loss_nats: A mean next-token loss.
    """
    try:
        return exp(loss_nats)
    except OverflowError:
        return inf
