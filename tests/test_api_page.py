"""The page of the public names, which mkdocs builds."""

import re
from pathlib import Path

import minitron_nas

PAGE = Path(__file__).resolve().parents[1] / ".github" / "docs" / "index.md"


def test_the_page_shows_every_public_name_and_no_other_of_the_package() -> None:
    shown = re.findall(r"^::: minitron_nas\.(\w+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(shown) == sorted(minitron_nas.__all__)
