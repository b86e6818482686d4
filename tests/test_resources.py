import pytest
import yaml

from minitron_nas.errors import MinitronNasError
from minitron_nas.resources import resource, resource_names


def test_a_shipped_file_is_found_and_readable() -> None:
    path = resource("search_spaces", "minitron-15b-to-4b.yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["axes"]["num_attention_heads"] == {"values": [24, 32, 48]}


def test_names_are_sorted_and_carry_no_suffix() -> None:
    names = resource_names("search_spaces", ".yaml")
    assert names == sorted(names)
    assert {"minitron-15b-to-4b", "minitron-15b-to-8b"} <= set(names)


@pytest.mark.parametrize(("folder", "name"), [("search_spaces", "absent.yaml"), ("absent", "a.yaml")])
def test_a_file_that_is_not_shipped_is_named(folder: str, name: str) -> None:
    with pytest.raises(MinitronNasError, match=f"the installation lacks {folder}/{name}; reinstall minitron-nas"):
        resource(folder, name)


def test_a_folder_that_is_not_shipped_has_no_names() -> None:
    assert resource_names("absent", ".yaml") == []
