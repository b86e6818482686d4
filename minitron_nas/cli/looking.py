"""Verbs that only look: `enumerate`, `ls`."""

from enum import StrEnum
from typing import Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, app, print_json, stdout_for_results


class Listed(StrEnum):
    """What `ls` lists."""

    families = "families"
    spaces = "spaces"
    settings = "settings"


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
    from minitron_nas.cli.values import parse_size
    from minitron_nas.pipeline.listing import enumerate_size

    with stdout_for_results():
        found = enumerate_size(space, parse_size(size), teacher)
    if as_json:
        rows = [{**c.architecture.sizes(), "num_parameters": c.num_parameters} for c in found.candidates]
        print_json({"candidates": rows, "excluded": found.excluded})
        return
    for candidate in found.candidates:
        typer.echo(f"{candidate.id:<36} {candidate.num_parameters:>18,}")
    left_out = ", ".join(f"{count} by {rule}" for rule, count in found.excluded.items()) or "none"
    typer.echo(f"{len(found.candidates)} candidates; left out: {left_out}")


@app.command("ls")
def list_(
    what: Annotated[Listed, typer.Argument(help="What to list.")],
    as_json: AsJson = False,
) -> None:
    """List the known model families, search spaces or settings of a plan."""
    from minitron_nas.pipeline.listing import list_known

    rows = list_known(what.value)
    if as_json:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows) + 2
    for row in rows:
        typer.echo(f"{row['name']:<{width}} {row['about']}")
