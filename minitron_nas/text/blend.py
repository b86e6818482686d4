"""`Blend`: from which source the next document comes, so that each source has its share of the tokens."""

from collections.abc import Iterator, Sequence

Place = tuple[int, int]
"""A source and one of its documents, both counted from 0."""


class Blend:
    """Documents of several sources, mixed by tokens.

    The next document always comes from the source that is furthest behind its share of the tokens so
    far; the first of them where several are. After any number of documents a source is thus within one of
    the longest documents of its share, which choosing by documents (as `datasets.interleave_datasets`
    does) is not: documents of one source may be a hundred times as long as those of another.
    """

    def __init__(self, lengths: Sequence[Sequence[int]], shares: Sequence[float]) -> None:
        """Begin at the first document of each source.

        Args:
            lengths: Tokens of each source's documents.
            shares: One of each source; they add up to 1.
        """
        self._lengths, self._shares = lengths, shares
        self._next = [0] * len(lengths)
        self.dry: int | None = None
        """The source that had no document left when one was due."""

    def take(self, num_tokens: int, limit: int) -> list[Place]:
        """Take documents that are not taken yet, until they have enough tokens or a source is dry.

        Args:
            num_tokens: Enough tokens.
            limit: Tokens of a document beyond the limit do not count.
        """
        taken = [0] * len(self._lengths)
        places: list[Place] = []
        while sum(taken) < num_tokens and (place := self._due(taken)) is not None:
            source, document = place
            taken[source] += min(self._lengths[source][document], limit)
            places.append(place)
        return places

    def rest(self, num_tokens: int, passes: int) -> Iterator[Place]:
        """Yield the documents that are left, until they have enough tokens or a source is dry.

        Args:
            num_tokens: Enough tokens.
            passes: How often the documents of a source may come.
        """
        taken = [0] * len(self._lengths)
        begin, left = list(self._next), [passes - 1] * len(self._lengths)
        while sum(taken) < num_tokens:
            place = self._due(taken)
            if place is None:
                source = self.dry
                assert source is not None
                if not left[source] or begin[source] == self._next[source]:
                    return
                left[source], self._next[source], self.dry = left[source] - 1, begin[source], None
                continue
            source, document = place
            taken[source] += self._lengths[source][document]
            yield place

    def _due(self, taken: Sequence[int]) -> Place | None:
        source = min(range(len(taken)), key=lambda number: taken[number] / self._shares[number])
        document = self._next[source]
        if document == len(self._lengths[source]):
            self.dry = source
            return None
        self._next[source] += 1
        return source, document
