"""Verbs that measure: `evaluate`, `compare`, `latency`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, StepOverrides, Teacher, app, at_work, print_json, read_step


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
    """Measure loss and perplexity on a text, and KL to a teacher. --set takes text.* keys."""
    from minitron_nas.pipeline.steps.evaluate import evaluate

    settings = read_step(model, None, overrides, ("text",))[1].text
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
    other: Annotated[str, typer.Argument(help="Another of its kind.")],
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Text, jsonl or parquet file that neither model has seen; of runs there is none."),
    ] = None,
    limit: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="NAME=VALUE",
            help="kl_nats, loss_increase_nats, agreement_share, ended_drop, parameters_ratio, memory_ratio, "
            "prefill_speedup, decode_speedup, task_drop or differing_settings; null for no limit; repeatable.",
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
    """Hold a model or a run against another. The exit code is 1 where a limit is not kept to.

    --set takes text.* and evaluation.* keys.
    """
    from minitron_nas.pipeline.steps.compare import compare
    from minitron_nas.pipeline.steps.limits import read_limits

    plan = read_step(base, None, overrides, ("text", "evaluation"))[1]
    with at_work():
        asked = read_limits(limits, limit or ())
        found = compare(
            base, other, text, asked, out=out, evaluation=plan.evaluation, settings=plan.text, seed=plan.seed
        )
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
    """Measure how long shapes of a family take on this machine. A teacher's config.json is enough."""
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
