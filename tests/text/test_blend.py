"""Mixing by tokens: what comes next, and how near the shares are to what was asked for."""

import hypothesis.strategies as st
from hypothesis import given

from minitron_nas.text.blend import Blend


def test_the_source_furthest_behind_its_share_comes_next():
    blend = Blend([[6, 6], [2, 2, 2, 2]], [0.5, 0.5])
    # 6:0, then 6:2, 6:4, 6:6, and on a tie the first
    assert list(blend.rest(14, passes=1)) == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1)]


def test_what_is_taken_does_not_come_again_and_counts_up_to_the_limit_only():
    blend = Blend([[100, 100], [2, 2, 2, 2, 2, 2]], [0.5, 0.5])
    assert blend.take(8, limit=4) == [(0, 0), (1, 0), (1, 1)]
    assert list(blend.rest(50, passes=1)) == [(0, 1)]
    assert blend.dry is None


def test_one_source_comes_in_its_own_order():
    assert list(Blend([[3, 1, 2]], [1.0]).rest(100, passes=1)) == [(0, 0), (0, 1), (0, 2)]


def test_a_dry_source_ends_the_blend_after_its_passes_and_is_named():
    blend = Blend([[2] * 4, [2] * 100], [0.5, 0.5])
    assert blend.take(2, limit=2) == [(0, 0)]
    places = list(blend.rest(1000, passes=2))
    assert [document for source, document in places if source == 0] == [1, 2, 3, 1, 2, 3]
    assert blend.dry == 0
    assert len(places) == 12


def test_a_source_without_documents_is_dry_at_once_whatever_its_passes():
    blend = Blend([[], [2]], [0.5, 0.5])
    assert list(blend.rest(10, passes=5)) == []
    assert blend.dry == 0


@given(
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=40), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 1), min_size=4, max_size=4),
    num_tokens=st.integers(1, 500),
)
def test_every_source_is_within_one_document_of_its_share_at_every_step(lengths, weights, num_tokens):
    chosen = weights[: len(lengths)]
    shares = [weight / sum(chosen) for weight in chosen]
    taken = [0] * len(lengths)
    longest = max(map(max, lengths))
    for source, document in Blend(lengths, shares).rest(num_tokens, passes=1):
        assert document == 0 or taken[source] > 0
        taken[source] += lengths[source][document]
        total = sum(taken)
        # At most one document ahead; what others are ahead by is what a source may be behind.
        assert all(own <= share * total + longest + 1e-6 for own, share in zip(taken, shares, strict=True))
        assert all(
            own >= share * total - longest * len(lengths) - 1e-6 for own, share in zip(taken, shares, strict=True)
        )
