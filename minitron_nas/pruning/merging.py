"""Head-residual merging: heads that stay take over something of heads that leave.

Of the heads of a group, ranked best first, L become K. The worst of those that stay are each paired with
one that leaves, the worst kept with the best cut and so on outwards:

    head_i <- head_i + (head_i - head_(2K - i + 1)),    i = max(1, 2K - L + 1) ... K

The head is its rows of the query projection, with their bias: keys and values belong to the group, and the
output projection is left to the repair. Where whole groups leave nothing is merged.

Source: Muralidharan et al. 2024 (arXiv 2407.14679), section 2.3, which prints the range as K - (L - K) ... K
(its first entry would be paired with head L + 1) and does not say which tensors a head is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minitron_nas.pruning.mix import Digest


def merge_partners(ranking: Tensor, num_kept: int) -> Tensor:
    """Return which head that leaves each head that stays is merged with.

    Args:
        ranking: (num_groups, heads_per_group), places of a group's heads, best first.
        num_kept: Heads of a group that stay.

    Returns:
        (num_groups, num_kept), in ascending order of the places that stay; -1 where a head is merged with none.
    """
    num_heads = ranking.shape[-1]
    ranks = torch.arange(1, num_kept + 1)
    partner_ranks = 2 * num_kept - ranks + 1
    merged = partner_ranks <= num_heads
    partners = ranking[:, (partner_ranks - 1).clamp(max=num_heads - 1)].where(merged, -1)
    order = torch.argsort(ranking[:, :num_kept], dim=-1)
    return partners.gather(-1, order)


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """What merges the rows of query heads: a `Mix`.

    Attributes:
        kept: (num_kept,), the ascending indices of the rows that stay.
        partners: (num_kept,), the rows that are merged with them; -1 for none.
        size: How many rows the teacher's tensor has.
    """

    kept: Tensor
    partners: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, num_kept)."""
        return self.size, len(self.kept)

    def matrix(self) -> Tensor:
        """Return the map, (size, num_kept), float64: 2 at what stays and -1 at its partner, or 1 alone."""
        columns, merged = torch.arange(len(self.kept)), self.partners >= 0
        matrix = torch.zeros(self.shape, dtype=torch.float64)
        matrix[self.kept, columns] = torch.where(merged, 2.0, 1.0).double()
        matrix[self.partners[merged], columns[merged]] = -1.0
        return matrix

    def update(self, digest: Digest) -> None:
        """Feed a hash with what decides the map."""
        digest.update(self.kept.numpy().tobytes() + self.partners.numpy().tobytes())
