"""Verbs of whole runs: `build`, `demo`, `submit`, `report`, `push`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, MaybeData, Overrides, app, at_work, print_json

if TYPE_CHECKING:
    from minitron_nas.pipeline.family import Family

Out = Annotated[Path, typer.Option(help="The run folder; or a URI, such as s3://bucket/run.")]


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

        with at_work():
            family = run_plan(load_plan(plan, overrides or ()), out)
        _print_family(family, as_json)
        return
    if not (teacher and size and data):
        named = (("TEACHER", teacher), ("--size", size), ("--data", data))
        missing = ", ".join(name for name, value in named if not value)
        raise PlanError(f"build needs {missing} (or --plan FILE)")
    from minitron_nas.cli.values import parse_data
    from minitron_nas.pipeline.build import build_family

    with at_work():
        family = build_family(teacher, size, parse_data(data), out, overrides or ())
    _print_family(family, as_json)


@app.command()
def demo(out: Out, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Build a family of two from SmolLM2-135M. Its text is what every machine has."""
    from minitron_nas.pipeline.demo import run_demo

    with at_work():
        family = run_demo(out, tuple(overrides or ()))
    _print_family(family, as_json)


@app.command()
def submit(
    plan: Annotated[Optional[Path], typer.Argument(help="The YAML plan to build.")] = None,  # noqa: UP045
    address: Annotated[str, typer.Option(help="The cluster's dashboard.")] = "http://127.0.0.1:8265",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The run folder: an absolute path on storage that all nodes share, or a URI."),
    ] = None,
    attach: Annotated[Optional[str], typer.Option(metavar="ID", help="Follow a job that was submitted.")] = None,  # noqa: UP045
    stop: Annotated[Optional[str], typer.Option(metavar="ID", help="End a job that was submitted.")] = None,  # noqa: UP045
    python: Annotated[str, typer.Option(help="The cluster's Python that has minitron_nas.")] = "python",
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
    overrides: Overrides = None,
) -> None:
    """Let a running Ray cluster build a plan. The job's id is printed, and what it prints is passed on."""
    from minitron_nas.errors import PlanError
    from minitron_nas.execution.preemption import going_on
    from minitron_nas.pipeline import submit as jobs

    if sum(value is not None for value in (plan, attach, stop)) != 1:
        raise PlanError("submit takes one of a plan, --attach ID and --stop ID")
    if stop is not None:
        typer.echo(f"{stop} was {'stopped' if jobs.stop(stop, address) else 'not running any more'}")
        return
    job = attach
    if plan is not None:
        if out is None:
            raise PlanError("submit needs --out FOLDER")
        job = jobs.submit(plan, address, out, overrides or (), python)
        typer.echo(job)
    assert job is not None
    again = f"minitron-nas submit --address {address}"
    if detach:
        typer.echo(f"{again} --attach {job}   follows it; --stop {job} ends it", err=True)
        return
    with going_on(f"the job goes on; follow it with {again} --attach {job}, end it with --stop {job}"):
        end = jobs.attach(job, address, lambda text: typer.echo(text, nl=False, err=True))
    if end.status != "SUCCEEDED":
        typer.echo(f"minitron-nas: {job} {end.status.lower()}: {' '.join(end.message.split())}", err=True)
        raise typer.Exit(end.exit_code or 1)


@app.command()
def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders or URIs, finished or not.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The file; else report.html in the run folder, or in the one that holds all of several."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show it on this machine while the runs go on.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's HTML report again. It may be one of several runs, or be shown while they go on."""
    if follow:
        from minitron_nas.errors import RunFolderError
        from minitron_nas.reporting.follow import follow as show

        if out is not None:
            raise RunFolderError("--follow writes nothing; leave out --out")
        show(run_folders, lambda address: print_json({"address": address}) if as_json else typer.echo(address))
        return
    from minitron_nas.reporting.html import write_report

    path = write_report(*run_folders, out=out)
    print_json({"report": str(path)}) if as_json else typer.echo(str(path))


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run, or one student: a folder or a URI.")],
    repo: Annotated[str, typer.Option(help="Where it goes on the Hugging Face hub: owner/name.")],
    size: Annotated[Optional[str], typer.Option(help="Which student of the run, such as 94M, or aligned one.")] = None,  # noqa: UP045
    public: Annotated[bool, typer.Option("--public", help="Let a new repository be public.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish a student on the Hugging Face hub. It is private unless asked otherwise."""
    from minitron_nas.pipeline.push import push as publish

    with at_work():
        pushed = publish(run, repo, size, public, dry_run)
    if as_json:
        print_json({"repo": pushed.repo, "files": pushed.files, "url": pushed.url})
        return
    for name, num_bytes in pushed.files.items():
        typer.echo(f"{num_bytes:>15,}  {name}")
    typer.echo(pushed.url or f"{pushed.num_bytes:>15,}  would go to {pushed.repo}")


def _print_family(family: "Family", as_json: bool) -> None:
    members = [family.teacher, *family.members]
    if as_json:
        names = ("name", "path", "num_parameters", "kl_nats", "perplexity")
        rows = [
            {name: str(value) if isinstance(value := getattr(member, name), Path) else value for name in names}
            for member in members
        ]
        print_json({"members": rows, "report": str(family.report)})
        return
    width = max(10, *(len(member.name) for member in members))
    for member in members:
        typer.echo(
            f"{member.name:<{width}} {member.num_parameters:>16,} parameters   KL {member.kl_nats:.4f} nats   "
            f"perplexity {member.perplexity:.2f}   {member.path}"
        )
    typer.echo(f"report: {family.report}")
