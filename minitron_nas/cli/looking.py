"""Verbs that only look: `doctor`, `enumerate`, `ls`, `show`."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, app, at_work, print_json


class Listed(StrEnum):
    """What `ls` lists."""

    families = "families"
    spaces = "spaces"
    settings = "settings"


@app.command("enumerate")
def enumerate_(
    space: Annotated[str, typer.Option(help="A preset's name or a YAML file.")],
    size: Annotated[str, typer.Option(help="Total parameters, such as 4B; or memory=6GB, decode=2.0x, prefill=1.5x.")],
    teacher: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The model to prune, where the space carries no source shape."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences that memory=... counts the KV cache of.")] = 1,
    context_tokens: Annotated[str, typer.Option(help="Tokens of each of them.")] = "4096",
    latency: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A file of `minitron-nas latency`, which decode=... and prefill=... need."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every candidate of a size. It says how many shapes each rule left out."""
    from minitron_nas.cli.values import parse_size, parse_tokens
    from minitron_nas.pipeline.listing import enumerate_size

    wanted, context = parse_size(size), parse_tokens("--context-tokens", context_tokens)
    with at_work():
        found = enumerate_size(space, wanted, teacher, batch_size, context, latency)
    values = found.values.tolist()
    if as_json:
        rows = [
            {**each.architecture.sizes(), "num_parameters": each.num_parameters, wanted.column: value}
            for each, value in zip(found.candidates, values, strict=True)
        ]
        print_json({"candidates": rows, "excluded": found.excluded})
        return
    for candidate, value in zip(found.candidates, values, strict=True):
        told = "" if wanted.unit == "parameters" else f" {wanted.told(value):>18}"
        typer.echo(f"{candidate.id:<36} {candidate.num_parameters:>18,}{told}")
    left_out = ", ".join(f"{count} by {rule}" for rule, count in found.excluded.items()) or "none"
    typer.echo(f"{len(found.candidates)} candidates; left out: {left_out}")


@app.command("ls")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    as_json: AsJson = False,
) -> None:
    """List known families, search spaces or settings of a plan."""
    from minitron_nas.pipeline.listing import list_known

    rows = list_known(what.value)
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows) + 2
    for row in rows:
        typer.echo(f"{row['name']:<{width}} {row['about']}")


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(help="A run, model (folder, hub name, GGUF file, wheel), scores, space or latency model.")
    ],
    as_json: AsJson = False,
) -> None:
    """Say what something is, at a glance."""
    from minitron_nas.pipeline.show import show as look

    with at_work():
        shown = look(what)
    if as_json:
        print_json(shown.to_dict())
        return
    for line in shown.lines():
        typer.echo(line)


@app.command()
def doctor(
    plan: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A plan, as YAML; what it needs and does not find here makes the exit code 1."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try what runs use on this machine. It says what mends what is missing."""
    from minitron_nas.pipeline.doctor import examine
    from minitron_nas.pipeline.plan import load_plan

    findings = []
    examined = examine(load_plan(plan) if plan is not None else None)
    while True:
        with at_work():
            finding = next(examined, None)
        if finding is None:
            break
        findings.append(finding)
        if not as_json:
            mark = "ok" if finding.works else "missing" if finding.needed else "none"
            remedy = f"; to mend it: {finding.remedy}" if finding.remedy else ""
            typer.echo(f"{mark:<8} {finding.name:<18} {finding.told}{remedy}")
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if any(finding.needed and not finding.works for finding in findings):
        raise typer.Exit(1)
