"""The README.md of an aligned student, read as the hub reads it."""

import math
from typing import Any

import pytest

from minitron_nas.reporting.aligned_card import render_aligned_card
from minitron_nas.reporting.terms import CardSettings
from minitron_nas.storage.lineage import Lineage, Origin, Proof
from tests.reporting.hub_rules import faults, head_of
from tests.reporting.test_model_card import HOSTILE, tags_of

TASK = {
    "task": "piqa", "task_version": "1.0", "metric": "acc,none", "value": 0.65, "standard_error": 0.01,
    "num_fewshot": 0, "limit": None, "num_documents": 1838, "against": [],
}  # fmt: skip


def row(loss_nats: float) -> dict[str, Any]:
    unknown = dict.fromkeys(("kl_nats", "preference_loss", "margin", "accuracy"))
    counts = {"num_conversations": 6, "num_tokens": 60}
    return {"method": "sft", "loss_nats": loss_nats, "perplexity": math.exp(min(loss_nats, 99)), **counts, **unknown}


def card_of(
    name: str, data: str, tasks: list[dict[str, Any]], terms: CardSettings | None = None, loss_nats: float = 1.0
) -> str:
    about = {"method": "sft", "data": data, "num_conversations": 54, "num_held_out": 6, "epochs": 2.0, "seconds": 7.0}
    lineage = Lineage(
        teacher=Origin(name, "f"),
        source=Origin(name, "f"),
        alignment={**about, "student_teacher": name, "validation": name, "template_from": name, "harm": name},
        tokens_trained=1000,
        exported_tokens=1000,
        learning_rate=1e-4,
        seed=0,
        versions={"torch": "2.13.0", "transformers": name},
        proof=Proof(0.0, 1e-3),
    )
    told = {"others": [], "rows": tasks}
    return render_aligned_card(lineage, row(2.0), row(loss_nats), name, told, terms or CardSettings())


def test_the_head_says_what_it_is_made_of_and_what_it_got() -> None:
    card = card_of("owner/student", "owner/chats", [TASK], CardSettings(license="mit", language=("en",)))
    head = head_of(card)
    assert not faults(head)
    index = head.pop("model-index")
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": ["en"],
        "base_model": "owner/student",
        "base_model_relation": "finetune",
        "datasets": ["owner/chats"],
        "tags": ["minitron", "conversational", "sft"],
    }
    assert [result["dataset"]["type"] for result in index[0]["results"]] == ["owner/chats", "piqa"]
    assert "| made with | torch 2.13.0, transformers owner/student |" in card


def test_what_is_no_number_is_no_result() -> None:
    card = card_of("mine", "chats.jsonl", [{**TASK, "value": math.nan}], loss_nats=math.inf)
    assert "model-index" not in head_of(card)


def test_a_path_is_told_by_its_last_part() -> None:
    card = card_of("mine", "/home/ada/chats.jsonl", [])
    assert "/home" not in card
    assert "| data | chats.jsonl |" in card


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_hold_markdown_or_html_start_nothing_in_the_card(name: str) -> None:
    plain = card_of("mine", "chats.jsonl", [TASK])
    hostile = card_of(name, name, [{**TASK, "task": name, "metric": name, "task_version": name}])
    head = head_of(hostile)
    assert not faults(head)
    assert not {"license", "datasets", "base_model"} & head.keys()
    assert tags_of(hostile) - tags_of(plain) <= {("code",), ("p",)}
    assert "\x1b" not in hostile
