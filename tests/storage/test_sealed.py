"""JSON objects with a checksum: what was written comes back, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_nas.storage.sealed import read_sealed, seal, unseal, write_sealed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "xxh3"), VALUES, max_size=4))
def test_what_is_sealed_comes_back(content):
    assert unseal(seal(content)) == content


def test_a_changed_value_does_not_come_back():
    line = seal({"kl_nats": 1.25, "key": "a"})
    assert unseal(line.replace("1.25", "1.24")) is None
    assert unseal(line.replace('"a"', '"b"')) is None


@pytest.mark.parametrize("line", ["", "{", "[]", "3", "{}", json.dumps({"kl_nats": 1.0}), '{"xxh3": "0"}'])
def test_what_is_something_else_does_not_come_back(line):
    assert unseal(line) is None


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"{}"])
def test_a_file_that_is_gone_or_damaged_holds_nothing(tmp_path, content):
    path = tmp_path / "value.json"
    write_sealed(path, {"a": 1})
    assert read_sealed(path) == {"a": 1}
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert read_sealed(path) is None
