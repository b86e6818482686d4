"""Copies of what lies at URIs, in this machine's cache: runs and models as they are now, fetched where they changed."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path, PurePosixPath

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.atomic import read_json, remove, write_json
from minitron_nas.storage.cache import cache_folder
from minitron_nas.storage.ledger import Ledger
from minitron_nas.storage.locks import one_at_a_time
from minitron_nas.storage.outputs import Output, Outputs
from minitron_nas.storage.remote import Object, Store, as_path, as_uri

_LEDGER, _PLAN = "ledger.jsonl", "plan.yaml"
_VERSIONS = ".versions.json"
_UNDER_WAY = ("checkpoints/", "trials/", "rows/", ".owners/")
_MODELS = ("students/", "baselines/", "corrected/")
_WEIGHTS = ".safetensors"


def local(place: str | Path) -> Path:
    """Return a run or a model as a folder of this machine: a path as it is, of a URI a copy of what is there now.

    Of a run the weights of its models are left out, which `local_model` fetches.

    Args:
        place: A path, the URI of a run, or of a model in a run or anywhere.

    Raises:
        RunFolderError: If nothing is there, or it is not what the run wrote.
        MachineError: If it cannot be reached.
    """
    uri = as_uri(place)
    if uri is None:
        return as_path(place)
    there = Store(uri).objects()
    if not there:
        raise RunFolderError(f"there is nothing at {uri}; give the URI of a run or of a model")
    if _PLAN in there and "config.json" not in there:
        return _copy(uri, there, lambda name: not name.startswith(_UNDER_WAY) and not _is_weights(name))
    parts = uri.split("/")
    for num_inside in (2, 1):  # students/94M, corrected
        run, name = "/".join(parts[:-num_inside]), "/".join(parts[-num_inside:])
        if run.count("/") > 2 and Store(run).read(_LEDGER) is not None:
            return local_model(run, name)
    return _copy(uri, there, lambda _: True)


def local_model(run: str | Path, name: str) -> Path:
    """Return a model of a run as a folder of this machine.

    Args:
        run: The run, a path or a URI.
        name: The model's folder in it, such as `students/94M`.

    Raises:
        RunFolderError: If it is not what the run wrote.
        MachineError: If it cannot be reached.
    """
    uri = as_uri(run)
    if uri is None:
        return as_path(run) / name
    return _copy(uri, Store(uri).objects(), lambda each: each == _LEDGER or each.startswith(f"{name}/")) / name


def _is_weights(name: str) -> bool:
    return name.startswith(_MODELS) and name.endswith(_WEIGHTS)


def _copy(uri: str, there: dict[str, Object], wanted: Callable[[str], bool]) -> Path:
    """Return a folder that has the wanted objects as they are now, of a run as its ledger says."""
    folder = cache_folder().absolute() / "copies" / sha256(uri.encode()).hexdigest()[:16] / PurePosixPath(uri).name
    with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
        versions = read_json(folder / _VERSIONS) if (folder / _VERSIONS).is_file() else {}
        for name in versions.keys() - there.keys():
            remove(folder / name)
            del versions[name]
        store, outputs, said = Store(uri), Outputs(folder), dict[str, tuple[Output, str]]()
        for name in sorted(filter(wanted, there), key=lambda name: name != _LEDGER):
            version, file = there[name].version, folder / name
            if versions.get(name) != version or not file.is_file():
                store.get(name, file)
                if name in said and outputs.differing([said[name][0]], thorough=True):
                    remove(file)
                    raise RunFolderError(f"{uri}/{name} is not what the stage {said[name][1]!r} wrote; restore it")
                versions[name] = version
                write_json(folder / _VERSIONS, versions)
            if name == _LEDGER:
                entries = Ledger(file).entries()
                said = {o.path: (o, each.stage) for each in entries for o in (*each.outputs, *each.rows)}
    return folder
