"""`CardSettings`: licence and languages of students, as the plan says them or the teacher's own card does."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from minitron_nas.settings import Settings
from minitron_nas.storage.front_matter import front_matter
from minitron_nas.storage.plain_yaml import load_yaml

LICENSES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5",
    "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl",
    "apple-amlr", "mpl-2.0", "odc-by", "odbl", "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1",
    "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license",
    "fair-noncommercial-research-license", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "grok2-community", "gemma", "unknown", "other",
})  # fmt: skip
"""Identifiers that the hub takes; with any other it refuses a card."""

_LIST = "https://huggingface.co/docs/hub/repositories-licenses"
_OTHER = "other"
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
_NO_NAME = re.compile(r"[^a-z0-9._-]+")

Language = Annotated[str, Field(pattern=f"^({_LANGUAGE.pattern})$")]


class CardSettings(Settings):
    """What model cards tell the hub of the students; what is not said here is taken from the teacher's own card.

    Attributes:
        license: The teacher's licence, as the hub calls it, such as apache-2.0; `other` if the hub has no name for it.
            A teacher's own card is the README.md of its folder, which GGUF files and wheels lack.
        license_name: What another licence is called, in lower case, such as my-license-1.0.
        license_link: Where it is read: a URL, or LICENSE for the file that goes with the model.
        language: Languages by their ISO 639 codes, such as en, or `code`, or `multilingual`.
    """

    license: str | None = None
    license_name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")] | None = None
    license_link: Annotated[str, Field(pattern=r"^(https?://[!-~]+|LICENSE(\.md)?)$")] | None = None
    language: tuple[Language, ...] = ()

    @field_validator("license")
    @classmethod
    def _known_to_the_hub(cls, value: str | None) -> str | None:
        if value is None or value in LICENSES:
            return value
        near = difflib.get_close_matches(value.lower().replace(" ", "-"), LICENSES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{value!r} is no licence that the hub knows; {hint}take one of {_LIST}, or {_OTHER} with license_name and "
            "license_link"
        )

    @model_validator(mode="after")
    def _named_where_it_is_another(self) -> Self:
        told = [value is not None for value in (self.license_name, self.license_link)]
        if self.license == _OTHER and not all(told):
            raise ValueError(f"license={_OTHER} says nothing by itself; name it with license_name and license_link")
        if self.license != _OTHER and any(told):
            raise ValueError(f"license_name and license_link are of license={_OTHER}, and it is {self.license!r}")
        return self

    def or_else(self, others: Self) -> Self:
        """Return these, with what they leave open as others say it.

        Args:
            others: What counts where these say nothing.
        """
        licensed = self if self.license is not None else others
        return licensed.model_copy(update={"language": self.language or others.language})


def read_terms(folder: Path) -> CardSettings:
    """Return what a model's own card says, as far as the hub would take it; nothing where it has none.

    Args:
        folder: The model's.
    """
    try:
        return fitting_terms(load_yaml(front_matter(folder)))
    except ValueError:
        return CardSettings()


def fitting_terms(said: object) -> CardSettings:
    """Return what of the head of a card the hub would take: nothing is guessed of the rest.

    Args:
        said: The head of a card, or what was kept of one.
    """
    if not isinstance(said, Mapping):
        return CardSettings()
    language = tuple(dict.fromkeys(_languages(said.get("language"))))
    try:
        return CardSettings(language=language, **_licence(said))
    except ValidationError:
        return CardSettings(language=language)


def _licence(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return a licence; published cards link to those that have a name, too, and give others names with spaces."""
    name = str(said.get("license") or "").strip().lower()
    if not name:
        return {}
    if name != _OTHER:
        return {"license": name}
    called = _NO_NAME.sub("-", str(said.get("license_name") or "").lower()).strip("-._")
    return {"license": name, "license_name": called, "license_link": said.get("license_link")}


def _languages(said: object) -> Iterator[str]:
    for each in said if isinstance(said, list | tuple) else [said]:
        code = "no" if each is False else each  # which YAML takes for a truth value
        if isinstance(code, str) and _LANGUAGE.fullmatch(code):
            yield code
