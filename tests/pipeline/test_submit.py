"""Plans that are handed to a cluster: what is refused here, and what goes there."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from minitron_nas.errors import PlanError
from minitron_nas.execution import ray_jobs
from minitron_nas.pipeline import submit as module
from minitron_nas.pipeline.plan import FamilyPlan, load_plan
from minitron_nas.pipeline.submit import submit

PLAN = "{teacher: models/big, sizes: [94M], data: [{path: text/*.parquet, weight: 1}], runner: local}"


class Server:
    """Keeps what was handed over."""

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, command: str, environment: dict[str, str], about: dict[str, str]) -> str:
        self.__class__.got = (command, environment, about)
        return "job-1"


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan whose teacher lies beside it; the current folder is its own."""
    (tmp_path / "models" / "big").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return file


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> type[Server]:
    monkeypatch.setattr(ray_jobs, "JobServer", Server)
    return Server


def test_a_plan_goes_as_text_with_its_files_named_from_the_root_on(plan: Path, server: Any, tmp_path: Path) -> None:
    assert submit(plan, "http://head:8265", "/shared/run", ["seed=3"]) == "job-1"
    command, environment, about = server.got
    assert command == 'printf %s "$MINITRON_NAS_PLAN" | python -m minitron_nas build --plan - --out /shared/run'
    assert about == {"minitron_nas": "/shared/run"}
    sent = json.loads(environment["MINITRON_NAS_PLAN"])
    assert sent["teacher"] == str(tmp_path / "models" / "big")
    assert sent["data"][0]["path"] == str(tmp_path / "text" / "*.parquet")
    assert (sent["runner"]["kind"], sent["runner"]["address"], sent["seed"]) == ("ray", "auto", 3)
    assert isinstance(FamilyPlan.model_validate(sent), FamilyPlan)


def test_names_of_the_hub_and_of_the_cluster_go_as_they_are(plan: Path, server: Any) -> None:
    plan.write_text("{teacher: owner/name, sizes: [94M], data: /shared/text}")
    submit(plan, "http://head:8265", "/shared/run", python="/shared/venv/bin/python 3")
    sent = json.loads(server.got[1]["MINITRON_NAS_PLAN"])
    assert (sent["teacher"], sent["data"]) == ("owner/name", "/shared/text")
    assert " '/shared/venv/bin/python 3' -m minitron_nas " in server.got[0]


@pytest.mark.parametrize("out", ["s3://bucket/run", Path("s3://bucket/run")])
def test_a_uri_goes_as_it_is_though_a_path_has_lost_a_slash(plan: Path, server: Any, out: str | Path) -> None:
    submit(plan, "http://head:8265", out)
    assert server.got[0].endswith(" --out s3://bucket/run")
    assert server.got[2] == {"minitron_nas": "s3://bucket/run"}


def test_a_plan_is_read_from_standard_input_as_the_job_does(
    plan: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    submit(plan, "http://head:8265", "/shared/run")
    monkeypatch.setattr(sys, "stdin", io.StringIO(server.got[1]["MINITRON_NAS_PLAN"]))
    read = load_plan("-")
    assert read.runner.on_cluster
    assert read.sizes == load_plan(plan).sizes


@pytest.mark.parametrize(
    ("content", "out", "message"),
    [
        (
            PLAN,
            "runs/one",
            r"--out runs/one is relative, and a job works in a folder of Ray's own .*; give an absolute",
        ),
        ("{teacher: a, sizes: [94M]}", "/shared/run", "data"),
    ],
)
def test_what_could_not_work_there_is_refused_here(
    plan: Path, server: Any, content: str, out: str, message: str
) -> None:
    plan.write_text(content)
    with pytest.raises(PlanError, match=message):
        submit(plan, "http://head:8265", out)


def test_a_plan_that_is_too_long_for_a_variable_is_refused(
    plan: Path, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    with pytest.raises(
        PlanError, match=r"characters, and goes to the cluster as a variable of at most 100; name fewer"
    ):
        submit(plan, "http://head:8265", "/shared/run")


def test_an_address_where_nothing_answers_is_told_with_what_to_do(plan: Path) -> None:
    with pytest.raises(PlanError, match=r"no Ray cluster takes jobs at http://127\.0\.0\.1:9 .*dashboard-host"):
        submit(plan, "http://127.0.0.1:9", "/shared/run")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://head:10001", "auto"])
def test_an_address_that_is_none_of_a_dashboard_is_refused_at_once(plan: Path, address: str) -> None:
    with pytest.raises(
        PlanError, match=rf"--address {address} must begin with http:// or https://, such as http://head"
    ):
        submit(plan, address, "/shared/run")


def test_of_a_failure_only_what_was_not_passed_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 chars):\nno file"
    details = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=2, message=said)
    server: Any = object.__new__(ray_jobs.JobServer)
    server._client = Client(["no file\n"])
    monkeypatch.setattr(ray_jobs.JobServer, "_details", lambda self, job: details)
    end = server.follow("job-1", lambda text: None)
    assert (end.status, end.exit_code, end.message) == ("FAILED", 2, "Job entrypoint command failed with exit code 2")


class Client:
    """Prints a text in pieces, over connections of which the first breaks."""

    def __init__(self, *connections: list[str | Exception]) -> None:
        self._connections = list(connections)

    async def tail_job_logs(self, job: str) -> Any:
        for piece in self._connections.pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield piece


def test_output_that_nobody_reads_any_more_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str) -> None:
        raise BrokenPipeError("nobody reads")

    server: Any = object.__new__(ray_jobs.JobServer)
    server._client = Client(["one\n"])
    monkeypatch.setattr(ray_jobs.JobServer, "_details", lambda self, job: None)
    with pytest.raises(BrokenPipeError, match="nobody reads"):
        server.follow("job-1", broken)


def test_each_line_of_a_job_is_passed_on_once_though_the_connection_breaks() -> None:
    import asyncio

    written: list[str] = []
    client: Any = Client(["one\n", "tw", RuntimeError("broken")], ["one\ntwo\n", "three\n"])
    tail = ray_jobs._Tail(client, "job-1", written.append)
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(tail.read())
    asyncio.run(tail.read())
    assert "".join(written) == "one\ntwo\nthree\n"
