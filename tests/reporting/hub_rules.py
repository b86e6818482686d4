"""What the hub asks of the head of a model card, as far as that can be told without it.

`ModelCard.validate` posts a card to the hub, which answers with what is wrong. The rules here are those that its
documentation publishes: hub-docs' `modelcard.md`, the list of licences, and the errors it is known to answer with.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import HFValidationError, validate_repo_id

from minitron_nas.reporting.terms import LICENSES

KEYS = {
    "library_name", "pipeline_tag", "license", "license_name", "license_link", "language", "base_model",
    "base_model_relation", "datasets", "tags", "model-index",
}  # fmt: skip
RELATIONS = {"finetune", "adapter", "merge", "quantized"}


def head_of(card: str) -> dict[str, Any]:
    """Return the head of a card as the hub's own library reads it, which plain YAML must read alike."""
    read = ModelCard(card, ignore_metadata_errors=False)
    head = read.data.to_dict()
    assert yaml.safe_load(card.split("---\n")[1]) == head
    assert read.text.strip().startswith("# ")
    return head


def faults(head: dict[str, Any]) -> list[str]:
    """Return what the hub would refuse."""
    return list(_faults(head))


def _faults(head: dict[str, Any]) -> Iterator[str]:
    yield from (f"unknown key {key}" for key in head.keys() - KEYS)
    yield from (f"empty {key}" for key, value in head.items() if value in (None, "", [], {}))
    licence, called, link = (head.get(key) for key in ("license", "license_name", "license_link"))
    if licence is not None and licence not in LICENSES:
        yield f"license {licence}"
    if (licence == "other") != (called is not None) or (called is None) != (link is None):
        yield f"license {licence} with name {called} and link {link}"
    if called is not None and not re.fullmatch(r"[a-z0-9._-]+", called):
        yield f"license_name {called}"
    if link is not None and not re.fullmatch(r"LICENSE|LICENSE\.md|https?://[^\s/]+(/\S*)?", link):
        yield f"license_link {link}"
    yield from (
        f"language {code}"
        for code in head.get("language", [])
        if not isinstance(code, str) or not re.fullmatch(r"[a-z]{2,3}|code|multilingual", code)
    )
    for name in (*head.get("datasets", []), *([head["base_model"]] if "base_model" in head else [])):
        try:
            validate_repo_id(name)
        except HFValidationError:
            yield f"repository {name}"
    if ("base_model" in head) != ("base_model_relation" in head) or head.get("base_model_relation") not in {
        None,
        *RELATIONS,
    }:
        yield f"base_model_relation {head.get('base_model_relation')}"
    if "model-index" in head:
        yield from _faults_of_results(head["model-index"])


def _faults_of_results(index: list[dict[str, Any]]) -> Iterator[str]:
    name, results = model_index_to_eval_results(index)
    if eval_results_to_model_index(name, results) != index:
        yield "model-index does not come back"
    for result in results:
        if not isinstance(result.metric_value, int | float) or not math.isfinite(result.metric_value):
            yield f"value {result.metric_value} of {result.metric_type}"
        told = (name, result.task_type, result.dataset_type, result.dataset_name, result.metric_type)
        if not all(isinstance(each, str) and each.strip() and "\n" not in each for each in told):
            yield f"result {told}"
