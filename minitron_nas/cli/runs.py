"""Verbs of whole runs: `build`, `demo`, `report`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, MaybeData, Out, Overrides, app, print_json, stdout_for_results

if TYPE_CHECKING:
    from minitron_nas.pipeline.family import Family


@app.command()
def build(
    out: Out,
    teacher: Annotated[Optional[str], typer.Argument(help="Hub name, folder, GGUF file or wheel.")] = None,  # noqa: UP045
    size: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Total parameters of a student, such as 94M; or memory=6GB, decode=2.0x; repeatable."),
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

        with stdout_for_results():
            family = run_plan(load_plan(plan, overrides or ()), out)
        _print_family(family, as_json)
        return
    if not (teacher and size and data):
        named = (("TEACHER", teacher), ("--size", size), ("--data", data))
        missing = ", ".join(name for name, value in named if not value)
        raise PlanError(f"build needs {missing} (or --plan FILE)")
    from minitron_nas.cli.values import parse_data
    from minitron_nas.pipeline.build import build_family

    with stdout_for_results():
        family = build_family(teacher, size, parse_data(data), out, overrides or ())
    _print_family(family, as_json)


@app.command()
def demo(out: Out, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build a family of two from SmolLM2-135M on text that every machine has."""
    from minitron_nas.pipeline.demo import run_demo

    with stdout_for_results():
        family = run_demo(out, tuple(overrides or ()))
    _print_family(family, as_json)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="A run folder, finished or not.")], as_json: AsJson = False
) -> None:
    """Write the HTML report of a run again."""
    from minitron_nas.reporting.html import write_report

    path = write_report(run_folder)
    print_json({"report": str(path)}) if as_json else typer.echo(str(path))


def _print_family(family: "Family", as_json: bool) -> None:
    members = [family.teacher, *family.members]
    if as_json:
        rows = [{**asdict(member), "path": str(member.path)} for member in members]
        print_json({"members": rows, "report": str(family.report)})
        return
    width = max(10, *(len(member.name) for member in members))
    for member in members:
        typer.echo(
            f"{member.name:<{width}} {member.num_parameters:>16,} parameters   KL {member.kl_nats:.4f} nats   "
            f"perplexity {member.perplexity:.2f}   {member.path}"
        )
    typer.echo(f"report: {family.report}")
