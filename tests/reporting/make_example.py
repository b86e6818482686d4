"""What `reports/example` is made of: a finished run without its weights, tokens and signals.

`python tests/reporting/make_example.py RUN reports/example` copies it, and writes its model cards and its report anew.
"""

import argparse
import shutil
from pathlib import Path

from minitron_nas.reporting.html import write_report
from minitron_nas.reporting.model_card import write_model_card
from minitron_nas.reporting.run_record import read_run
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.schemas import EVALUATIONS, RUN_TABLES, SCORES
from minitron_nas.storage.tables import read_rows, write_rows

OF_A_STUDENT = ("config.json", "generation_config.json", "lineage.json", "proof.json")


def make_example(run: Path, out: Path) -> None:
    """Copy what tells a run, name its teacher as its plan does, and tell it anew."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("plan.yaml", "ledger.jsonl", *(table.file_name for table in RUN_TABLES)):
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
    for scores in run.glob(f"importance/*/{SCORES.file_name}"):
        own = out / scores.relative_to(run)
        own.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scores, own)
    teacher = read_run(run).teacher["source"]
    rows = read_rows(run, EVALUATIONS)
    write_rows(out, EVALUATIONS, [{**row, "path": teacher} if row["role"] == "teacher" else row for row in rows])
    for student in sorted((run / "students").iterdir()):
        own = out / "students" / student.name
        own.mkdir(parents=True, exist_ok=True)
        for name in OF_A_STUDENT:
            if (student / name).exists():
                shutil.copyfile(student / name, own / name)
    tell(out)


def tell(example: Path) -> None:
    """Write the cards and the report of an example anew, from its tables."""
    for student in sorted((example / "students").iterdir()):
        write_model_card(student, example)
    write_report(example)
    RunFolder(example).path.joinpath(".tables.lock").unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    make_example(given.run, given.out)
