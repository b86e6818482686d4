"""From the trained candidates of a size to its members: points of the front, and which of them comes first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minitron_nas.search.pareto import spread_front
from minitron_nas.search.rungs import Standing
from minitron_nas.search.settings import First


@dataclass(frozen=True, slots=True)
class Choice:
    """How many candidates become members of a size, and which.

    Attributes:
        num_members: How many; fewer where fewer were trained to the end.
        first: Which point of the front comes first.
        costs: What is weighed beside KL, by candidate id; without it there is KL alone.
        by_front: Whether trials go on by the front that they are on, and not by KL alone.
    """

    num_members: int = 1
    first: First = "kl"
    costs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    by_front: bool = False

    def ranked(self, standings: Sequence[Standing]) -> list[Standing]:
        """Return trials in the order in which they go on.

        By KL; or, by fronts, those on the front of all, then those on the front of the others, and so on
        (Goldberg 1989, non-dominated sorting), each front as `members` takes it.

        Args:
            standings: By KL.
        """
        if not self.by_front:
            return list(standings)
        left, ranked = list(standings), list[Standing]()
        while left:
            front = self._front(left)
            ranked += front
            left = [standing for standing in left if standing not in front]
        return ranked

    def members(self, standings: Sequence[Standing]) -> list[str]:
        """Return the ids of the members, the first one first.

        The others are points of the front, each the farthest from those before it, every objective scaled to its range;
        where the front has too few, what has the lowest KL.

        Args:
            standings: Trials of the last rung, by KL; at least one.
        """
        front = self._front(standings)
        chosen = [*front, *(standing for standing in standings if standing not in front)]
        return [standing.candidate for standing in chosen[: self.num_members]]

    def _front(self, standings: Sequence[Standing]) -> list[Standing]:
        """Return the front of some trials, by KL, in the order in which they become members."""
        points = np.array([(each.kl_nats, *self.costs.get(each.candidate, ())) for each in standings])
        return [standings[place] for place in spread_front(points, knee=self.first == "knee")]
