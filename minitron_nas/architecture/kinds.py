"""Kinds of layers: how configs tell them, and how many of each a model of fewer layers keeps.

Which layers leave is measured, but what a shape costs must follow from its sizes alone. So the number of
layers decides how many of each kind there are: every kind gives up layers by its share, and the last
of a kind leaves last. Which of a kind leave is a matter of their scores.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

from minitron_nas.errors import InvalidArchitectureError


class KindsInConfig(Protocol):
    """One way in which a `config.json` tells of what kind each layer is."""

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return how many layers there are, where that can be told without `num_hidden_layers`."""

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the kind of each layer.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.
        """

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return what a config says of a model of these layers."""


GIVING, SHARING = "giving", "sharing"
"""Words of kinds: of layers whose keys and values others read, and of those that have none of their own."""


def gives(kind: str) -> bool:
    """Whether other layers read the keys and values of layers of a kind.

    Args:
        kind: Of the layers.
    """
    return GIVING in kind.split()


def shares(kind: str) -> bool:
    """Whether layers of a kind have no keys and values of their own, and read those of another layer.

    Args:
        kind: Of the layers.
    """
    return SHARING in kind.split()


def first_word(kind: str) -> str:
    """Return the first word of a kind, which says how its layers attend where there are several (`Paired`).

    Args:
        kind: Of a layer.
    """
    return kind.partition(" ")[0]


def is_of(kind: str, first: str) -> bool:
    """Whether a kind is a word, or that word and another one.

    Args:
        kind: Of a layer, one word or two (`Paired`).
        first: The word.
    """
    return first_word(kind) == first


@dataclass(frozen=True, slots=True)
class Listed:
    """A list with one word for each layer: its kind.

    Attributes:
        key: Of the list in `config.json`.
    """

    key: str

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return the length of the list, if it is there."""
        return len(config[self.key]) if config.get(self.key) else None

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the list.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.

        Raises:
            InvalidArchitectureError: If it is missing, or does not have one word for each layer.
        """
        words = config.get(self.key)
        if not isinstance(words, list | tuple) or len(words) != num_layers:
            raise InvalidArchitectureError(
                f"{self.key}={words!r} must list the kinds of {num_layers} layers, one word for each; give the config "
                "as transformers fills it in"
            )
        return tuple(words)

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return the list for these layers."""
        return {self.key: list(kinds)}


@dataclass(frozen=True, slots=True)
class FirstLayers:
    """The number of the first layers, which are of one kind; all others are of another.

    Attributes:
        key: Of the number in `config.json`.
        first: The kind of the first layers.
        others: The kind of all others.
        last: The key of the index of the last of all others, behind which there must be none; none where no config
            tells it.
    """

    key: str
    first: str
    others: str
    last: str = ""

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return nothing: the number of all layers does not follow."""

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return as many first layers as the config says, and the others.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.

        Raises:
            InvalidArchitectureError: If the number is missing, or layers follow behind the last of all others.
        """
        if self.last and config.get(self.last, -1) not in (-1, num_layers - 1):
            raise InvalidArchitectureError(
                f"{self.last}={config[self.last]!r} must be the last of the {num_layers} layers, {num_layers - 1}, or "
                f"-1: layers of kind {self.first!r} are described before those of kind {self.others!r} alone"
            )
        count = config.get(self.key)
        if not isinstance(count, int):
            raise InvalidArchitectureError(
                f"{self.key}={count!r} must say how many of the {num_layers} layers are of kind {self.first!r}; give "
                "the config as transformers fills it in"
            )
        return tuple(self.first if layer < count else self.others for layer in range(num_layers))

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return their number; layers stay in their order, so that the first stay first."""
        last = {self.last: len(kinds) - 1} if self.last else {}
        return {self.key: list(kinds).count(self.first), **last}


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """The number of the last layers, which have no keys and values of their own; all others have theirs.

    Each of them reads what the last layer before them computes that attends as it does. That layer is a kind of its
    own, of which there is no other, so that it stays as long as one that reads from it, whatever its score: kinds of
    one layer go into a model first, and of equal ones that whose word comes first.

    Attributes:
        key: Of the number in `config.json`.
        attention: Tells which layers attend alike.
        beside: The key of how many channels embeddings of single layers have, without which stock transformers does not
            run such layers.
    """

    key: str
    attention: KindsInConfig
    beside: str

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return nothing: the number of all layers does not follow."""

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the word of layers that read from others, of those that they read from, and the empty word.

        Where all layers read from others, these are of another model, as those of a layer are that runs alone.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.

        Raises:
            InvalidArchitectureError: If no layer is left for one of them to read from, or layers have no embeddings.
        """
        count = config.get(self.key) or 0
        if not isinstance(count, int) or not 0 <= count <= num_layers:
            raise InvalidArchitectureError(
                f"{self.key}={count!r} must say how many of the last layers read the keys and values of layers before "
                f"them, at most all of the {num_layers} layers"
            )
        if count == num_layers:
            return (SHARING,) * num_layers
        first = num_layers - count
        attend = self.attention.read(config, num_layers)
        words = ["" if layer < first else SHARING for layer in range(num_layers)]
        for kind in set(attend[first:]):
            if kind not in attend[:first]:
                raise InvalidArchitectureError(
                    f"{self.key}={count} leaves no layer of kind {kind!r} whose keys and values those of the last "
                    f"{count} layers could read; it must be at most {num_layers - 1 - attend.index(kind)}"
                )
            words[max(layer for layer in range(first) if attend[layer] == kind)] = GIVING
        if count and not config.get(self.beside):
            raise InvalidArchitectureError(
                f"{self.key}={count} with {self.beside}={config.get(self.beside)!r}: transformers runs layers that "
                f"read the keys and values of others only where every layer has embeddings of its own; {self.beside} "
                f"must be at least 1, or {self.key} 0"
            )
        return tuple(words)

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return their number; layers stay in their order, so that the last stay last."""
        return {self.key: list(kinds).count(SHARING)}


@dataclass(frozen=True, slots=True)
class Indexed:
    """A list of the numbers of the layers that are of one kind; all others are of another.

    Attributes:
        key: Of the list in `config.json`.
        listed: The kind of the layers that it names.
        others: The kind of all others.
    """

    key: str
    listed: str
    others: str

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return nothing: the number of all layers does not follow."""

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the one kind for layers that the list names, and the other for those that it does not.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.

        Raises:
            InvalidArchitectureError: If the list is missing.
        """
        numbers = config.get(self.key)
        if not isinstance(numbers, list | tuple):
            raise InvalidArchitectureError(
                f"{self.key}={numbers!r} must list which of the {num_layers} layers are of kind {self.listed!r}; give "
                "the config as transformers fills it in"
            )
        return tuple(self.listed if layer in numbers else self.others for layer in range(num_layers))

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return the numbers of these layers that are of the one kind."""
        return {self.key: [layer for layer, kind in enumerate(kinds) if kind == self.listed]}


@dataclass(frozen=True, slots=True)
class AllOrNone:
    """A number by which all layers have something, or none has; one of the two words may be empty.

    Attributes:
        key: Of the number in `config.json`; 0 or null where no layer has it.
        having: The kind of layers that have it.
        lacking: The kind of those that do not.
    """

    key: str
    having: str = ""
    lacking: str = ""

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return nothing: the number of all layers does not follow."""

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the same word for every layer.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.
        """
        return (self.having if config.get(self.key) else self.lacking,) * num_layers

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return nothing: the number is a size, and is written as one."""
        return {}


def may_lack(kinds: KindsInConfig | None) -> frozenset[str]:
    """Return the keys of numbers that are 0 where no layer has something.

    Args:
        kinds: How configs of a family tell of kinds; None where all layers are alike.
    """
    if isinstance(kinds, Paired):
        return may_lack(kinds.first) | may_lack(kinds.second)
    return frozenset({kinds.key} if isinstance(kinds, AllOrNone) else ())


@dataclass(frozen=True, slots=True)
class Paired:
    """Two of these ways at once, each of which tells of another part of a layer; a kind is the words of both.

    Where one has the empty word, the kind is the other's alone: `full_attention` beside `full_attention dense`. The
    first may have it only if it counts a word of its own, as `SharedKeys` does, so that it takes none for another.

    Attributes:
        first: Tells of the first part.
        second: Tells of the second.
    """

    first: KindsInConfig
    second: KindsInConfig

    def count(self, config: Mapping[str, Any]) -> int | None:
        """Return how many layers there are, if either tells it."""
        return self.first.count(config) or self.second.count(config)

    def read(self, config: Mapping[str, Any], num_layers: int) -> tuple[str, ...]:
        """Return the words of each layer.

        Args:
            config: The content, with all that transformers fills in.
            num_layers: How many layers there are.

        Raises:
            InvalidArchitectureError: As the two say.
        """
        words = zip(self.first.read(config, num_layers), self.second.read(config, num_layers), strict=True)
        return tuple(" ".join(filter(None, pair)) for pair in words)

    def written(self, kinds: Sequence[str]) -> dict[str, Any]:
        """Return what both say of a model of these layers."""
        pairs = [kind.partition(" ") for kind in kinds]
        return {
            **self.first.written([first for first, _, _ in pairs]),
            **self.second.written([second for _, _, second in pairs]),
        }


def without_keys(kinds: Sequence[str]) -> list[str]:
    """Return how layers attend whose keys and values none of a model's layers computes any more; none if all is well.

    Args:
        kinds: Of the model's layers, as they are in the source, where one layer gives keys to all that attend alike.
    """
    given = {first_word(kind) for kind in kinds if gives(kind)}
    return sorted({first_word(kind) for kind in kinds if shares(kind)} - given)


def kept_of_each_kind(kinds: Sequence[str], num_kept: int) -> Counter[str]:
    """Return how many layers of each kind a model of fewer layers keeps.

    Of a kind with c layers the i-th to go in counts as i / c, and the models of n layers have the n that count
    least: the shares of the source as nearly as whole layers allow, at least one of each kind where n allows it, and
    never fewer of a kind in a deeper model. Of equal ones the rarer kind goes in first.

    Args:
        kinds: Of the source's layers, in order.
        num_kept: Layers of the model.

    Source: the divisor method of Adams for sharing out seats.
    """
    return Counter(_joining(tuple(kinds))[:num_kept])


def fewest_layers(kinds: Sequence[str], kept: set[int]) -> int:
    """Return the fewest layers of a model in which there is room for some that have to stay.

    Args:
        kinds: Of the source's layers, in order.
        kept: Indices of layers.
    """
    needed = Counter(kinds[layer] for layer in kept)
    return next(count for count in range(len(kinds) + 1) if needed <= kept_of_each_kind(kinds, count))


def best_of_each_kind(kinds: Sequence[str], ranking: Sequence[int], num_kept: int) -> tuple[int, ...]:
    """Return the ascending indices of the layers that a model of fewer layers keeps.

    Args:
        kinds: Of the source's layers, in order.
        ranking: All layers, the most important first.
        num_kept: Layers of the model.
    """
    room = kept_of_each_kind(kinds, num_kept)
    kept = []
    for layer in ranking:
        if room[kinds[layer]]:
            room[kinds[layer]] -= 1
            kept.append(layer)
    return tuple(sorted(kept))


@lru_cache(maxsize=64)
def _joining(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of layers in the order in which deeper models have them."""
    places = [
        (Fraction(number, count), count, kind) for kind, count in Counter(kinds).items() for number in range(count)
    ]
    return tuple(kind for *_, kind in sorted(places))
