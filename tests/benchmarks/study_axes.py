"""What the axes of a teacher cost untrained, and what the repairs make of it.

`python tests/benchmarks/study_axes.py TEACHER --data DATA --out FOLDER` cuts a teacher (a folder, a GGUF file, or
`demo`, SmolLM2) by about a quarter along each axis, and along two at once, and prints the students' KL to it. DATA is
that of `study_starts.py`; what is measured goes to `measured/axes.json` beside this file, and is not measured again.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from study_starts import DEFAULT, STARTS, Start, Starts

from minitron_nas.architecture.spec import Architecture
from minitron_nas.pruning.rotation import why_not_rotatable
from minitron_nas.pruning.settings import RANDOM_TOKENS

MEASURED = Path(__file__).parent / "measured" / "axes.json"
AXES = (
    ("num_hidden_layers",),
    ("hidden_size",),
    ("intermediate_size",),
    ("num_attention_heads",),
    ("hidden_size", "intermediate_size"),
)


def starts(rotates: bool) -> dict[str, Start]:
    """Return what a teacher's students are begun with, by its repair."""
    kind = "rotation" if rotates else "selection"
    names = {"none": kind, "one pass": f"{kind}, repair in one pass", "in sequence": DEFAULT}
    return {repair: replace(STARTS[name], random_tokens=RANDOM_TOKENS) for repair, name in names.items()}


def shapes(source: Architecture) -> Iterator[dict[str, int]]:
    """Yield sizes that leave three quarters along each axis, whole groups of heads and whole heads of channels."""
    for names in AXES:
        sizes = {name: source.sizes()[name] * 3 // 4 for name in names}
        if "num_attention_heads" in sizes:
            groups, most = source.num_key_value_heads, max(sizes["num_attention_heads"], source.num_key_value_heads)
            legal = [heads for heads in range(groups, most + 1, groups) if source.hidden_size % heads == 0]
            sizes["num_attention_heads"] = legal[-1]
        if "hidden_size" in sizes:
            sizes["hidden_size"] -= sizes["hidden_size"] % source.num_attention_heads
        yield sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    study = Starts(args.data.absolute(), args.out.absolute(), MEASURED)
    study.source = None if args.teacher == "demo" else args.teacher
    source, layout = study.checkpoint.architecture, study.checkpoint.layout
    text, rotates = study.calibration(study.documents), why_not_rotatable(layout, source) is None
    known = starts(rotates)
    print(f"| {source.model_type}, {'rotated' if rotates else 'selected'} | {' | '.join(known)} |\n|{'---|' * 4}")
    for sizes in shapes(source):
        name, cells, seen = ", ".join(f"{axis} {size}" for axis, size in sizes.items()), [], {}
        for start in known.values():
            changes = start.changes(source, source.reshaped(sizes))
            if changes not in seen:
                key = f"{source.model_type} | {name} | {changes[1]}"
                found = study.measurements.once(key, partial(study.untrained, sizes, start, text))
                seen[changes] = f"{found['near']['kl_nats']:.3f} / {found['far']['kl_nats']:.3f}"
            cells.append(seen[changes])
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
