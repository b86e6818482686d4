"""What `xlsum_english.yaml` names: which documents are taken, and how near a summary is to the one that is known."""

from collections.abc import Mapping, Sequence

import datasets
from rouge_score.rouge_scorer import RougeScorer  # which lm-eval brings

_ROUGE_L = "rougeL"


def every_fifth(documents: datasets.Dataset) -> datasets.Dataset:
    """Return the first document and every fifth after it.

    Args:
        documents: Of a split.
    """
    return documents.select(range(0, len(documents), 5))


def rouge_l(document: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Return the F-measure of the longest common subsequence of stemmed words, in [0, 1].

    Args:
        document: With its `summary`.
        results: What a model has written of it, once.

    Source: Lin 2004 (aclanthology.org/W04-1013), section 3.
    """
    scores = RougeScorer([_ROUGE_L], use_stemmer=True).score(document["summary"], results[0])
    return {_ROUGE_L: float(scores[_ROUGE_L].fmeasure)}
