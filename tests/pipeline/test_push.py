"""What goes to the hub, and what never does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from minitron_nas.errors import MinitronNasError, PlanError, ProofError, RunFolderError
from minitron_nas.pipeline import push as module
from minitron_nas.pipeline.push import push


class Hub:
    """Keeps what it is asked for."""

    asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    failure: Exception | None = None

    def create_repo(self, repo: str, **options: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.asked.append((repo, options))

    def upload_folder(self, **options: Any) -> str:
        self.asked.append(("upload", options))
        return "https://hub/owner/name/commit/1"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "failure", None)
    monkeypatch.setattr(module, "HfApi", Hub)
    return Hub


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_student_goes_whole_and_private_in_one_commit(run: Path, hub: type[Hub]) -> None:
    student = run / "students" / "90k"
    (student / ".hidden").write_text("a lock")
    pushed = push(run, "owner/name", "90k")
    (repo, options), (_, upload) = hub.asked
    assert (repo, options) == ("owner/name", {"private": True, "exist_ok": True})
    assert (upload["repo_id"], upload["folder_path"]) == ("owner/name", student)
    assert set(upload["allow_patterns"]) == {path.name for path in student.iterdir()} - {".hidden"}
    assert {"README.md", "config.json", "lineage.json", "proof.json", "model.safetensors"} <= set(pushed.files)
    assert pushed.url == "https://hub/owner/name/commit/1"
    assert pushed.num_bytes == sum(file.stat().st_size for file in student.iterdir() if file.name != ".hidden")


def test_a_dry_run_says_what_would_go_and_asks_the_hub_nothing(run: Path, hub: type[Hub]) -> None:
    pushed = push(run / "students" / "90k", "owner/name", dry_run=True)
    assert hub.asked == []
    assert pushed.url is None
    assert "model.safetensors" in pushed.files


def test_an_aligned_student_of_a_run_goes_by_its_name(run: Path, hub: type[Hub]) -> None:
    shutil.copytree(run / "students" / "90k", run / "aligned" / "90k-chat")
    assert push(run, "owner/name", "90k-chat", dry_run=True).folder == run / "aligned" / "90k-chat"
    assert push(run, "owner/name", "90k", dry_run=True).folder == run / "students" / "90k"
    with pytest.raises(RunFolderError, match=r"which student of .*: name one with --size: 90k, 90k-chat"):
        push(run, "owner/name")


def test_a_repository_is_public_only_if_that_is_asked_for(run: Path, hub: type[Hub]) -> None:
    push(run, "owner/name", "90k", public=True)
    assert hub.asked[0][1]["private"] is False


def test_a_model_whose_proof_failed_is_never_published(run: Path, hub: type[Hub]) -> None:
    file = run / "students" / "90k" / "lineage.json"
    content = json.loads(file.read_text())
    content["proof"]["max_abs_difference"] = 1.0
    file.write_text(json.dumps(content))
    with pytest.raises(ProofError, match=r"is not published: reloaded, its logits differ by 1 from .* distil it again"):
        push(run, "owner/name", "90k", dry_run=True)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("repo", "size", "error", "message"),
    [
        ("name", "90k", PlanError, r"--repo 'name' is no name of the hub; write owner/name"),
        ("owner/name@main", "90k", PlanError, "is no name of the hub"),
        ("owner/name", "80k", RunFolderError, r"no student '80k' in .*: name one with --size: 90k"),
        ("owner/name", None, RunFolderError, r"which student of .*: name one with --size: 90k"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(
    run: Path, hub: type[Hub], repo: str, size: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        push(run, repo, size)


def test_a_folder_that_is_no_student_is_refused(run: Path, hub: type[Hub], tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is neither a run nor a student"):
        push(tmp_path, "owner/name", "90k")
    with pytest.raises(RunFolderError, match=r"is one model; leave --size out"):
        push(run / "students" / "90k", "owner/name", "90k")
    (run / "students" / "90k" / "README.md").unlink()
    with pytest.raises(RunFolderError, match=r"has no model card yet"):
        push(run, "owner/name", "90k")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (LocalTokenNotFoundError("no token"), r"nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN"),
        (OSError("no route to host"), r"the hub does not take owner/name \(no route to host\); see that"),
    ],
)
def test_a_hub_that_refuses_is_told_in_one_line(
    run: Path, hub: type[Hub], failure: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "failure", failure)
    with pytest.raises(MinitronNasError, match=message):
        push(run, "owner/name", "90k")
