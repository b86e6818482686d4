"""What a card tells the hub in its head: licence, languages, base model, data sets and results."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from minitron_nas.errors import printable
from minitron_nas.evaluation.perplexity import perplexity
from minitron_nas.reporting.run_record import RunRecord, plain_rows
from minitron_nas.reporting.teacher_name import hub_name
from minitron_nas.reporting.terms import CardSettings, fitting_terms
from minitron_nas.storage.lineage import Lineage
from minitron_nas.storage.places import last_parts
from minitron_nas.text.data_source import OWN

TEXT_GENERATION = "text-generation"
_DIGITS = 6
_UNITS = {"loss": "next-token loss in nats", "perplexity": "perplexity of a token"}


def metadata(
    name: str,
    lineage: Lineage,
    terms: CardSettings,
    base_model: str | None,
    datasets: Sequence[str],
    tags: Sequence[str],
    results: Sequence[EvalResult],
) -> str:
    """Return the head of a card as YAML, in which nothing stands that is not known.

    Args:
        name: What the model is called.
        lineage: Where it comes from.
        terms: Licence and languages.
        base_model: What it was made of, if that lies on the hub.
        datasets: Names on the hub of what it learned from.
        tags: By which it is found.
        results: What was measured.
    """
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task_of(lineage),
        license=terms.license,
        license_name=terms.license_name,
        license_link=terms.license_link,
        language=list(terms.language) or None,
        base_model=base_model,
        base_model_relation="finetune" if base_model is not None else None,
        datasets=list(datasets) or None,
        tags=list(tags),
        model_name=_line(name) if results else None,
        eval_results=list(results) or None,
    ).to_yaml()


def task_of(lineage: Lineage) -> str:
    """Return what a student does, as the hub calls it.

    Args:
        lineage: The student's.
    """
    return TEXT_GENERATION if lineage.num_tower_parameters is None else "image-text-to-text"


def terms_of(run: RunRecord) -> CardSettings:
    """Return what is known of the licence and languages of a run's students: the plan's word, then the teacher's card.

    Args:
        run: The run.
    """
    return fitting_terms(run.plan.get("card")).or_else(fitting_terms(run.teacher.get("card")))


def hub_datasets(data: object) -> list[str]:
    """Return the names on the hub among the texts of a plan.

    Args:
        data: As it stands there: a name, or the sources of a blend.
    """
    sources = data if isinstance(data, list | tuple) else [data]
    paths = [source.get("path") if isinstance(source, Mapping) else source for source in sources]
    return list(dict.fromkeys(name for path in paths if isinstance(path, str) and (name := hub_name(path))))


def run_results(run: RunRecord, name: str) -> list[EvalResult]:
    """Return what a run measured of a member: loss and perplexity on each held-out text, and what it got in tasks.

    Args:
        run: The run.
        name: The member's.
    """
    rows = plain_rows(run.texts[(run.texts["look"] == "member") & (run.texts["model"] == name)])
    if not rows:
        evaluated = plain_rows(run.evaluations[run.evaluations["model"] == name])
        rows = [{"text": OWN, "loss_nats": row["loss_nats"]} for row in evaluated]
    settings, others = run.plan.get("text") or {}, (run.plan.get("evaluation") or {}).get("texts") or {}
    told = list[EvalResult]()
    for row in rows:
        own = {"path": run.plan.get("data")} if row["text"] == OWN else others.get(row["text"]) or {}
        source = {key: own.get(key) or settings.get(key) for key in ("path", "config", "split")}
        told += text_results(row["text"], source, row["loss_nats"])
    return told + task_results(plain_rows(run.benchmarks[run.benchmarks["model"] == name]))


def text_results(text: str, source: Mapping[str, Any], loss_nats: float | None) -> list[EvalResult]:
    """Return loss and perplexity on a text, as far as they are numbers.

    Args:
        text: What the text is called.
        source: Where it comes from: `path`, and of a hub dataset `config` and `split`.
        loss_nats: The next-token loss.
    """
    path = source.get("path")
    told = last_parts(path) if isinstance(path, str) else text
    on_hub = next(iter(hub_datasets(path)), None) if isinstance(path, str) else None
    measured = {} if loss_nats is None else {"loss": loss_nats, "perplexity": perplexity(loss_nats)}
    return list(
        _finite(
            EvalResult(
                task_type=TEXT_GENERATION,
                dataset_type=on_hub or _line(text),
                dataset_name=f"held out of {_line(told)}",
                dataset_config=source.get("config") if on_hub else None,
                dataset_split=source.get("split") if on_hub else None,
                metric_type=kind,
                metric_value=value,
                metric_name=_UNITS[kind],
            )
            for kind, value in measured.items()
        )
    )


def task_results(rows: Iterable[Mapping[str, Any]]) -> list[EvalResult]:
    """Return what a model got in lm-eval's tasks, as far as these are numbers.

    Args:
        rows: Of `benchmarks.parquet`.
    """
    return list(_finite(map(_task_result, rows)))


def _task_result(row: Mapping[str, Any]) -> EvalResult:
    settings = {"num_few_shot": row["num_fewshot"], "limit": row["limit"]}
    return EvalResult(
        task_type=TEXT_GENERATION,
        dataset_type=_line(row["task"]),
        dataset_name=f"{_line(row['task'])} (lm-eval, version {_line(row['task_version'])})",
        dataset_args={key: int(value) for key, value in settings.items() if value is not None} or None,
        metric_type=_line(row["metric"]).partition(",")[0],
        metric_name=_line(row["metric"]),
        metric_value=row["value"],
    )


def _finite(results: Iterable[EvalResult]) -> Iterator[EvalResult]:
    for result in results:
        value = result.metric_value
        if value is not None and math.isfinite(value):
            result.metric_value = round(float(value), _DIGITS)
            yield result


def _line(value: object) -> str:
    return printable(" ".join(str(value).split()))
