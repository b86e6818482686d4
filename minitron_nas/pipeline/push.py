"""Publishing a member of a family on the Hugging Face hub."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from minitron_nas.errors import CheckpointError, PlanError, ProofError, RunFolderError
from minitron_nas.models.hub import HUB_NAME
from minitron_nas.storage.copies import local, local_model
from minitron_nas.storage.front_matter import CARD
from minitron_nas.storage.lineage import LINEAGE, PROOF, read_lineage
from minitron_nas.storage.run_folder import RunFolder
from minitron_nas.storage.weights import weight_files

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*")
"""Files of which every tokenizer has one."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What goes to the hub.

    Attributes:
        repo: `owner/name`.
        folder: The folder that is published.
        files: Every file with its bytes.
        url: Of the commit; None after a dry run.
    """

    repo: str
    folder: Path
    files: dict[str, int]
    url: str | None = None

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())


def push(run: str | Path, repo: str, size: str | None = None, public: bool = False, dry_run: bool = False) -> Pushed:
    """Publish a student: weights, tokenizer, terms of use, card, lineage and proof, in one commit.

    Args:
        run: A run, or one student: a folder or a URI.
        repo: `owner/name`; it is made if it is not there, and private unless that is asked for.
        size: Which of a run's students, such as "94M" or "94M-2", or of those that were aligned.
        public: Whether a new repository is public.
        dry_run: Whether only to say what would go.

    Raises:
        RunFolderError: If there is no such student, or it lacks its card, its tokenizer or weights.
        ProofError: If nothing proves that it loads, or its reloaded logits differ from those of the model that was
            written.
        PlanError: If the name is none of the hub's, nobody is logged in, or the hub refuses.
    """
    if not HUB_NAME.fullmatch(repo) or "@" in repo:
        raise PlanError(f"--repo {repo!r} is no name of the hub; write owner/name")
    folder = _student(run, size)
    _require_whole(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): path.stat().st_size for path in paths if not _is_hidden(path, folder)}
    if dry_run:
        return Pushed(repo, folder, files)
    try:
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        url = api.upload_folder(
            repo_id=repo, folder_path=folder, allow_patterns=list(files), commit_message=f"Upload {folder.name}"
        )
    except LocalTokenNotFoundError:
        raise PlanError("nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN") from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise PlanError(
            f"the hub does not take {repo} ({reason}); see that `hf auth whoami` may write there, and push again"
        ) from error
    return Pushed(repo, folder, files, str(url))


def _require_whole(folder: Path) -> None:
    """Refuse a student that nobody could load, or of which nobody knows whether it is what was written."""
    if not (folder / CARD).is_file():
        raise RunFolderError(f"{folder} has no model card yet; let the build go on until its size is finished")
    try:
        weight_files(folder)
    except CheckpointError as error:
        raise RunFolderError(f"what is published has to load, and {error}") from None
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise RunFolderError(
            f"{folder} is not published without a tokenizer, and has none of {', '.join(_VOCABULARIES)}; copy its "
            "teacher's there"
        )
    proof = read_lineage(folder).proof
    if proof is None or not (folder / PROOF).is_file():
        raise ProofError(
            f"{folder} is not published without a proof that it loads as it was written ({PROOF}, and what {LINEAGE} "
            "says of it); make it again, where memory has room to load it beside itself"
        )
    if not proof.holds:
        raise ProofError(
            f"{folder} is not published: reloaded, its logits differ by {proof.max_abs_difference:.3g} from those "
            f"of the model that was written, and at most {proof.tolerance:.3g} is accepted; distil it again"
        )


def _student(place: str | Path, size: str | None) -> Path:
    """Return the folder of a student, of a run or by itself."""
    path = local(place)
    if (path / "config.json").is_file() and (path / LINEAGE).is_file():
        if size is not None:
            raise RunFolderError(f"{path} is one model; leave --size out, or give the run folder")
        return path
    run = RunFolder(path)
    if not run.plan.is_file():
        raise RunFolderError(f"{path} is neither a run nor a student: it has no plan.yaml and no {LINEAGE}")
    folders = sorted(file.parent for kind in ("aligned", "students") for file in (path / kind).glob(f"*/{LINEAGE}"))
    there = {folder.name: str(folder.relative_to(path)) for folder in folders}
    if size is None or size not in there:
        known = f"name one with --size: {', '.join(sorted(there))}" if there else "none is finished yet"
        asked = "which student of" if size is None else f"no student {size!r} in"
        raise RunFolderError(f"{asked} {path}: {known}")
    return local_model(place, there[size])


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
