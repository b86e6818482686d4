"""What the screening of a size takes over from an earlier run, so that a search can be gone on with.

A run folder is of one plan. Another plan, with more candidates, another space or another size, names the run that it
extends: what was measured there under the same conditions is known here before the first round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitron_nas.errors import PlanError, RunFolderError
from minitron_nas.execution.runner import Outcome
from minitron_nas.pipeline.hop import Hop
from minitron_nas.pipeline.plan import FamilyPlan
from minitron_nas.pipeline.run import Run
from minitron_nas.search.exploration import Exploration
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import Beyond
from minitron_nas.storage.atomic import read_json
from minitron_nas.storage.ledger import Ledger, fingerprint
from minitron_nas.storage.outputs import Outputs
from minitron_nas.storage.run_folder import RunFolder, holds_run


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What an earlier run has measured.

    Attributes:
        known: Of the pool, by index.
        beyond: Of shapes that are not in the pool, such as those of other sizes: what a surrogate learns from.
    """

    known: dict[int, Outcome] = field(default_factory=dict)
    beyond: list[Beyond] = field(default_factory=list)


def check_extended(plan: FamilyPlan) -> None:
    """Refuse a plan that extends what is no run, or one that has screened nothing.

    Args:
        plan: The plan.

    Raises:
        PlanError: Names it.
        RunFolderError: If the run is of another version.
    """
    earlier = _earlier(plan)
    if earlier is not None and not earlier.all_screened():
        raise PlanError(f"search.extends={earlier.path} has screened no size yet; name a run that has, or leave it out")


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


def taken_over(run: Run, hop: Hop, pool: Pool, here: Mapping[str, str]) -> TakenOver:
    """Return what the plan's earlier run has measured under the same conditions, and tell a person.

    Args:
        run: The run.
        hop: The size.
        pool: Its candidates.
        here: `conditions`.

    Raises:
        RunFolderError: If a file of the earlier run is not what it wrote.
    """
    earlier, found = _earlier(run.plan), TakenOver()
    if earlier is None:
        return found
    differing = dict[str, None]()
    for file in earlier.all_screened():
        content = _read(earlier, file)
        there = content.get("conditions", {})
        others = [words for words, identity in here.items() if there.get(words) != identity]
        differing |= dict.fromkeys(others)
        if not others:
            _add(found, content, pool)
    if found.known or found.beyond:
        run.engine.note(
            f"{hop.label}: {len(found.known):,} of its candidates were screened in {earlier.path} and are taken over, "
            f"and {len(found.beyond):,} other shapes tell what to look at"
        )
    else:
        run.engine.note(f"{hop.label}: nothing is taken over from {earlier.path}; not the same: {', '.join(differing)}")
    return found


def _add(found: TakenOver, content: Mapping[str, Any], pool: Pool) -> None:
    """Add what one screening has measured."""
    columns = pool.candidates.columns()
    for index, outcome in Exploration.from_dict(content).outcomes.items():
        if outcome.status != "completed":
            continue
        sizes = content["shapes"][str(index)]
        same = np.all([values == sizes.get(name, 0) for name, values in columns.items()], axis=0)
        places = [place for place in np.flatnonzero(same).tolist() if pool.candidates[place].id == outcome.key]
        found.known.update(dict.fromkeys(places, outcome))
        if not places and (kl := outcome.number("kl_nats")) is not None and 0 < kl < float("inf"):
            found.beyond.append((sizes, kl))


def _read(earlier: RunFolder, file: Path) -> dict[str, Any]:
    """Read what a finished screening wrote."""
    entry = Ledger(earlier.ledger).latest(f"{file.stem} screen")
    if entry is None or Outputs(earlier.path).differing(entry.outputs, thorough=True):
        raise RunFolderError(f"{file} is not what a screening wrote; restore it, or leave search.extends out")
    content: dict[str, Any] = read_json(file)
    return content


def _earlier(plan: FamilyPlan) -> RunFolder | None:
    named = plan.search.extends
    if named is None:
        return None
    if not holds_run(Path(named)):
        raise PlanError(f"search.extends={named} is no run; name the folder that a build has written")
    folder = RunFolder(Path(named))
    folder.read_plan()
    return folder
