"""Rotation: one change of basis of the residual stream, after which the last channels matter least.

RMSNorm without its gain, n(x) = x / rms(x), commutes with any orthogonal change of basis. So the
gain of each norm is folded into the matrices that read it, and the stream is written in a basis Q
whose leading directions carry the most energy of n(x) over all norms and layers. Keeping those is
principal component analysis of the stream; the student is an ordinary model of its family.

- A matrix W that reads a norm of gain g becomes c W diag(g) Q. The constant c brings the root mean
  square of W diag(g) back to that of W, because optimizers such as Adam take steps of a size that
  does not depend on the weights'. What writes to the stream becomes Q^T W, embeddings E Q.
- A norm's gain becomes one number, sqrt(d f / d') / c: f is the share of the energy of its input that the kept
  directions hold, and d / d' makes up for the mean over fewer channels.
- Where embeddings are tied, the final gain g cannot be folded into the output head. But any basis of
  the kept directions U is as good as another: with U^T diag(g) U = R L R^T and Q = U R, the final
  gain is L, and E Q serves as input and output embedding.
- LayerNorm also subtracts the mean over channels and adds a bias b. One of the d' directions is
  given to the mean: Q spans d' - 1 directions and Q 1 = 0, so that the student's stream has no mean
  to subtract. The bias of a norm becomes t 1, which a matrix turns into W b when (W b) 1^T / (t d') is
  added to it: the rest of the norm's output is orthogonal to 1, so that nothing else changes.

Source: the invariance is that of SliceGPT (arXiv 2401.15024), which keeps a basis for each layer and
pays for it with a matrix on every residual connection; one basis for all layers needs none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.architecture.layout import HIDDEN, Layout, TensorPlace
from minitron_nas.architecture.spec import Architecture
from minitron_nas.pruning.mix import Digest
from minitron_nas.storage.weights import TensorHeader, float_rows, in_threads, row_blocks


def why_not_rotatable(layout: Layout, architecture: Architecture) -> str | None:
    """Say why rotating would change what a model computes, or None where it would not.

    Args:
        layout: The table of its family.
        architecture: Its shape; says whether embeddings are tied.
    """
    if not layout.stream_norms():
        return f"{layout.model_type} has no norms with gains, into whose readers a basis could be folded"
    if any(row.on_branch and row.exists(architecture) for row in layout.rows):
        return f"{layout.model_type} has norms on what layers add to the residual stream, which fix its basis"
    if layout.scales_embeddings:
        return f"{layout.model_type} multiplies embeddings by the square root of hidden_size, which rotation leaves out"
    if layout.norm_centres and architecture.tie_word_embeddings:
        return "LayerNorm's bias and mean cannot be moved out of embeddings that are also the output head"
    return None


def stream_norms(layout: Layout, architecture: Architecture) -> list[TensorPlace]:
    """Return the gains of all norms that read the residual stream, in the order of the table.

    Args:
        layout: The table of the family.
        architecture: The model's shape.
    """
    rows = layout.stream_norms()
    return [place for place in layout.tensors(architecture) if place.row in rows]


@dataclass(frozen=True, slots=True)
class HiddenBasis:
    """What a candidate's residual stream is written in.

    Attributes:
        matrix: (hidden_size, kept_hidden_size), float64: Q.
        gains: (num_norms,), float64: the constant gain of each norm, 1 for the final norm of tied models.
        readers: (num_norms, hidden_size), float64: c g of each norm, what is folded into its readers.
        biases: (num_norms, hidden_size) or None: the bias of each LayerNorm.
        levels: (num_norms,) or None: t of each LayerNorm.
        final_gain: (kept_hidden_size,) or None: the final gain of tied models.
    """

    matrix: Tensor
    gains: Tensor
    readers: Tensor
    biases: Tensor | None
    levels: Tensor | None
    final_gain: Tensor | None

    def turn(self, norm: int | None = None) -> "Turn":
        """Return the change of basis for what writes to the stream, or for what reads a norm."""
        return Turn(self, norm)


@dataclass(frozen=True, slots=True)
class Turn:
    """What mixes the hidden channels of one tensor.

    Attributes:
        basis: The candidate's.
        norm: The norm whose output the tensor reads; None where it writes to the stream.
    """

    basis: HiddenBasis
    norm: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """(hidden_size, kept_hidden_size)."""
        return tuple(self.basis.matrix.shape)

    def matrix(self) -> Tensor:
        """Return what the tensor is multiplied by, (hidden_size, kept_hidden_size), float64."""
        basis = self.basis
        if self.norm is None:
            return basis.matrix
        folded = basis.readers[self.norm][:, None] * basis.matrix
        if basis.biases is None or basis.levels is None:
            return folded
        return folded + basis.biases[self.norm][:, None] / (basis.levels[self.norm] * self.shape[1])

    def update(self, digest: Digest) -> None:
        """Feed a hash with the matrix."""
        digest.update(self.matrix().numpy().tobytes())


@dataclass(frozen=True, slots=True)
class Rotation:
    """Where the energy of a teacher's residual stream lies; serves every kept size.

    Attributes:
        basis: (hidden_size, hidden_size), float64; columns are directions, most energy first.
        energies: (num_norms, hidden_size), float64: the share of each norm's input that lies along
            each direction; rows sum to 1.
        gains: (num_norms, hidden_size), float64, as applied.
        biases: (num_norms, hidden_size), float64; 0 for a LayerNorm without one; no rows where norms are RMSNorms.
        balances: (num_norms,), float64: rms(W) / rms(W diag(gain)) over the matrices W that read it.
    """

    basis: Tensor
    energies: Tensor
    gains: Tensor
    biases: Tensor
    balances: Tensor

    @classmethod
    def of(
        cls,
        moments: Mapping[str, Tensor],
        headers: Mapping[str, TensorHeader],
        architecture: Architecture,
        layout: Layout,
    ) -> Self:
        """Find the directions of a teacher's stream, and read what has to be folded.

        Args:
            moments: What `second_moments` measured.
            headers: Where each tensor of the teacher lies, by the table's names.
            architecture: Its shape.
            layout: The table of its family.
        """
        norms = stream_norms(layout, architecture)
        total = sum(moments[place.name].double() for place in norms)
        size = architecture.hidden_size
        if layout.norm_centres:  # the mean comes last, also where the text leaves other directions without energy
            total = total - torch.full((size, size), float(len(norms)), dtype=torch.float64)
        basis = torch.linalg.eigh(total).eigenvectors.flip(1)
        energies = torch.stack([(basis * (moments[place.name].double() @ basis)).sum(dim=0) / size for place in norms])
        gains = torch.stack([_vector(headers[place.name]) + layout.norm_offset for place in norms])
        own = {row.module: row for row in layout.rows if layout.norm_of_bias(row) is not None}
        biases = [_vector(headers[own[p.row.module].name.format(layer=p.layer)]) for p in norms if p.row.module in own]
        num_biases = len(norms) if layout.norm_centres else 0
        return cls(
            basis,
            energies / energies.sum(dim=1, keepdim=True),
            gains,
            torch.stack(biases) if biases else torch.zeros(num_biases, size, dtype=torch.float64),
            _balances(norms, gains, headers, architecture, layout),
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_file(path))

    def at(self, hidden_size: int, tied: bool) -> HiddenBasis:
        """Return the basis of a candidate.

        Args:
            hidden_size: How many channels it keeps; at most the teacher's.
            tied: Whether its output head is its embedding.
        """
        full = len(self.basis)
        centred = len(self.biases) > 0
        num_directions = hidden_size - 1 if centred else hidden_size
        matrix = self.basis[:, :num_directions]
        final_gain = None
        if centred:
            matrix = matrix @ _without_mean(hidden_size)
        kept = self.energies[:, :num_directions].sum(dim=1)
        gains = (kept * full / hidden_size).sqrt() / self.balances
        readers = self.balances[:, None] * self.gains
        if tied:
            values, turn = torch.linalg.eigh(matrix.T @ (self.gains[-1][:, None] * matrix))
            matrix = matrix @ turn
            final_gain = values * (kept[-1] * full / hidden_size).sqrt()
        if not centred:
            return HiddenBasis(matrix, gains, readers, None, None, final_gain)
        levels = self.biases.square().mean(dim=1).sqrt()
        return HiddenBasis(matrix, gains, readers, self.biases, levels.where(levels > 0, 1), final_gain)


def _vector(header: TensorHeader) -> Tensor:
    return torch.from_numpy(float_rows(header, 0, header.shape[0])).double()


def _balances(
    norms: list[TensorPlace],
    gains: Tensor,
    headers: Mapping[str, TensorHeader],
    architecture: Architecture,
    layout: Layout,
) -> Tensor:
    """rms(W) / rms(W diag(gain)) over the matrices W that read each norm; 1 where none does."""
    numbers = {place.name: number for number, place in enumerate(norms)}
    places = [place for place in layout.tensors(architecture) if layout.reads_hidden(place.row)]
    squares = torch.zeros_like(gains)

    def read(place: TensorPlace) -> Tensor:
        along = place.row.dims.index(HIDDEN)
        total = torch.zeros(architecture.hidden_size, dtype=torch.float64)
        for first, last in row_blocks(headers[place.name]):
            block = torch.from_numpy(float_rows(headers[place.name], first, last)).square()
            if along == 0:
                total[first:last] += block.sum(dim=1, dtype=torch.float64)
            else:
                total += block.sum(dim=0, dtype=torch.float64)
        return total

    for place, energy in zip(places, in_threads(read, places), strict=True):
        norm = layout.norm_before(place.row)
        if norm is not None:
            squares[numbers[norm.name.format(layer=place.layer)]] += energy
    before, after = squares.sum(dim=1), (squares * gains.square()).sum(dim=1)
    return torch.where(after > 0, before / after.where(after > 0, 1), 1).sqrt()


def _without_mean(size: int) -> Tensor:
    """Return orthonormal rows, (size - 1, size), each of which sums to zero: a reflection of the unit vectors."""
    mirror = torch.full((size,), size**-0.5, dtype=torch.float64)
    mirror[-1] -= 1
    mirror /= mirror.norm()
    return (torch.eye(size, dtype=torch.float64) - 2 * torch.outer(mirror, mirror))[:-1]
