"""One small piece of real work, to see whether a machine can do it: `python -m minitron_nas.execution.rehearsal ray`.

`deepspeed` is started by torchrun, in as many processes as it says.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

REHEARSALS = ("ray", "deepspeed")


def rehearse(what: str) -> None:
    """Run one task on a Ray that is started here, or one optimizer step of ZeRO in all processes.

    Args:
        what: One of `REHEARSALS`.
    """
    if what == "deepspeed":
        from minitron_nas.execution.deepspeed import take_one_step  # deferred: one of the two may be broken

        take_one_step()
        return
    from minitron_nas.execution import ray_session

    with TemporaryDirectory() as folder, ray_session.connected(None, Path(folder) / "ray"):
        ray_session.run_one_task()


if __name__ == "__main__":
    rehearse(sys.argv[1])
