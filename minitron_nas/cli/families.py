"""Verbs for those who add a family: `check-family`, `draft-family`."""

from dataclasses import asdict
from typing import Annotated, Optional

import typer

from minitron_nas.cli.command import AsJson, app, at_work, print_json

_MODEL_HELP = (
    "Folder, config.json, hub name[@revision], of which the config is read and nothing else, or a model type of "
    "transformers."
)
Model = Annotated[str, typer.Argument(metavar="MODEL_OR_CONFIG", help=_MODEL_HELP)]


@app.command("check-family")
def check_family(
    model: Model,
    table: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="MODULE:ATTRIBUTE", help="A table that is not registered, such as jais2:LAYOUT."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a family's table. Every step that stands on it runs on a tiny random model of the config's kind."""
    with at_work():
        from minitron_nas.testing.examination import examine_family

        _in_one_thread()
        examined = examine_family(model, table)
    found = []
    while True:
        with at_work():
            verdict = next(examined, None)
        if verdict is None:
            break
        found.append(verdict)
        if as_json:
            continue
        typer.echo(f"{'ok' if verdict.holds else 'fault':<6} {verdict.check:<15} {verdict.fault or verdict.about}")
        if not verdict.holds:
            places = {"row": verdict.row, "tensor": verdict.tensor, "concerns": verdict.concept}
            told = "; ".join(f"{name}: {place}" for name, place in places.items() if place)
            typer.echo(f"{'':<22} {told}")
    if as_json:
        print_json([{**asdict(verdict), "holds": verdict.holds} for verdict in found])
    if not all(verdict.holds for verdict in found):
        raise typer.Exit(1)


@app.command("draft-family")
def draft_family(
    model: Model,
    as_json: AsJson = False,
) -> None:
    """Draft a table for a model type that is not known. It is Python; what it cannot explain are comments."""
    with at_work():
        from minitron_nas.drafting.draft import draft_family as draft

        _in_one_thread()
        drafted = draft(model)
    python, missing = drafted.to_python(), len(drafted.seen)
    if as_json:
        seen = {each.name: each.told for each in drafted.seen}
        print_json({"python": python, "unexplained": seen, "remarks": list(drafted.remarks)})
        return
    typer.echo(python, nl=False)
    left_out = f", and {missing} that the grammar does not explain" if missing else ""
    name = drafted.layout.model_type.replace("-", "_")
    trial = f"minitron-nas check-family {model} --table {name}:LAYOUT"
    typer.echo(f"{len(drafted.layout.rows)} rows{left_out}; save it as {name}.py and try it: {trial}", err=True)


def _in_one_thread() -> None:
    """Compute tiny models by one thread: several wait for one another longer than they work."""
    import torch

    torch.set_num_threads(1)
