"""`python -m minitron_nas` is the command minitron-nas."""

from minitron_nas.errors import PreemptedError
from minitron_nas.execution.preemption import answer_signals, leave


def main() -> None:
    """Run the command, which answers signals before it imports anything that takes time."""
    answer_signals()
    try:
        from minitron_nas.cli.app import main as run

        run()
    except PreemptedError as stop:
        leave(stop)


if __name__ == "__main__":
    main()
