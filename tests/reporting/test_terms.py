"""Licence and languages: the plan's word, then the teacher's card, and never a guess."""

from pathlib import Path

import pytest

from minitron_nas.errors import PlanError
from minitron_nas.pipeline.plan import make_plan
from minitron_nas.reporting.terms import LICENSES, CardSettings, fitting_terms, read_terms

LINK = "https://example.org/terms"


def card_of(folder: Path, head: str) -> Path:
    (folder / "README.md").write_text(f"---\n{head}\n---\n\n# A teacher\n", encoding="utf-8")
    return folder


def test_a_teachers_card_says_licence_and_languages(tmp_path: Path) -> None:
    terms = read_terms(card_of(tmp_path, "license: apache-2.0\nlanguage:\n- en\n- no\n- de"))
    assert (terms.license, terms.language) == ("apache-2.0", ("en", "no", "de"))


@pytest.mark.parametrize(
    ("head", "licence", "name", "link"),
    [
        ("license: MIT", "mit", None, None),
        (f"license: apache-2.0\nlicense_link: {LINK}", "apache-2.0", None, None),
        (f"license: other\nlicense_name: qwen-research\nlicense_link: {LINK}", "other", "qwen-research", LINK),
        (f"license: other\nlicense_name: NVIDIA Open Model License\nlicense_link: {LINK}", "other",
         "nvidia-open-model-license", LINK),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE", "other", "mine", "LICENSE"),
        ("license: other", None, None, None),
        (f"license: other\nlicense_link: {LINK}", None, None, None),
        ("license: other\nlicense_name: mine\nlicense_link: javascript:alert(1)", None, None, None),
        ("license: the-teachers-own", None, None, None),
        ("license: [mit, apache-2.0]", None, None, None),
        ("license:", None, None, None),
        ("tags: [a]", None, None, None),
    ],
)  # fmt: skip
def test_a_licence_is_taken_over_where_the_hub_would_take_it(
    tmp_path: Path, head: str, licence: str | None, name: str | None, link: str | None
) -> None:
    terms = read_terms(card_of(tmp_path, head))
    assert (terms.license, terms.license_name, terms.license_link) == (licence, name, link)


@pytest.mark.parametrize(
    "card",
    ["", "# no head", "---\nlicense: mit", "---\n- a\n---\n", "---\na: [\n---\n", "---\na: &a [*a]\n---\n",
     "---\nlicense: mit\nlicense: gemma\n---\n", "\x00"],
)  # fmt: skip
def test_a_card_without_a_head_that_can_be_read_says_nothing(tmp_path: Path, card: str) -> None:
    assert read_terms(tmp_path) == CardSettings()
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert read_terms(tmp_path) == CardSettings()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_terms(tmp_path) == CardSettings()


def test_languages_that_the_hub_refuses_are_left_out() -> None:
    said = {"language": ["en", "zh-CN", "English", "EN", 3, None, "code", "en"], "license": "mit"}
    assert fitting_terms(said) == CardSettings(license="mit", language=("en", "code"))
    assert fitting_terms({"language": "fr"}).language == ("fr",)
    assert fitting_terms("license: mit") == CardSettings()


def test_what_the_plan_says_counts_before_what_the_teachers_card_says() -> None:
    plan = CardSettings(license="other", license_name="mine", license_link=LINK)
    card = CardSettings(license="mit", language=("en",))
    assert plan.or_else(card) == plan.model_copy(update={"language": ("en",)})
    assert CardSettings(language=("de",)).or_else(card) == CardSettings(license="mit", language=("de",))


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"license": "Apache 2.0"}, r"'Apache 2\.0' is no licence .* knows; did you mean 'apache-2\.0'\? take"),
        ({"license": "mine"}, r"card\.license: 'mine' is no .* take one of https://\S+, or other with"),
        ({"license": "other"}, r"license=other says nothing by itself; name it with license_name and license_link"),
        ({"license": "mit", "license_name": "mit"}, r"are of license=other, and it is 'mit'"),
        ({"license": "other", "license_name": "My Own", "license_link": LINK}, r"card\.license_name"),
        ({"license": "other", "license_name": "mine", "license_link": "/home/ada/LICENSE"}, r"card\.license_link"),
        ({"language": ["English"]}, r"card\.language"),
    ],
)  # fmt: skip
def test_a_plan_says_it_as_the_hub_takes_it(card: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan({"teacher": "x", "sizes": [1], "data": "x", "card": card})


def test_a_plan_names_one_language_as_a_word() -> None:
    plan = make_plan({"teacher": "x", "sizes": [1], "data": "x", "card": {"license": "gemma", "language": "en"}})
    assert (plan.card.license, plan.card.language) == ("gemma", ("en",))
    assert {"apache-2.0", "mit", "gemma", "llama3.1", "other"} < LICENSES
