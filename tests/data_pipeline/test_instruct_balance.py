"""Of categories as much is kept as the ratio of neighbours allows, always the same samples."""

import itertools
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.instruct.balance import caps, choose, rank
from latentomni_jax.layout import InputError

RATIOS = {  # as they are written, exactly
    1: Fraction(1),
    1.1: Fraction(11, 10),
    1.5: Fraction(3, 2),
    2.5: Fraction(5, 2),
    3.0: Fraction(3),
    3.3: Fraction(33, 10),
}


def is_allowed(kept, exact):
    return all(b <= exact * a for a, b in itertools.pairwise(sorted(kept)))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(sorted(RATIOS)), st.integers(0, 4))
def test_no_allowed_choice_keeps_more(counts, ratio, least):
    found = caps({str(i): n for i, n in enumerate(counts)}, ratio, least)
    assert list(found) == [str(i) for i in range(len(counts))]
    assert all(found[str(i)] == 0 for i, n in enumerate(counts) if n < max(least, 1))
    live = {str(i): n for i, n in enumerate(counts) if n >= max(least, 1)}
    assert all(1 <= found[name] <= n for name, n in live.items())
    assert is_allowed([found[name] for name in live], RATIOS[ratio])
    every = itertools.product(*(range(1, n + 1) for n in live.values()))
    best = max(sum(kept) for kept in every if is_allowed(kept, RATIOS[ratio]))
    assert sum(found.values()) == best


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=12), st.sampled_from(sorted(RATIOS)))
def test_no_single_category_can_keep_one_more(counts, ratio):
    named = {f"c{i}": n for i, n in enumerate(counts)}
    found = caps(named, ratio)
    kept = {name: n for name, n in found.items() if n}
    assert is_allowed(kept.values(), RATIOS[ratio]) and len(kept) == sum(n > 0 for n in counts)
    for name in kept:
        if kept[name] < named[name]:
            assert not is_allowed((kept | {name: kept[name] + 1}).values(), RATIOS[ratio])


def test_a_ratio_is_the_decimal_that_is_written():
    """3.3 as a float is a little less: 32 would be kept."""
    assert 10 * Fraction(3.3) < 33
    assert caps({"a": 10, "b": 99}, 3.3) == {"a": 10, "b": 33}
    assert caps({"b": 99, "a": 3}, 2.5) == {"b": 7, "a": 3}


def test_without_a_limit_only_rare_categories_go():
    assert caps({"a": 1, "b": 100, "c": 4, "d": 0}, 0, 4) == {"a": 0, "b": 100, "c": 4, "d": 0}
    assert caps({}, 3) == {}


@pytest.mark.parametrize("ratio", [0.5, -1, float("nan"), float("inf")])
def test_no_ratio(ratio):
    with pytest.raises(InputError, match="ratio should be 0 or at least 1"):
        caps({"a": 1}, ratio)


@given(st.sets(st.text(max_size=6), max_size=20), st.integers(0, 12), st.integers(), st.randoms())
def test_what_is_chosen_does_not_depend_on_who_saw_what(ids, cap, seed, random):
    shuffled = random.sample(sorted(ids), len(ids))
    cut = random.randint(0, len(ids))
    found = choose(shuffled, cap, seed)
    assert found <= ids and len(found) == min(cap, len(ids))
    parts = choose(shuffled[:cut], cap, seed) | choose(shuffled[cut:], cap, seed)
    assert choose(parts, cap, seed) == choose(sorted(ids), cap, seed) == found
    assert found <= choose(ids, cap + 1, seed)


def test_every_sample_has_the_same_chance():
    """Of 10 samples 5, over 400 seeds: each 200 times, with a deviation of 10."""
    ids = [f"clip-{i}" for i in range(10)]
    times = dict.fromkeys(ids, 0)
    for seed in range(400):
        for id in choose(ids, 5, seed):
            times[id] += 1
    assert all(150 < n < 250 for n in times.values())
    ranks = [rank(seed, id) for seed in range(20) for id in ids]
    assert len(set(ranks)) == 200 and all(0 <= r < 1 << 64 for r in ranks)
