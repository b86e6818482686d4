"""Verbs of single steps that make something: `score`, `prune`, `distill`, `correct`."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from minitron_nas.cli.command import (
    AsJson,
    Data,
    MaybeData,
    Out,
    StepOverrides,
    Teacher,
    TextOnly,
    app,
    at_work,
    print_json,
    read_step,
)


class Start(StrEnum):
    """How a student's hidden channels come out of the teacher's."""

    select = "select"
    rotate = "rotate"


class Repair(StrEnum):
    """What makes up for what was cut."""

    none = "none"
    ridge = "ridge"


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

    text_data, plan = read_step(teacher, data, overrides, ("text", "importance"))
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
    text_only: TextOnly = True,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Cut one shape out of a teacher, without training it. --data is what to score and measure layers on.

    --set takes text.*, importance.* and space.* keys.
    """
    from minitron_nas.cli.shapes import parse_request
    from minitron_nas.cli.values import parse_size
    from minitron_nas.pipeline.steps.prune import prune

    text_data, plan = read_step(teacher, data, overrides, ("text", "importance", "space"))
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
            text_only=text_only,
        )
    if as_json:
        proof = asdict(result.proof) if result.proof is not None else None
        shape_of = result.architecture.sizes()
        counts = {"num_parameters": result.num_parameters, "num_tower_parameters": result.num_tower_parameters}
        print_json({"path": str(result.path), **counts, "shape": shape_of, "proof": proof})
        return
    loaded_by = "AutoModelForCausalLM" if text_only else "AutoModelForImageTextToText"
    proved = (
        f"too large to reload here through {loaded_by}, every tensor read back"
        if result.proof is None
        else f"reloaded through {loaded_by}, logits differ by {result.proof.max_abs_difference:.3g}"
    )
    whole = result.num_parameters + result.num_tower_parameters
    counted = f"{whole:,} parameters{'' if text_only else f', {result.num_parameters:,} of them in its text part'}"
    typer.echo(f"{result.path}: {result.architecture.id}, {counted}; {proved}")


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
    text_only: TextOnly = True,
    overrides: StepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a student to match a teacher. --set takes distillation.*, text.* and runner.* keys."""
    from minitron_nas.pipeline.steps.distill import distill

    text_data, plan = read_step(
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
            text_only=text_only,
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
    """Fine-tune a teacher on the text that students learn from. --set takes correct.* and text.* keys."""
    from minitron_nas.distillation.settings import CorrectionSettings
    from minitron_nas.pipeline.steps.correct import correct

    text_data, plan = read_step(teacher, data, overrides, ("correct", "text"), correct={"tokens": tokens})
    with at_work():
        result = correct(teacher, text_data, out, plan.correct or CorrectionSettings(), plan.text, plan.seed)
    before, after = result.before.loss_nats, result.after.loss_nats
    if as_json:
        print_json({"path": str(result.path), "loss_nats_before": before, "loss_nats": after})
        return
    typer.echo(f"{result.path}: validation loss {before:.4f} nats before, {after:.4f} after")
