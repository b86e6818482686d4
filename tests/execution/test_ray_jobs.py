"""Jobs of a cluster, by a client that is not there; `tests/end_to_end/test_submit.py` asks a real one."""

from types import SimpleNamespace
from typing import Any

import pytest

from minitron_nas.errors import PlanError

ray_jobs = pytest.importorskip("minitron_nas.execution.ray_jobs")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Exception | None]]:
    """A server, and what its cluster answers to each attempt to hand over a job: an error, or None for an id."""
    answers: list[Exception | None] = []

    def submit_job(**_: Any) -> str:
        if (error := answers.pop(0)) is not None:
            raise error
        return "raysubmit_1"

    monkeypatch.setattr(ray_jobs, "JobSubmissionClient", lambda address: SimpleNamespace(submit_job=submit_job))
    monkeypatch.setattr(ray_jobs, "_AGAIN_SECONDS", 0.01)
    return ray_jobs.JobServer("http://head:8265"), answers


def no_agent() -> RuntimeError:
    return RuntimeError("Request failed with status code 500: No available agent to submit job, try again")


def test_a_head_that_has_just_begun_is_asked_again(server: tuple[Any, list[Exception | None]]) -> None:
    jobs, answers = server
    answers += [no_agent(), no_agent(), None]
    assert jobs.submit("true", {}, {}) == "raysubmit_1"
    assert answers == []


def test_a_head_without_what_starts_jobs_is_given_up(
    server: tuple[Any, list[Exception | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, answers = server
    monkeypatch.setattr(ray_jobs, "_PATIENCE_SECONDS", 0.05)
    answers += [no_agent() for _ in range(1000)]
    with pytest.raises(PlanError, match="^no Ray cluster takes jobs at http://head:8265 .*No available agent"):
        jobs.submit("true", {}, {})


def test_any_other_refusal_is_told_at_once(server: tuple[Any, list[Exception | None]]) -> None:
    jobs, answers = server
    answers += [RuntimeError("Request failed with status code 413"), None]
    with pytest.raises(PlanError, match="status code 413"):
        jobs.submit("true", {}, {})
    assert answers == [None]
