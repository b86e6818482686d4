"""Compiled where a compiler is, as written where it is not."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from minitron_nas.execution.compiler import compiled

WITHOUT_COMPILER = """
import logging, torch
from minitron_nas.execution.compiler import compiled, has_compiler
logging.basicConfig()
rising = compiled(lambda x: x * 2 + 1)
assert rising(torch.arange(4.0)).tolist() == [1, 3, 5, 7]
assert rising(torch.arange(2.0)).tolist() == [1, 3]
assert not has_compiler()
"""


@pytest.mark.usefixtures("compiler")
def test_a_compiled_function_takes_any_number_of_rows_without_being_compiled_again(monkeypatch):
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    double = compiled(lambda x: 2 * x)
    assert [double(torch.ones(rows)).sum().item() for rows in (5, 3, 8)] == [10, 6, 16]
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine",
    [
        {"PATH": "", "CXX": "no-such-compiler"},
        {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["no compiler", "a locale of ASCII"],
)
def test_without_a_compiler_a_function_runs_as_written_and_says_so_once(tmp_path, machine):
    environment = {**machine, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("WARNING:minitron_nas.execution.compiler:torch.compile does not work here") == 1
