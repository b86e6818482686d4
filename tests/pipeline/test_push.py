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


@pytest.mark.parametrize("missing", [None, "proof.json"])
def test_a_model_without_a_proof_is_never_published(run: Path, hub: type[Hub], missing: str | None) -> None:
    student = run / "students" / "90k"
    if missing is not None:
        (student / missing).unlink()
    else:
        content = json.loads((student / "lineage.json").read_text())
        (student / "lineage.json").write_text(json.dumps({**content, "proof": None}))
    with pytest.raises(ProofError, match=r"90k is not published without a proof that it loads .* make it again"):
        push(run, "owner/name", "90k")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.safetensors", r"what is published has to load, and .*90k holds no safetensors weights"),
        ("tokenizer.json", r"90k is not published without a tokenizer, and has none of tokenizer\.json, .* teacher's"),
    ],
)
def test_a_model_that_nobody_could_load_is_never_published(
    run: Path, hub: type[Hub], pattern: str, message: str
) -> None:
    for file in (run / "students" / "90k").glob(pattern):
        file.unlink()
    with pytest.raises(RunFolderError, match=message):
        push(run, "owner/name", "90k")
    assert hub.asked == []


def test_a_shard_that_is_missing_is_named(run: Path, hub: type[Hub]) -> None:
    student = run / "students" / "90k"
    (student / "model.safetensors").rename(student / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(RunFolderError, match=r"lacks model-00002-of-00002\.safetensors, which its index names"):
        push(run, "owner/name", "90k")


def test_what_is_published_names_no_folder_of_this_machine(run: Path, trained_teacher: Path, text_file: Path) -> None:
    pushed = push(run, "owner/name", "90k", dry_run=True)
    told = [pushed.folder / name for name in pushed.files if not name.endswith(".safetensors")]
    assert len(told) > 5
    for place in (trained_teacher.parent, text_file.parent):
        assert not [file.name for file in told if str(place).encode() in file.read_bytes()]


def test_the_example_of_a_run_has_no_weights_to_publish() -> None:
    with pytest.raises(RunFolderError, match="holds no safetensors weights"):
        push(Path(__file__).parents[2] / "reports" / "example", "owner/name", "94M", dry_run=True)


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
