import json
from dataclasses import FrozenInstanceError

import pytest

from minitron_nas.architecture.spec import SHAPE_FIELDS, Architecture
from minitron_nas.errors import InvalidArchitectureError, MinitronNasError

NEMOTRON_15B = Architecture(
    model_type="nemotron",
    num_hidden_layers=32,
    hidden_size=6144,
    intermediate_size=24576,
    num_attention_heads=48,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=256000,
)
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}


def test_a_config_is_read_and_head_dim_follows_from_it() -> None:
    assert Architecture.from_config(CONFIG) == Architecture(
        "llama", 30, 576, 1536, 9, 3, 64, 49152, tie_word_embeddings=True
    )


def test_an_explicit_head_dim_stands() -> None:
    assert Architecture.from_config(CONFIG | {"head_dim": 128}).head_dim == 128


@pytest.mark.parametrize("absent", [{"num_key_value_heads": None}, {}])
def test_without_groups_every_head_is_its_own_group(absent: dict[str, None]) -> None:
    config = {name: value for name, value in CONFIG.items() if name != "num_key_value_heads"} | absent
    assert Architecture.from_config(config).num_key_value_heads == 9


def test_biases_are_read() -> None:
    architecture = Architecture.from_config(CONFIG | {"attention_bias": True, "mlp_bias": True})
    assert (architecture.attention_bias, architecture.mlp_bias) == (True, True)


def test_a_config_of_something_else_is_refused_by_the_missing_field() -> None:
    with pytest.raises(InvalidArchitectureError, match="the config has no 'num_attention_heads'"):
        Architecture.from_config({"model_type": "vae"})


@pytest.mark.parametrize("name", [*SHAPE_FIELDS, "head_dim", "vocab_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", None])
def test_a_size_that_is_no_positive_integer_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidArchitectureError, match=f"{name}={value!r} must be an integer of at least 1"):
        Architecture(**(NEMOTRON_15B.to_dict() | {name: value}))


def test_heads_that_do_not_fill_their_groups_are_refused() -> None:
    with pytest.raises(
        InvalidArchitectureError, match="num_attention_heads=20 is not a multiple of num_key_value_heads=8"
    ):
        Architecture(**(NEMOTRON_15B.to_dict() | {"num_attention_heads": 20}))


def test_the_error_is_also_a_value_error() -> None:
    with pytest.raises(ValueError, match="at least 1") as caught:
        Architecture(**(NEMOTRON_15B.to_dict() | {"hidden_size": 0}))
    assert isinstance(caught.value, MinitronNasError)


def test_a_shape_is_a_frozen_hashable_value() -> None:
    same = Architecture(**NEMOTRON_15B.to_dict())
    assert len({NEMOTRON_15B, same}) == 1
    with pytest.raises(FrozenInstanceError):
        same.hidden_size = 1  # type: ignore[misc]


def test_a_shape_survives_json() -> None:
    assert Architecture(**json.loads(json.dumps(NEMOTRON_15B.to_dict()))) == NEMOTRON_15B


def test_the_id_holds_the_five_prunable_sizes() -> None:
    assert NEMOTRON_15B.id == "l32-h6144-f24576-q48-k8"
    assert NEMOTRON_15B.shape() == {
        "num_hidden_layers": 32,
        "hidden_size": 6144,
        "intermediate_size": 24576,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
    }


def test_reshaping_replaces_only_what_is_named() -> None:
    pruned = NEMOTRON_15B.reshaped({"hidden_size": 4096, "intermediate_size": 16384})
    assert pruned.id == "l32-h4096-f16384-q48-k8"
    assert (pruned.head_dim, pruned.vocab_size, pruned.model_type) == (128, 256000, "nemotron")
    assert NEMOTRON_15B.id == "l32-h6144-f24576-q48-k8"


def test_reshaping_to_nothing_new_is_the_same_shape() -> None:
    assert NEMOTRON_15B.reshaped({}) == NEMOTRON_15B
    assert NEMOTRON_15B.reshaped(NEMOTRON_15B.shape()) == NEMOTRON_15B


def test_fewer_groups_take_their_query_heads_along() -> None:
    assert NEMOTRON_15B.reshaped({"num_key_value_heads": 4}).num_attention_heads == 24


def test_fewer_query_heads_keep_the_groups() -> None:
    pruned = NEMOTRON_15B.reshaped({"num_attention_heads": 24})
    assert (pruned.num_key_value_heads, pruned.heads_per_group) == (8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 64}, "'head_dim' is not a prunable size; choose from num_hidden_layers, hidden_size"),
        ({"hidden_size": 8192}, "hidden_size=8192 exceeds the source's 6144; pruning only removes"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be an integer of at least 1"),
        ({"num_attention_heads": 20}, "num_attention_heads=20 is not a multiple of num_key_value_heads=8"),
        (
            {"num_attention_heads": 48, "num_key_value_heads": 4},
            "num_attention_heads=48 over num_key_value_heads=4 asks for 12 query heads a group; the source",
        ),
    ],
)
def test_a_shape_that_pruning_cannot_reach_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArchitectureError, match=message):
        NEMOTRON_15B.reshaped(changes)
