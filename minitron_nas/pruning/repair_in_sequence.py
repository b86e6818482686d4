"""Repair in sequence: each layer of a student makes up for what all layers before it do differently.

Teacher and student read the same text side by side, one layer in memory at a time. At each layer,
every matrix of the student is refitted by ridge regression on what the student itself computes so far:

- What reads a norm. With h and h' the norm's output in teacher and student, W the teacher's matrix and
  V the student's, V becomes the minimum of E|W h - V h'|^2. Where there is no norm, h and h' are the streams.
- What writes to the residual stream. With x the teacher's stream behind it, x' the student's before it, z' what the
  student's projection reads and Q the basis of the student's stream, V becomes the minimum of
  E|Q^T x - x' - V z'|^2. So a layer does not repeat what the teacher's layer adds, but adds what is missing by now.
- Where a norm of gain g acts on what is written: with m = Q^T x - x' what is missing and u what the projection puts
  out so far, V becomes the minimum of E|m / g - V z' / rms(u)|^2, and then each entry of g that of E|m - g n|^2, with
  n = V z' / rms(V z').
- Where layers were dropped, x behind a layer's FFN is the stream that the next layer that stays reads.

So that the matrices suit tokens that the text lacks or has only few of, and text unlike it, some of its tokens are
replaced with random ones; teacher and student read the same.

All penalties pull towards the student that `cuts` gives. The embedding, norms that read the stream, biases and the
matrices of experts that write to the stream stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

from minitron_nas.architecture.layout import HIDDEN, Axis, Layout, TensorPlace, TensorRow, axis_sizes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import MachineError
from minitron_nas.execution.device import available_bytes, pick_device, release_memory, trim_memory
from minitron_nas.importance.hidden_states import HiddenStates
from minitron_nas.importance.layered_model import LayeredModel
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.layer_model import input_of, run_layer, states_of
from minitron_nas.models.stock import DTYPES
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.parts import Cut, entries, whole
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.repair import Regression, regression_bytes, ridge_gain
from minitron_nas.pruning.settings import SequenceSettings
from minitron_nas.pruning.student import basis_of, cuts, student_config
from minitron_nas.settings import about_bytes
from minitron_nas.storage.weights import TensorHeader, file_headers
from minitron_nas.text.tokens import PackedTokens

_MEMORY_FRACTION = 1 / 16
"""Of the available memory, for each of up to seven sets of hidden states."""

_LEAST_GAIN = 0.1
"""Of the root mean square of a norm's gain: no entry of what is missing is divided by less."""

_DEFAULTS = SequenceSettings()


def why_not_in_sequence(layout: Layout, source: Architecture, target: Architecture) -> str | None:
    """Say why the layers of a student are not refitted one after the other, or None where they are.

    Args:
        layout: The table of the family.
        source: The teacher's shape.
        target: The student's.
    """
    if {name for name, size in target.sizes().items() if size < source.sizes()[name]} == {"num_attention_heads"}:
        return "only query heads leave, which one pass makes up for better"
    return why_never_in_sequence(layout, source)


def why_never_in_sequence(layout: Layout, source: Architecture) -> str | None:
    """Say why no student of a teacher can be refitted layer after layer, or None where all can.

    Args:
        layout: The table of the family.
        source: The teacher's shape.
    """
    if len(set(source.kinds)) > 1:
        return f"layers of this {layout.model_type} are of several kinds"
    own = _table_of_layers(layout, source)
    if not {Axis.GROUP_HEADS, own.neuron_axis} <= own.axes():
        return f"layers of this {layout.model_type} are not attention with heads that can leave and an FFN"
    if own.other_writers():
        return f"layers of {layout.model_type} add more to the residual stream than attention and FFN"
    if len([row for row in own.stream_norms() if row.per_layer]) == 1:
        return f"attention and FFN of {layout.model_type} read the residual stream through one norm"
    block = own.module_of(own.writer(own.neuron_axis)).rpartition(".")[0]
    beside = not all(own.module_of(own.writer(axis)).startswith(f"{block}.") for axis in own.neuron_axes)
    if beside or block == own.layer_module:
        return f"the FFN of {layout.model_type} is no module of its own"
    return None


def _table_of_layers(layout: Layout, source: Architecture) -> Layout:
    """Return the table with those rows alone that layers of a model have, all of which are alike."""
    return replace(layout, rows=tuple(row for row in layout.rows if row.in_kind(source.kinds[0])))


@dataclass(frozen=True, slots=True)
class _Block:
    """Attention or FFN: what reads the residual stream, and what writes to it.

    Attributes:
        norm: Through which it reads the stream; None where it reads the stream itself.
        readers: The matrices that read.
        writer: The output projection.
    """

    norm: TensorRow | None
    readers: tuple[TensorRow, ...]
    writer: TensorRow

    @classmethod
    def both(cls, layout: Layout) -> "tuple[_Block, _Block]":
        """Return attention and FFN of a family whose layers have no others."""
        norms: list[TensorRow | None] = [row for row in layout.stream_norms() if row.per_layer] or [None, None]
        attention, ffn = layout.writer(Axis.GROUP_HEADS), layout.writer(layout.neuron_axis)
        readers = [row for row in layout.rows if row.per_layer and layout.reads_hidden(row)]
        border = layout.rows.index(attention)
        above = tuple(row for row in readers if layout.rows.index(row) < border)
        below = tuple(row for row in readers if layout.rows.index(row) > border)
        return cls(norms[0], above, attention), cls(norms[1], below, ffn)


@torch.no_grad()
def repair_in_sequence(
    prepared: PreparedTeacher,
    target: Architecture,
    calibration: PackedTokens,
    folder: Path,
    settings: SequenceSettings = _DEFAULTS,
    progress: Progress = silent,
) -> dict[str, TensorHeader]:
    """Refit the matrices of a student's layers on text, one layer after the other.

    Args:
        prepared: The teacher.
        target: The student's shape.
        calibration: The text.
        folder: Gets the refitted matrices, a file for each layer, and hidden states that memory is too small for.
        settings: Strength of the penalty, and how the text is read.
        progress: Told about tokens, counted once for every layer of the teacher.

    Returns:
        Where each refitted tensor of the student lies, by name; for `cuts`.

    Raises:
        DiskSpaceError: If neither memory nor disk can hold the hidden states of the text.
        MachineError: If memory cannot hold what the widest matrix is refitted with.
    """
    _require_memory(prepared, target)
    folder.mkdir(parents=True, exist_ok=True)
    text = calibration.with_random_tokens(settings.random_tokens, prepared.architecture.vocab_size)
    with ExitStack() as stack:
        return _Sequence(prepared, target, text, folder, settings, progress, stack).run()


def _require_memory(prepared: PreparedTeacher, target: Architecture) -> None:
    device = pick_device()
    layout = _table_of_layers(prepared.layout, prepared.architecture)
    attention, ffn = (_width(layout, block.writer, target) for block in _Block.both(layout))
    widest = max(target.hidden_size, attention, 0 if target.num_experts else ffn)
    needed, there = regression_bytes(widest), available_bytes(device)
    if needed > there:
        raise MachineError(
            f"a repair layer after layer takes {about_bytes(needed)} for a matrix of {widest} inputs, and {device} has "
            f"{about_bytes(there)} left; give it more memory, or leave the repair out with repair=none"
        )


def _width(layout: Layout, writer: TensorRow, target: Architecture) -> int:
    """How many numbers an output projection of a student reads."""
    return int(layout.input_dim(writer).size(axis_sizes(target)))


class _Sequence:
    """Teacher and student between two layers.

    Of the text's hidden states, `_teacher` and `_student` are what the next layers read; `_middle` is the teacher's
    stream behind its attention, `_after` behind the layer and those after it that are dropped, `_between` the
    student's behind its attention; `_attended` and `_activated` are what the student's output projections read.
    """

    def __init__(
        self,
        prepared: PreparedTeacher,
        target: Architecture,
        text: PackedTokens,
        folder: Path,
        settings: SequenceSettings,
        progress: Progress,
        stack: ExitStack,
    ) -> None:
        self._prepared, self._target, self._text = prepared, target, text
        self._layout, self._source = prepared.layout, prepared.architecture
        self._rows = _table_of_layers(self._layout, self._source)
        self._attention, self._ffn = _Block.both(self._rows)
        self._folder, self._settings, self._progress = folder, settings, progress
        self._parts = {part.name: part for part in cuts(prepared, target)}
        self._whole = LayeredModel.of_files(prepared.headers, prepared.config, self._source, self._layout)
        config = student_config(prepared, target)
        self._epsilon = float(config.get(self._layout.epsilon, 0.0))
        self._pruned = LayeredModel(
            self._read_refitted,
            lambda name, rows: entries(self._parts[name], rows),
            config,
            target,
            self._layout,
            self._whole.device,
        )
        self._device = self._whole.device
        self._scale = float(prepared.config.get("residual_multiplier", 1.0))
        self._tokens_done = 0
        self._refitted: dict[str, Tensor] = {}
        self._matrix = self._stream_basis()

        def states(width: int) -> HiddenStates:
            shape = (*text.input_ids.shape, width)
            return stack.enter_context(HiddenStates.make(shape, self._whole.dtype, folder, _MEMORY_FRACTION))

        self._teacher, self._middle, self._after = (states(self._source.hidden_size) for _ in range(3))
        self._student, self._between = (states(target.hidden_size) for _ in range(2))
        self._attended = states(_width(self._rows, self._attention.writer, target))
        self._activated = None if self._source.num_experts else states(_width(self._rows, self._ffn.writer, target))

    def run(self) -> dict[str, TensorHeader]:
        headers: dict[str, TensorHeader] = {}
        kept = self._prepared.order.kept_layers(self._target.num_hidden_layers)
        for model, states in ((self._whole, self._teacher), (self._pruned, self._student)):
            model.embed(self._text, states, self._settings.batch_sequences)
        self._skip(range(kept[0]), self._teacher, self._teacher)
        for number, layer in enumerate(kept):
            following = kept[number + 1] if number + 1 < len(kept) else self._source.num_hidden_layers
            self._refit_layer(number, layer, range(layer + 1, following))
            file = self._folder / f"layer-{number:05}.safetensors"
            save_file(self._refitted, file)
            self._refitted.clear()
            headers |= file_headers(file)
            trim_memory()
        release_memory()
        return headers

    def _refit_layer(self, number: int, layer: int, dropped: range) -> None:
        """Refit one layer of the student against the teacher's layer and those after it that are dropped."""
        with self._pruned.layer(number) as student:
            with self._whole.layer(layer) as teacher:
                self._refit_readers(number, self._attention, teacher, student, self._teacher, self._student)
                parallel = self._run_teacher(teacher)
                self._skip(dropped, self._after, self._after)
                self._attend(student)
                output = self._attention.writer
                self._refit_writer(number, output, student, self._middle, self._student, self._attended)
                self._write(output, student, self._student, self._attended, self._between)
                reads = (self._teacher, self._student) if parallel else (self._middle, self._between)
                self._refit_readers(number, self._ffn, teacher, student, *reads)
            if not self._source.num_experts:
                self._feed_forward(number, student, reads[1])
        if self._source.num_experts:  # which are stored one by one, and run as one tensor that is put together
            with self._pruned.layer(number) as student:
                self._feed_forward(number, student, reads[1])
        self._teacher, self._after = self._after, self._teacher
        self._student, self._between = self._between, self._student

    def _skip(self, layers: range, source: HiddenStates, goal: HiddenStates) -> None:
        """Run the teacher's stream through layers that the student does not have."""
        for layer in layers:
            with self._whole.layer(layer) as model:
                for indices, positions in self._batches(counted=True):
                    goal.write(indices, run_layer(model, self._layout, self._read(source, indices), positions))

    def _run_teacher(self, model: CausalLM) -> bool:
        """Run one layer of the teacher; return whether its FFN reads what its attention reads."""
        parallel = False
        taken: dict[str, Tensor] = {}
        writer, norm = self._attention.writer, self._ffn.norm
        output = self._whole.module(model, self._rows.norm_behind(writer, self._source) or writer)
        with ExitStack() as hooks:
            hooks.enter_context(output.register_forward_hook(lambda _, __, result: taken.update(added=result)))
            if norm is not None:
                before = self._whole.module(model, norm)
                hooks.enter_context(before.register_forward_pre_hook(lambda _, args: taken.update(read=args[0])))
            for indices, positions in self._batches(counted=True):
                states = self._read(self._teacher, indices)
                self._after.write(indices, run_layer(model, self._layout, states, positions))
                self._middle.write(indices, states + self._scale * taken["added"])
                parallel = taken.get("read") is states
        return parallel

    def _attend(self, student: CausalLM) -> None:
        """Run the student's attention up to its output projection."""
        output = self._pruned.module(student, self._attention.writer)
        for indices, positions in self._batches():
            run = partial(run_layer, student, self._layout, self._read(self._student, indices), positions)
            self._attended.write(indices, input_of(output, run))

    def _feed_forward(self, number: int, student: CausalLM, reads: HiddenStates) -> None:
        """Run the student's FFN, refit what it adds, and write the stream behind it."""
        down, behind = self._ffn.writer, self._norm_behind(self._ffn.writer, student)
        norm, output = self._normed(self._pruned, student, self._ffn), self._layout.module_of(down)
        block = student.get_submodule(output.rpartition(".")[0].format(layer=0))
        for indices, _ in self._batches():
            run = partial(block, norm(self._read(reads, indices)))
            if self._activated is not None:
                self._activated.write(indices, input_of(self._pruned.module(student, down), run))
                continue
            between = self._read(self._between, indices)
            # some put out tokens of all sequences one after the other
            added = behind(states_of(run())).view_as(between)
            self._between.write(indices, between + self._scale * added)
        if self._activated is not None:
            self._refit_writer(number, down, student, self._after, self._between, self._activated)
            self._write(down, student, self._between, self._activated, self._between)

    def _write(
        self, output: TensorRow, student: CausalLM, stream: HiddenStates, inputs: HiddenStates, goal: HiddenStates
    ) -> None:
        """Add what an output projection of the student puts out to its stream."""
        projection, behind = self._pruned.module(student, output), self._norm_behind(output, student)
        for indices, _ in self._batches():
            added = behind(projection(self._read(inputs, indices)))
            goal.write(indices, self._read(stream, indices) + self._scale * added)

    def _refit_writer(
        self,
        number: int,
        output: TensorRow,
        student: CausalLM,
        wanted: HiddenStates,
        stream: HiddenStates,
        inputs: HiddenStates,
    ) -> None:
        """Refit an output projection, and the norm behind it, to what the student's stream lacks of the teacher's."""
        place, behind = self._place(output, number), self._rows.norm_behind(output, self._source)
        projection, lacking = self._pruned.module(student, output), partial(self._lacking, wanted, stream, inputs)
        start = self._outputs_first(place, whole(self._parts[place.name]).double())
        bias = self._parts.get(f"{output.module}.bias".format(layer=number))
        offset = whole(bias).to(self._device, torch.float32) if bias is not None else 0.0
        gain = 1.0 if behind is None else self._gain(behind, student)
        regression = Regression(start.shape[0], start.shape[1], self._device)
        for missing, read in lacking():
            size = 1.0 if behind is None else self._rms(projection(read))
            regression.add(missing / gain - offset / size, read / size)
        self._keep(place, regression.solve(start, self._settings.ridge), student)
        if behind is not None:
            self._refit_gain(self._place(behind, number), projection, lacking(), student)

    def _refit_gain(
        self, place: TensorPlace, projection: Module, lacking: Iterator[tuple[Tensor, Tensor]], student: CausalLM
    ) -> None:
        """Refit the gain of the norm behind a projection to what the student's stream lacks."""
        gain = self._gain(place.row, student).double()
        products, squares = torch.zeros_like(gain), torch.zeros_like(gain)
        for missing, read in lacking:
            put_out = projection(read)
            even = put_out / self._rms(put_out)
            products += (missing * even).flatten(0, -2).sum(dim=0)
            squares += even.square().flatten(0, -2).sum(dim=0)
        found = ridge_gain(products, squares, gain, self._settings.ridge) - self._layout.norm_offset
        self._refitted[place.name] = found.to("cpu", DTYPES[self._parts[place.name].dtype])
        self._pruned.module(student, place.row).get_parameter("weight").copy_(self._refitted[place.name])

    def _gain(self, norm: TensorRow, student: CausalLM) -> Tensor:
        """What a norm multiplies by, no entry so small that it cannot be divided by."""
        gain = self._pruned.module(student, norm).get_parameter("weight").float() + self._layout.norm_offset
        least = _LEAST_GAIN * gain.square().mean().sqrt()
        return gain.where(gain.abs() > least, least.copysign(gain))

    def _rms(self, put_out: Tensor) -> Tensor:
        """What a norm of the student divides by, (..., 1), float32."""
        least = torch.finfo(torch.float32).tiny
        return (put_out.float().square().mean(dim=-1, keepdim=True) + self._epsilon).sqrt().clamp_min(least)

    def _lacking(
        self, wanted: HiddenStates, stream: HiddenStates, inputs: HiddenStates
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what has to be added so that the student's stream becomes the teacher's, and what is read for it."""
        for indices, _ in self._batches():
            missing = self._turned(self._read(wanted, indices)) - self._read(stream, indices).float()
            yield missing / self._scale, self._read(inputs, indices)

    def _refit_readers(
        self,
        number: int,
        block: _Block,
        teacher: CausalLM,
        student: CausalLM,
        reads: HiddenStates,
        student_reads: HiddenStates,
    ) -> None:
        """Refit every matrix of a block that reads the stream."""
        regression = Regression(self._source.hidden_size, self._target.hidden_size, self._device)
        wide, narrow = self._normed(self._whole, teacher, block), self._normed(self._pruned, student, block)
        for indices, _ in self._batches():
            regression.add(wide(self._read(reads, indices)), narrow(self._read(student_reads, indices)))
        for place in self._layout.tensors(self._target):
            row = place.row
            if place.layer != number or row not in block.readers:
                continue
            part = self._parts[place.name]
            assert isinstance(part, Cut)
            unmixed = tuple(None if each == HIDDEN else kept for each, kept in zip(row.dims, part.kept, strict=True))
            original = self._outputs_first(place, whole(replace(part, kept=unmixed)).float()).to(self._device)
            start = self._outputs_first(place, whole(part).double())
            self._keep(place, regression.solve(start, self._settings.ridge, original), student)

    def _normed(self, layers: LayeredModel, model: CausalLM, block: _Block) -> Callable[[Tensor], Tensor]:
        """What a block of a model does to the stream before it reads it."""
        return _unchanged if block.norm is None else layers.module(model, block.norm)

    def _norm_behind(self, output: TensorRow, student: CausalLM) -> Callable[[Tensor], Tensor]:
        """What happens to what an output projection of the student puts out before the stream gets it."""
        behind = self._rows.norm_behind(output, self._source)
        return _unchanged if behind is None else self._pruned.module(student, behind)

    def _keep(self, place: TensorPlace, matrix: Tensor, student: CausalLM) -> None:
        """Keep a refitted matrix for the student's file, and let its layer go on with it."""
        stored = self._outputs_first(place, matrix).to("cpu", DTYPES[self._parts[place.name].dtype])
        self._refitted[place.name] = stored.contiguous()
        if place.expert is None:
            weight = self._pruned.module(student, place.row).get_parameter("weight")
            if weight.shape == stored.shape:
                weight.copy_(stored)
                return
            with self._pruned.layer(int(place.layer or 0)) as split:  # as transformers splits it
                student.load_state_dict(split.state_dict())

    def _outputs_first(self, place: TensorPlace, matrix: Tensor) -> Tensor:
        """Turn a stored matrix to (outputs, inputs), or such a one back."""
        return matrix.T if self._layout.inputs_first(place.row) else matrix

    def _stream_basis(self) -> Tensor | None:
        """What turns the teacher's stream into the student's: a matrix, the channels that stay, or None for all."""
        basis = basis_of(self._prepared, self._target)
        if basis is not None:
            return basis.matrix.to(self._device, torch.float32)
        if self._target.hidden_size == self._source.hidden_size:
            return None
        return torch.sort(self._prepared.order.hidden[: self._target.hidden_size]).values.to(self._device)

    def _turned(self, states: Tensor) -> Tensor:
        if self._matrix is None:
            return states.float()
        return states.float() @ self._matrix if self._matrix.dim() == 2 else states[..., self._matrix].float()

    def _read_refitted(self, name: str) -> Tensor:
        """Return a tensor of the student, as it has been refitted if it has."""
        return self._refitted[name] if name in self._refitted else whole(self._parts[name])

    def _batches(self, counted: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        total = self._text.num_tokens * self._source.num_hidden_layers
        for indices, batch in self._text.batches(self._settings.batch_sequences):
            yield indices, batch.position_ids.to(self._device)
            if counted:
                self._tokens_done += batch.num_tokens
                self._progress(self._tokens_done, total)

    def _read(self, states: HiddenStates, indices: Tensor) -> Tensor:
        return states.read(indices).to(self._device)

    def _place(self, row: TensorRow, number: int) -> TensorPlace:
        return TensorPlace(row.name.format(layer=number), row, number, None)


def _unchanged(states: Tensor) -> Tensor:
    return states
