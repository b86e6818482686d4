"""Whether a student and a teacher speak of the same tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from transformers import AutoTokenizer

from minitron_nas.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the ids of a model mean; its matrices may have more rows, which are padding.

    Attributes:
        name: The model's name, for messages.
        ids: The id of each token.
    """

    name: str
    ids: dict[str, int]

    @classmethod
    def of(cls, folder: Path, name: str) -> Self:
        """Read the tokenizer of a stock folder.

        Args:
            folder: The folder.
            name: The model's, for messages.
        """
        return cls(name, AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab())

    def require_same(self, teacher: Self) -> None:
        """Refuse a teacher whose ids mean something else.

        How text is cut into tokens does not matter: the teacher's tokenizer does it for both.

        Args:
            teacher: Its vocabulary.

        Raises:
            CheckpointError: If a token of one is missing or has another id in the other.
        """
        different = self.ids.items() ^ teacher.ids.items()
        if different:
            token = min(different, key=lambda item: (item[1], item[0]))[0]
            mine, other = (_place_of(token, side) for side in (self, teacher))
            raise CheckpointError(
                f"the student {self.name} ({len(self.ids)} tokens) and the teacher {teacher.name} ({len(teacher.ids)} "
                f"tokens) have different tokenizers: {token!r} is {mine} and {other}; logits can be compared only "
                "where every id means the same, so choose a teacher of the student's own family, or prune the student "
                "from this teacher"
            )


def _place_of(token: str, vocabulary: Vocabulary) -> str:
    number = vocabulary.ids.get(token)
    return f"unknown to {vocabulary.name}" if number is None else f"id {number} in {vocabulary.name}"
