"""Packing, storing and tokenizing, on documents whose tokens are known."""

import json
import tracemalloc
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file
from tokenizers import AddedToken

from minitron_nas.errors import CheckpointError, DataError
from minitron_nas.families.catalog import layouts
from minitron_nas.testing import tiny_config, tiny_model, tiny_tokenizer
from minitron_nas.text import packing
from minitron_nas.text import tokens as tokens_module
from minitron_nas.text.conversation import Conversation
from minitron_nas.text.packing import pack, packed_blocks
from minitron_nas.text.tokenization import tokenize
from minitron_nas.text.tokens import IGNORE_LABEL, PackedTokens, save_blocks

DOCUMENTS = [np.array(ids) for ids in ([5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [15, 16])]


def test_documents_are_laid_end_to_end_and_positions_restart_at_documents_and_sequences():
    packed = pack(DOCUMENTS, 5)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]  # 15 and 16 fill no sequence
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert packed.input_ids.dtype == packed.position_ids.dtype == torch.int64


def test_a_token_before_a_border_has_no_next_token():
    no = IGNORE_LABEL
    assert pack(DOCUMENTS, 5).labels().tolist() == [[6, 7, no, no, no], [11, 12, 13, 14, no]]


def test_a_document_longer_than_a_sequence_goes_on_in_the_next_one():
    packed = pack([np.arange(7)], 3)
    assert packed.input_ids.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert packed.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]


def test_nothing_packs_to_no_sequence():
    packed = pack([], 4)
    assert (packed.num_sequences, packed.num_tokens, packed.input_ids.shape) == (0, 0, (0, 4))


@given(lengths=st.lists(st.integers(1, 12), max_size=12), sequence_length=st.integers(1, 9))
def test_packing_keeps_order_and_drops_less_than_a_sequence(lengths, sequence_length):
    pieces = [np.arange(100 * number, 100 * number + length) for number, length in enumerate(lengths)]
    packed = pack(pieces, sequence_length)
    ids = packed.input_ids.flatten().tolist()
    assert ids == [int(token) for piece in pieces for token in piece][: len(ids)]
    assert 0 <= sum(lengths) - packed.num_tokens < sequence_length
    columns = np.arange(packed.num_tokens) % sequence_length
    expected = [min(token % 100, column) for token, column in zip(ids, columns, strict=True)]
    assert packed.position_ids.flatten().tolist() == expected


def test_the_first_sequences_are_the_first_rows():
    first = pack(DOCUMENTS, 3).first(2)
    assert first.input_ids.tolist() == [[5, 6, 7], [8, 9, 10]]
    assert first.position_ids.tolist() == [[0, 1, 2], [0, 0, 1]]


def test_random_tokens_take_the_place_of_a_share_of_a_texts_but_of_no_first_token_of_a_document():
    text = pack([np.full(400, 7)] * 50, 100)
    changed = text.with_random_tokens(0.25, vocab_size=1000)
    assert torch.equal(changed.position_ids, text.position_ids)
    first = text.position_ids == 0
    assert (changed.input_ids[first] == 7).all()
    others = changed.input_ids[~first]
    replaced = others[others != 7]
    assert abs(len(replaced) / len(others) - 0.25) < 0.02
    assert 0 <= replaced.min() < 5
    assert 995 <= replaced.max() < 1000
    assert replaced.unique().numel() > 950


def test_the_same_seed_replaces_the_same_tokens_and_a_share_of_nothing_none(tmp_path):
    text = pack([np.arange(400)], 100)
    text.save(tmp_path / "text.safetensors")
    loaded = PackedTokens.load(tmp_path / "text.safetensors")
    one, same, other = (each.with_random_tokens(0.5, 400, seed) for each, seed in ((text, 1), (loaded, 1), (text, 2)))
    assert torch.equal(one.input_ids, same.input_ids)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert text.with_random_tokens(0, 400).fingerprint == text.fingerprint == loaded.fingerprint


def test_batches_come_in_order_and_the_last_one_may_be_smaller():
    packed = pack(DOCUMENTS, 4)
    batches = list(packed.batches(2))
    assert [indices.tolist() for indices, _ in batches] == [[0, 1], [2]]
    assert torch.equal(torch.cat([batch.input_ids for _, batch in batches]), packed.input_ids)
    assert torch.equal(torch.cat([batch.position_ids for _, batch in batches]), packed.position_ids)


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, torch.uint16), (65_536, torch.int32)])
def test_saved_tokens_are_memory_mapped_in_the_smallest_type_that_holds_them(tmp_path, largest, dtype):
    packed = pack([*DOCUMENTS, np.array([largest] * 4)], 5)
    packed.save(tmp_path / "tokens.safetensors")
    loaded = PackedTokens.load(tmp_path / "tokens.safetensors")
    assert (loaded.input_ids.dtype, loaded.position_ids.dtype) == (dtype, torch.uint16)
    assert loaded.fingerprint == packed.fingerprint
    assert PackedTokens(loaded.input_ids, loaded.position_ids).fingerprint == packed.fingerprint
    for whole in (loaded.in_memory(), loaded.sequences(torch.arange(packed.num_sequences))):
        assert whole.input_ids.dtype == whole.position_ids.dtype == torch.int64
        assert torch.equal(whole.input_ids, packed.input_ids)
        assert torch.equal(whole.position_ids, packed.position_ids)


def test_a_file_of_tokens_is_one_that_safetensors_reads(tmp_path):
    packed = pack(DOCUMENTS, 5)
    packed.save(tmp_path / "tokens.safetensors")
    tensors = load_file(tmp_path / "tokens.safetensors")
    assert torch.equal(tensors["input_ids"].long(), packed.input_ids)
    assert torch.equal(tensors["position_ids"].long(), packed.position_ids)


def test_no_sequences_are_saved_and_loaded_too(tmp_path):
    pack([], 4).save(tmp_path / "tokens.safetensors")
    assert PackedTokens.load(tmp_path / "tokens.safetensors").input_ids.shape == (0, 4)


def test_memory_mapped_tokens_give_the_same_batches_labels_and_beginnings(tmp_path):
    packed = pack([*DOCUMENTS, np.arange(40_000, 40_011)], 4)
    packed.save(tmp_path / "tokens.safetensors")
    loaded = PackedTokens.load(tmp_path / "tokens.safetensors")
    assert torch.equal(loaded.labels(), packed.labels())
    assert loaded.first(2).fingerprint == packed.first(2).fingerprint
    assert loaded.first(99) is loaded
    for (indices, batch), (_, expected) in zip(loaded.batches(2), packed.batches(2), strict=True):
        assert torch.equal(batch.input_ids, expected.input_ids)
        assert torch.equal(batch.labels(), packed.labels()[indices])
    some = loaded.sequences(torch.tensor([3, 0, 3]))
    assert torch.equal(some.input_ids, packed.input_ids[[3, 0, 3]])


def test_what_is_done_to_loaded_tokens_never_reaches_the_file(tmp_path):
    pack(DOCUMENTS, 5).save(tmp_path / "tokens.safetensors")
    before = (tmp_path / "tokens.safetensors").read_bytes()
    PackedTokens.load(tmp_path / "tokens.safetensors").input_ids[:] = 0
    assert (tmp_path / "tokens.safetensors").read_bytes() == before


@given(
    lengths=st.lists(st.integers(1, 40), max_size=30),
    sequence_length=st.integers(1, 9),
    block_tokens=st.integers(1, 30),
    most=st.none() | st.integers(0, 40),
)
def test_packing_block_by_block_is_packing_at_once(lengths, sequence_length, block_tokens, most):
    pieces = [np.arange(100 * number, 100 * number + length) for number, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_TOKENS", block_tokens)
        blocks = list(packed_blocks(iter(pieces), sequence_length, most))
    expected = pack(pieces, sequence_length)
    expected = expected if most is None else expected.first(most)
    assert torch.equal(torch.cat([block.input_ids for block in blocks]), expected.input_ids)
    assert torch.equal(torch.cat([block.position_ids for block in blocks]), expected.position_ids)


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    for module in (packing, tokens_module):
        monkeypatch.setattr(module, "BLOCK_TOKENS", 1 << 14)
    document = np.arange(1000)

    def peak_bytes(num_documents):
        path = tmp_path / f"{num_documents}.safetensors"
        tracemalloc.start()
        save_blocks(packed_blocks((document for _ in range(num_documents)), 64), path, 64, 1000)
        tokens = PackedTokens.load(path)
        for _, batch in tokens.batches(4):
            batch.labels()
        assert PackedTokens(tokens.input_ids, tokens.position_ids).fingerprint == tokens.fingerprint
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    small, large = peak_bytes(500), peak_bytes(2000)
    assert large < small + 200_000 < 3_000_000  # 2000 documents are 16 MB in int64


def test_the_fingerprint_changes_with_a_token_and_with_a_border():
    whole, other = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])
    prints = {pack(pieces, 4).fingerprint for pieces in ([whole], [other], [whole[:2], whole[2:]], [whole])}
    assert len(prints) == 3


def test_a_document_ends_with_the_end_of_text_token_once():
    tokenizer = tiny_tokenizer()
    plain, ended = tokenize(["abc", f"abc{tokenizer.eos_token}"], tokenizer, 320)
    assert plain.tolist() == ended.tolist()
    assert tokenizer.decode(plain) == f"abc{tokenizer.eos_token}"


def test_a_tokenizer_without_an_end_of_text_token_adds_none():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    (ids,) = tokenize(["abc"], tokenizer, 320)
    assert tokenizer.decode(ids) == "abc"


def test_many_documents_keep_their_order():
    texts = [f"document {number}" for number in range(150)]
    tokenizer = tiny_tokenizer()
    assert [tokenizer.decode(ids[:-1]) for ids in tokenize(texts, tokenizer, 320)] == texts


def test_a_conversation_is_what_the_chat_template_makes_of_it_between_texts_in_order():
    tokenizer = tiny_tokenizer()
    chat = Conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
    first, middle, last = tokenize(["abc", chat, "def"], tokenizer, 320)
    assert tokenizer.decode(middle) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
    assert middle.tolist() == tokenizer.apply_chat_template(chat.messages)["input_ids"]
    assert [tokenizer.decode(ids) for ids in (first, last)] == ["abc<|im_end|>", "def<|im_end|>"]


def test_a_token_beyond_the_vocabulary_is_refused_with_its_id():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(AddedToken("<image>", special=True))
    assert len(list(tokenize(["abc", "an image"], tokenizer, 320))) == 2
    message = r"the tokenizer makes '<image>', id 320, of a document, but the model has vocab_size=320; take this token"
    with pytest.raises(DataError, match=message):
        list(tokenize(["abc", "an <image> of"], tokenizer, 320))


BORDERS = [np.arange(3, 14), np.arange(200, 221), np.array([9]), np.arange(50, 81)]
"""Documents of 11, 21, 1 and 31 tokens, longer and shorter than a window of 8."""

WINDOWS = {
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8},
    "mistral": {"sliding_window": 8},
    "mixtral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "starcoder2": {"sliding_window": 8},
}


WITH_STATE = sorted(name for name, layout in layouts().items() if layout.hands_on_state)
BLIND = {name for name, layout in layouts().items() if not layout.finds_borders}
"""Families whose masks this package makes: `tests/models/test_borders.py`."""


def distance_to_documents_alone(model, documents=BORDERS):
    """The largest difference between logits of documents packed into one sequence, and of each alone."""
    packed = pack(documents, sum(map(len, documents)))
    with torch.no_grad():
        logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits[0]
        alone = [model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0] for ids in documents]
    return (logits - torch.cat(alone)).abs().max().item()


def attentions(model_type):
    """Some cap attention scores or have sinks, which sdpa cannot; transformers takes eager for them."""
    return ["eager"] if model_type in {"gemma2", "granite_swa", "vaultgemma"} else ["eager", "sdpa"]


@pytest.mark.parametrize(
    ("model_type", "changes", "attention"),
    [
        pytest.param(name, changes, attention, id="-".join([name, attention, *(["window"] if changes else [])]))
        for name, changes in [
            *((name, {}) for name in layouts() if name not in {*WITH_STATE, *BLIND}),
            *WINDOWS.items(),
        ]
        for attention in attentions(name)
    ],
)
def test_packed_documents_do_not_see_each_other(model_type, changes, attention):
    model = tiny_model(tiny_config(model_type, **changes))
    model.set_attn_implementation(attention)
    assert distance_to_documents_alone(model) < 2e-5


@pytest.mark.parametrize("model_type", WITH_STATE)
def test_a_state_goes_on_from_one_packed_document_to_the_next(model_type):
    assert distance_to_documents_alone(tiny_model(tiny_config(model_type))) > 1e-2


@pytest.mark.parametrize(("original", "separate"), [(64, True), (16, False)])
def test_long_rope_ties_documents_together_only_beyond_the_original_length(original, separate):
    # Phi 3 takes its long factors for a whole batch once one position in it is beyond the original length.
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": original,
    }
    model = tiny_model(
        tiny_config("phi3", rope_parameters=rope, original_max_position_embeddings=original, partial_rotary_factor=1.0)
    )
    assert (distance_to_documents_alone(model) < 2e-5) is separate


def edited(path, change):
    """Change the header of a safetensors file, whose data stay where they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    path.write_bytes(content[:8] + json.dumps(change(header)).encode().ljust(length) + content[8 + length :])


def with_array(header, name, **changes):
    return {**header, name: {**header[name], **changes}}


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [],
        lambda header: {name: entry for name, entry in header.items() if name != "__metadata__"},
        lambda header: {**header, "__metadata__": {}},
        lambda header: {**header, "__metadata__": {"fingerprint": 5}},
        lambda header: {**header, "__metadata__": 5},
        lambda header: {name.replace("input", "output"): entry for name, entry in header.items()},
        lambda header: {name: entry for name, entry in header.items() if name != "input_ids"},
        lambda header: {**header, "input_ids": 5},
        lambda header: with_array(header, "input_ids", dtype="F64"),
        lambda header: with_array(header, "input_ids", shape=[2]),
        lambda header: with_array(header, "input_ids", shape=[1, 4]),
        lambda header: with_array(header, "input_ids", shape=[10**30, 4]),
        lambda header: with_array(header, "input_ids", shape=[-2, 4]),
        lambda header: with_array(header, "input_ids", shape="24"),
        lambda header: with_array(header, "input_ids", data_offsets=[0]),
        lambda header: with_array(header, "input_ids", data_offsets=["0", "16"]),
        lambda header: with_array(header, "input_ids", data_offsets=[-(10**6), 16]),
    ],
)
def test_a_file_whose_header_says_something_else_is_named(tmp_path, change):
    path = tmp_path / "tokens.safetensors"
    pack([np.arange(8)], 4).save(path)
    edited(path, change)
    with pytest.raises(
        CheckpointError, match=r"tokens\.safetensors (holds no packed tokens; delete it|is .*; copy it)"
    ):
        PackedTokens.load(path)


@pytest.mark.parametrize("num_bytes", [0, 5, 100, 4096, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path, num_bytes):
    path = tmp_path / "tokens.safetensors"
    pack([np.arange(8)], 4).save(path)
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=r"tokens\.safetensors is .*(cut short|empty)"):
        PackedTokens.load(path)


@pytest.mark.parametrize("place", [-1, -20, 4096, "fingerprint"])
def test_tokens_that_are_verified_are_those_that_were_written(tmp_path, place):
    path = tmp_path / "tokens.safetensors"
    pack([np.arange(8)], 4).save(path)
    assert PackedTokens.load(path, verify=True).num_tokens == 8
    content = bytearray(path.read_bytes())
    place = content.index(b'"fingerprint": "') + 16 if place == "fingerprint" else place
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokens\.safetensors is not what was written there; delete it"):
        PackedTokens.load(path, verify=True)


def test_tokens_that_are_taught_are_kept_and_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    ids = torch.arange(12).view(3, 4)
    positions = torch.arange(4).expand(3, 4)
    taught = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    tokens = PackedTokens(ids, positions, taught=taught)
    tokens.save(tmp_path / "a.safetensors")
    loaded = PackedTokens.load(tmp_path / "a.safetensors", verify=True)
    assert loaded.counted().tolist() == taught.bool().tolist()
    assert loaded.labels().tolist() == [[-100, 2, 3, -100], [-100] * 4, [9, 10, 11, -100]]
    assert loaded.num_counted().tolist() == [2, 0, 4]
    assert loaded.num_labels().tolist() == [2, 0, 3]
    assert loaded.sequences(torch.tensor([2, 0])).counted().tolist() == taught.bool()[[2, 0]].tolist()
    assert loaded.first(1).counted().tolist() == taught[:1].bool().tolist()
    assert not loaded.counts_all
    assert loaded.fingerprint == tokens.fingerprint
    assert tokens.fingerprint != PackedTokens(ids, positions).fingerprint
    assert tokens.fingerprint != PackedTokens(ids, positions, taught=1 - taught).fingerprint
