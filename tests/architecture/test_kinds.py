"""How many layers of each kind models keep, by hand; and how configs tell of kinds."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitron_nas.architecture.kinds import (
    AllOrNone,
    FirstLayers,
    Indexed,
    Listed,
    Paired,
    SharedKeys,
    best_of_each_kind,
    fewest_layers,
    gives,
    kept_of_each_kind,
    may_lack,
    shares,
    without_keys,
)
from minitron_nas.errors import InvalidArchitectureError

PERIOD = ("delta", "delta", "delta", "full")
KINDS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=24)


def test_numbers_that_may_be_0_are_those_by_which_all_layers_have_something_or_none() -> None:
    ways = Paired(Listed("layer_types"), Paired(AllOrNone("num_experts", "experts"), AllOrNone("shared", "shared")))
    assert may_lack(ways) == {"num_experts", "shared"}
    assert may_lack(None) == may_lack(Listed("layer_types")) == frozenset()


def test_whole_periods_keep_their_proportion() -> None:
    for periods in range(1, 9):
        assert kept_of_each_kind(PERIOD * 8, 4 * periods) == {"delta": 3 * periods, "full": periods}


def test_between_two_periods_the_rarer_kind_comes_first() -> None:
    counts = [kept_of_each_kind(PERIOD * 2, number) for number in range(9)]
    assert [(count["delta"], count["full"]) for count in counts] == [
        (0, 0), (0, 1), (1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (6, 2)
    ]  # fmt: skip


@given(KINDS)
def test_every_layer_more_is_one_layer_more_of_one_kind(kinds: list[str]) -> None:
    counts = [kept_of_each_kind(kinds, number) for number in range(len(kinds) + 1)]
    assert counts[-1] == Counter(kinds)
    for fewer, more in itertools.pairwise(counts):
        assert (more - fewer).total() == 1
        assert fewer <= more


@given(KINDS)
def test_every_kind_stays_as_long_as_there_are_layers_for_all(kinds: list[str]) -> None:
    assert len(kept_of_each_kind(kinds, len(set(kinds)))) == len(set(kinds))


@given(KINDS, st.data())
def test_of_each_kind_the_best_stay(kinds: list[str], data: st.DataObject) -> None:
    ranking = data.draw(st.permutations(range(len(kinds))))
    count = data.draw(st.integers(0, len(kinds)))
    kept = best_of_each_kind(kinds, ranking, count)
    assert list(kept) == sorted(kept)
    assert Counter(kinds[layer] for layer in kept) == kept_of_each_kind(kinds, count)
    for layer in set(range(len(kinds))) - set(kept):
        assert all(ranking.index(other) < ranking.index(layer) for other in kept if kinds[other] == kinds[layer])


def test_layers_that_have_to_stay_need_room_among_their_own_kind() -> None:
    assert fewest_layers(("",) * 9, {0, 4, 8}) == 3
    assert fewest_layers(PERIOD * 8, {0, 31}) == 2
    assert fewest_layers(PERIOD * 8, {3, 7, 31}) == 9  # 6 delta nets for 3 layers of attention


def test_a_list_names_the_kind_of_each_layer_both_ways() -> None:
    kinds = Listed("layer_types")
    assert kinds.read({"layer_types": [*PERIOD]}, 4) == PERIOD
    assert kinds.written(PERIOD[1:]) == {"layer_types": ["delta", "delta", "full"]}


@pytest.mark.parametrize("words", [None, ["delta"], "delta"])
def test_a_list_that_does_not_name_every_layer_is_refused(words: object) -> None:
    with pytest.raises(InvalidArchitectureError, match=r"layer_types=.* must list the kinds of 4 layers"):
        Listed("layer_types").read({"layer_types": words}, 4)


def test_a_number_of_first_layers_tells_the_kinds_both_ways() -> None:
    kinds = FirstLayers("first_k_dense_replace", "dense", "moe")
    assert kinds.read({"first_k_dense_replace": 2}, 5) == ("dense", "dense", "moe", "moe", "moe")
    assert kinds.written(("dense", "moe", "moe")) == {"first_k_dense_replace": 1}
    with pytest.raises(InvalidArchitectureError, match=r"first_k_dense_replace=None must say how many of the 5 layers"):
        kinds.read({}, 5)


def test_a_list_of_numbers_tells_the_kinds_both_ways() -> None:
    kinds = Indexed("moe_layers", listed="moe", others="dense")
    assert kinds.read({"moe_layers": [1, 3, 9]}, 4) == ("dense", "moe", "dense", "moe")
    assert kinds.read({"moe_layers": []}, 2) == ("dense", "dense")
    assert kinds.written(("dense", "moe", "moe")) == {"moe_layers": [1, 2]}
    with pytest.raises(InvalidArchitectureError, match=r"moe_layers=None must list which of the 5 layers are of kind"):
        kinds.read({}, 5)


def test_a_pair_tells_of_two_parts_of_each_layer_both_ways() -> None:
    kinds = Paired(Listed("layer_types"), Indexed("mlp_only_layers", listed="dense", others=""))
    config = {"layer_types": [*PERIOD], "mlp_only_layers": [0, 3]}
    assert kinds.count(config) == 4
    assert kinds.read(config, 4) == ("delta dense", "delta", "delta", "full dense")
    assert kinds.written(("delta", "delta dense", "full")) == {
        "layer_types": ["delta", "delta", "full"],
        "mlp_only_layers": [1],
    }


def test_all_layers_have_something_or_none_has() -> None:
    way = Paired(Listed("layer_types"), AllOrNone("num_local_experts", having="experts"))
    layers = {"layer_types": ["full", "linear"]}
    assert way.read({**layers, "num_local_experts": 4}, 2) == ("full experts", "linear experts")
    assert way.read({**layers, "num_local_experts": 0}, 2) == way.read(layers, 2) == ("full", "linear")
    assert way.written(("linear experts", "linear experts")) == {"layer_types": ["linear", "linear"]}
    without = AllOrNone("q_lora_rank", lacking="direct")
    assert [without.read({"q_lora_rank": rank}, 1) for rank in (8, None)] == [("",), ("direct",)]


ATTENTION = ("sliding", "sliding", "full", "sliding", "full", "sliding", "sliding")
SHARED = Paired(
    Listed("layer_types"),
    Paired(SharedKeys("shared", Listed("layer_types"), "channels"), AllOrNone("moe", having="experts")),
)
BESIDE = {"channels": 8}


def test_the_last_layers_read_keys_of_the_last_one_before_them_that_attends_alike() -> None:
    config = {"layer_types": [*ATTENTION], "shared": 3}
    kinds = SHARED.read({**config, **BESIDE}, 7)
    assert kinds == (
        "sliding", "sliding", "full giving", "sliding giving", "full sharing", "sliding sharing", "sliding sharing",
    )  # fmt: skip
    assert SHARED.written(kinds) == config
    assert SHARED.written(kinds[:3]) == {"layer_types": [*ATTENTION[:3]], "shared": 0}
    with_experts = SHARED.read({**config, **BESIDE, "moe": 4}, 7)
    assert with_experts == tuple(f"{kind} experts" for kind in kinds)
    assert SHARED.written(with_experts) == config
    assert [gives(kind) for kind in with_experts] == [layer in (2, 3) for layer in range(7)]
    assert [shares(kind) for kind in with_experts] == [layer > 3 for layer in range(7)]


@pytest.mark.parametrize("config", [{}, {"shared": None}, {"shared": 0}])
def test_where_no_layer_shares_keys_no_word_is_added(config: dict[str, int | None]) -> None:
    assert SHARED.read({"layer_types": [*ATTENTION], **config}, 7) == ATTENTION


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (8, r"shared=8 must say how many of the last layers .* at most all of the 7 layers"),
        (-1, r"shared=-1 must say"),
        ("3", r"shared='3' must say"),
        (5, r"shared=5 leaves no layer of kind 'full' whose keys .* it must be at most 4"),
    ],
)
def test_layers_that_would_find_no_keys_to_read_are_refused(count: object, said: str) -> None:
    with pytest.raises(InvalidArchitectureError, match=said):
        SHARED.read({"layer_types": [*ATTENTION], "shared": count, **BESIDE}, 7)


@pytest.mark.parametrize("channels", [0, None])
def test_layers_that_share_keys_need_embeddings_of_their_own(channels: int | None) -> None:
    with pytest.raises(InvalidArchitectureError, match=r"shared=3 with channels=.*; channels must be .* or shared 0"):
        SHARED.read({"layer_types": [*ATTENTION], "shared": 3, "channels": channels}, 7)


def test_all_layers_may_read_keys_of_another_model() -> None:
    kinds = SHARED.read({"layer_types": ["full", "sliding"], "shared": 2, **BESIDE}, 2)
    assert kinds == ("full sharing", "sliding sharing")
    assert without_keys(kinds) == ["full", "sliding"]


@given(st.lists(st.sampled_from(["full", "sliding"]), min_size=2, max_size=16), st.data())
def test_the_layer_that_keys_are_read_of_stays_as_long_as_one_that_reads_them(
    attention: list[str], data: st.DataObject
) -> None:
    needed = max(attention.index(kind) for kind in set(attention)) + 1
    config = {"layer_types": attention, "shared": data.draw(st.integers(0, len(attention) - needed))}
    kinds = SHARED.read({**config, **BESIDE}, len(attention))
    ranking = data.draw(st.permutations(range(len(kinds))))
    for count in range(1, len(kinds) + 1):
        kept = [kinds[layer] for layer in best_of_each_kind(kinds, ranking, count)]
        assert without_keys(kept) == []
        read = SHARED.read({**SHARED.written(kept), **BESIDE}, count)
        assert [shares(kind) for kind in kept] == [shares(kind) for kind in read]


def test_layers_whose_keys_are_gone_are_told_by_how_they_attend() -> None:
    assert without_keys(("full giving", "sliding", "sliding sharing experts", "full sharing")) == ["sliding"]
    assert without_keys(ATTENTION) == []
