"""Where work runs: this process or Ray; knows no stage."""
