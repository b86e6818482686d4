"""Settings of importance estimation; no torch."""

from typing import Literal

from minitron_nas.settings import Settings

Aggregation = Literal["mean", "l2", "variance"]


class ImportanceSettings(Settings):
    """How activations become one score per channel, neuron, head and group.

    Attributes:
        batch_aggregation: Over the samples of the calibration text.
        sequence_aggregation: Over the tokens of a sample.

    The defaults are the papers' best choice: L2 over samples of the mean over the sequence.
    Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.2 and best practice 2.
    """

    batch_aggregation: Aggregation = "l2"
    sequence_aggregation: Aggregation = "mean"
