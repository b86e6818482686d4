import pytest

from minitron_nas.search.finalists import choose_finalists, stratum


@pytest.fixture(scope="module")
def pool(make_pool):
    return make_pool()


def of_kind(pool, kind, num):
    found = [n for n, each in enumerate(pool.candidates) if stratum(each.architecture, pool.source) == kind]
    assert len(found) >= num
    return found[:num]


NEURONS, DEPTH, WIDTH, HEADS = (
    (False, False, False), (True, False, False), (False, True, False), (False, False, True),
)  # fmt: skip


def test_all_are_trained_where_there_are_not_more(pool):
    assert choose_finalists(pool, {5: 0.3, 2: 0.1, 9: 0.2}, (), 8) == [2, 9, 5]
    assert choose_finalists(pool, {5: 0.3, 2: 0.1, 9: 0.2}, (), None) == [2, 9, 5]


def test_half_are_the_best_and_the_others_the_best_of_the_kinds_that_are_missing(pool):
    depth, heads, width = of_kind(pool, DEPTH, 5), of_kind(pool, HEADS, 2), of_kind(pool, WIDTH, 1)
    kls = {**dict.fromkeys(depth, 0.0), heads[0]: 0.7, heads[1]: 0.69, width[0]: 0.9}
    kls |= {index: 0.5 + number / 100 for number, index in enumerate(depth)}
    assert choose_finalists(pool, kls, (), 4) == [depth[0], depth[1], heads[1], width[0]]


def test_a_kind_that_is_twice_as_far_away_is_not_trained_for_its_own_sake(pool):
    depth, heads = of_kind(pool, DEPTH, 5), of_kind(pool, HEADS, 1)
    kls = {index: 0.5 + number / 100 for number, index in enumerate(depth)} | {heads[0]: 1.01}
    assert choose_finalists(pool, kls, (), 4) == depth[:4]
    assert choose_finalists(pool, kls | {heads[0]: 0.99}, (), 4) == [*depth[:3], heads[0]]


def test_with_more_objectives_the_front_comes_before_what_it_dominates(pool):
    memory = pool.columns["memory_bytes"]
    ascending = sorted(range(len(pool)), key=lambda index: memory[index])
    least, middle, most = ascending[0], ascending[len(pool) // 2], ascending[-1]
    other = ascending[-2]
    kls = {most: 0.5, other: 0.51, middle: 0.6, least: 0.9}
    assert memory[other] > memory[middle]
    assert choose_finalists(pool, kls, (), 3)[:2] == [most, other]
    assert choose_finalists(pool, {**kls, other: 0.61}, ("memory_bytes",), 3)[:2] == [most, middle]
    front = [most, middle, least]
    many = {**kls, other: 0.61, ascending[-3]: 0.62, ascending[-4]: 0.63}
    assert set(front) <= set(choose_finalists(pool, many, ("memory_bytes",), 5))


def test_of_a_long_front_both_ends_are_trained_and_not_only_the_least_kls(pool):
    memory = pool.columns["memory_bytes"]
    ascending = sorted(range(len(pool)), key=lambda index: memory[index])
    front = [*ascending[:3], *ascending[-6:]]
    front = [index for number, index in enumerate(front) if number == 0 or memory[index] > memory[front[number - 1]]]
    kls = {index: 1.3 - number / 20 for number, index in enumerate(front)}
    chosen = choose_finalists(pool, kls, ("memory_bytes",), 4)
    assert {front[0], front[-1]} <= set(chosen)
    assert chosen[0] == front[-1]
