"""`python -m minitron_nas` is the command minitron-nas."""

from minitron_nas.cli.app import main

if __name__ == "__main__":
    main()
