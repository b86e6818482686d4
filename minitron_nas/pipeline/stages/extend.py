"""What the screening of a size takes over from an earlier run, so that a search can be gone on with.

A run folder is of one plan. Another plan, with more candidates or another space, names the run that it extends:
what was measured there under the same conditions is known here before the first round.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.execution.runner import Outcome
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import Run
from minitron_nas.search.exploration import Exploration
from minitron_nas.search.pool import Pool
from minitron_nas.storage.atomic import read_json
from minitron_nas.storage.ledger import Ledger, fingerprint
from minitron_nas.storage.outputs import Outputs
from minitron_nas.storage.run_folder import RunFolder, holds_run


def check_extended(plan: FamilyPlan) -> None:
    """Refuse a plan that extends what is no run, or one that has screened none of its sizes.

    Args:
        plan: The plan.

    Raises:
        PlanError: Says which sizes were screened there.
        RunFolderError: If the run is of another version.
    """
    if (earlier := _earlier(plan)) is None:
        return
    screened = [entry.stage.removesuffix(" screen") for entry in Ledger(earlier.ledger).entries()]
    screened = [label for label in screened if earlier.screened(label).exists()]
    if not {*screened} & {size.label for size in plan.sizes}:
        raise PlanError(
            f"search.extends={earlier.path} has screened {', '.join(screened) or 'no size'}, none of this plan's "
            f"{', '.join(size.label for size in plan.descending_sizes)}; name a run that has, or leave it out"
        )


def conditions(run: Run, hop: Hop, num_sequences: int | None) -> dict[str, str]:
    """Return all that the untrained KL of a shape depends on, in words, each with what identifies it.

    Args:
        run: The run.
        hop: The size.
        num_sequences: How many of the held-out sequences are read; None for all.
    """
    files = [(Path(output.path).name, output.num_bytes, output.checksum) for output in hop.prepared_by.entry.outputs]
    return {
        "the model that shapes are cut from": hop.source.checkpoint.fingerprint,
        "how they are cut": fingerprint(files),
        "the teacher": hop.lessons.files.fingerprint,
        "the held-out text": run.tokens.part("validation").fingerprint,
        "search.screen_sequences": str(num_sequences),
    }


def taken_over(run: Run, hop: Hop, pool: Pool, here: Mapping[str, str]) -> dict[int, Outcome]:
    """Return what the plan's earlier run has measured of a size's pool, by index, and tell a person.

    Args:
        run: The run.
        hop: The size.
        pool: Its candidates.
        here: `conditions`; what was measured under others is not taken.

    Raises:
        RunFolderError: If the earlier run's file is not what it wrote.
    """
    earlier = _earlier(run.plan)
    if earlier is None:
        return {}
    path, entry = earlier.screened(hop.label), Ledger(earlier.ledger).latest(f"{hop.label} screen")
    if entry is None or not path.exists():
        run.engine.note(f"{hop.label}: {earlier.path} has not screened it; nothing is taken over")
        return {}
    if Outputs(earlier.path).differing(entry.outputs, thorough=True):
        raise RunFolderError(
            f"{path} is not what the stage {entry.stage!r} wrote; restore it, or leave search.extends out"
        )
    content = read_json(path)
    there = content.get("conditions", {})
    if others := [words for words, identity in here.items() if there.get(words) != identity]:
        run.engine.note(f"{hop.label}: nothing is taken over from {earlier.path}; not the same are {', '.join(others)}")
        return {}
    known, columns = dict[int, Outcome](), pool.candidates.columns()
    for index, outcome in Exploration.from_dict(content).outcomes.items():
        sizes = content["shapes"][str(index)]
        same = np.all([values == sizes[name] for name, values in columns.items()], axis=0)
        for found in np.flatnonzero(same).tolist():
            if outcome.status == "completed" and pool.candidates[found].id == outcome.key:
                known[found] = outcome
    run.engine.note(f"{hop.label}: {len(known):,} screened candidates are taken over from {earlier.path}")
    return known


def _earlier(plan: FamilyPlan) -> RunFolder | None:
    named = plan.search.extends
    if named is None:
        return None
    if not holds_run(Path(named)):
        raise PlanError(f"search.extends={named} is no run; name the folder that a build has written")
    folder = RunFolder(Path(named))
    folder.read_plan()
    return folder
