"""Which positions are followed, and the sums of their Jacobians, against adding one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mnemoscope.analyzer.groups import Groups
from mnemoscope.analyzer.sums import Accumulator, Size, plan

SIZES, E = {"h": 3, "c": 2}, 2


def windows(layout, length, delays, jacobian):
    """Windows as the products give them: per stretch, in time, delays of its inputs alone."""
    for low, high in layout.stretches:
        for t in range(low, min(high + delays, length)):
            first = max(0, t - high + 1)
            last = min(t - low, delays)
            if first <= last:
                yield t, t - np.arange(first, last + 1), np.concatenate(
                    [np.stack([jacobian(n, t, tau) for tau in range(first, last + 1)])
                     for n in SIZES], -1
                )  # fmt: skip


def split(jacobians):
    """The states of a window, which lie side by side."""
    return dict(zip(SIZES, np.split(jacobians, np.cumsum([*SIZES.values()])[:-1], -1), strict=True))


def random_jacobians(seed, dtype):
    cache = {}
    rng = np.random.default_rng(seed)

    def jacobian(name, t, tau):
        key = (name, t, tau)
        if key not in cache:
            cache[key] = rng.standard_normal((E, SIZES[name])).astype(dtype)
        return cache[key]

    return jacobian


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 60),
    delays=st.integers(0, 7),
    blocks=st.integers(2, 7),
    share=st.one_of(st.none(), st.floats(0.01, 1.5)),
    seed=st.integers(0, 2**32),
)
def test_sums_are_those_of_adding_one_by_one(length, delays, blocks, share, seed):
    delays = min(delays, length - 1)
    positions = None if share is None else max(1, int(share * length))
    layout = plan(length, delays, blocks=blocks, positions=positions, seed=seed)
    rng = np.random.default_rng(seed)
    groups = {"all": np.ones(length, bool), "some": rng.random(length) < 0.4,
              "none": np.zeros(length, bool)}  # fmt: skip
    jacobian = random_jacobians(seed, np.float64)
    parts = [slice(0, 1), slice(1, E)] if seed % 2 else [slice(0, E)]
    sums = Accumulator(layout, delays, SIZES, E, np.float64, Groups.from_masks(groups), parts)
    shape = (layout.blocks, len(groups), delays + 1)
    count, half_count = np.zeros(shape, int), np.zeros(shape[1:], int)
    total = {n: np.zeros((*shape, k, E)) for n, k in SIZES.items()}
    half = {n: np.zeros((*shape[1:], k, E)) for n, k in SIZES.items()}
    for t, inputs, jacobians in windows(layout, length, delays, jacobian):
        for part in parts:
            sums.add(t, inputs, jacobians[:, part], part)
        for i, source in enumerate(inputs):
            for g, mask in enumerate(groups.values()):
                if not mask[source]:
                    continue
                where = (layout.block[source], g, t - source)
                count[where] += 1
                half_count[where[1:]] += layout.half[source] == 0
                for n, j in split(jacobians).items():
                    total[n][where] += j[i].T
                    if layout.half[source] == 0:
                        half[n][where[1:]] += j[i].T
    for n, found in sums.result().items():
        np.testing.assert_array_equal(found.block_count, count)
        np.testing.assert_array_equal(found.half_count, half_count)
        np.testing.assert_allclose(found.block_sum, total[n], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.half_sum, half[n], rtol=0, atol=1e-12)
    if positions is None or positions >= length:
        np.testing.assert_array_equal(count[:, 0].sum(0), length - np.arange(delays + 1))


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 3000),
    delays=st.integers(0, 60),
    blocks=st.integers(2, 30),
    share=st.floats(0.0005, 1.2),
    seed=st.integers(0, 2**32),
)
def test_plan_of_a_sample(length, delays, blocks, share, seed):
    positions = max(1, int(share * length))
    layout = plan(length, delays, blocks=blocks, positions=positions, seed=seed)
    low, high = layout.stretches.T
    assert (low < high).all()
    assert low[0] >= 0
    assert high[-1] <= length
    assert (low[1:] >= high[:-1]).all()
    assert layout.inputs == min(positions, length)
    followed = np.zeros(length, bool)
    for a, b in layout.stretches:
        followed[a:b] = True
    np.testing.assert_array_equal(layout.block >= 0, followed)
    np.testing.assert_array_equal(layout.half >= 0, followed)
    assert set(layout.block[followed]) == set(range(layout.blocks))
    again = plan(length, delays, blocks=blocks, positions=positions, seed=seed)
    np.testing.assert_array_equal(again.stretches, layout.stretches)
    np.testing.assert_array_equal(again.half, layout.half)


@pytest.mark.parametrize(("length", "delays", "positions"), [(1000, 50, None), (1000, 0, 100),
                                                             (9999, 5, 3000)])  # fmt: skip
def test_halves_are_balanced(length, delays, positions):
    layout = plan(length, delays, blocks=10, positions=positions, seed=3)
    first, second = (int((layout.half == i).sum()) for i in (0, 1))
    # The numbers of chunks differ by one at most, and chunks at the ends may be short.
    chunk = 2 * (delays + 1)
    assert abs(first - second) <= chunk * (1 + len(layout.stretches))
    assert min(first, second) > 0


def test_neighbours_within_the_largest_delay_mostly_share_a_half():
    layout = plan(10_000, 20, blocks=10, seed=0)
    changes = np.flatnonzero(np.diff(layout.half)) + 1
    assert np.diff(changes).min() >= 41  # chunks of 42, cut to one size
    uneven = plan(205, 50, blocks=10, seed=3)
    assert abs((uneven.half == 0).mean() - 0.5) < 0.01


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), number=st.integers(1, 5), flush=st.sampled_from([3, 10**6]))
def test_any_inputs_any_groups_staged_or_not(seed, number, flush):
    """A few inputs of each step, groups that overlap, single precision; both ways of adding."""
    rng = np.random.default_rng(seed)
    length, delays = 80, 6
    layout = plan(length, delays, blocks=3, seed=seed)
    masks = {f"g{i}": rng.random(length) < rng.random() for i in range(number)}
    follow, jacobian = rng.random(length) < 0.6, random_jacobians(seed, np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mnemoscope.analyzer.sums._FLUSH", flush)
        sums = Accumulator(layout, delays, SIZES, E, np.float32, Groups.from_masks(masks))
        total = np.zeros((3, number, delays + 1, SIZES["h"], E))
        half = np.zeros(total.shape[1:])
        for t in range(length):
            inputs = np.array([i for i in range(t, max(-1, t - delays - 1), -1) if follow[i]], int)
            if not inputs.size:
                continue
            window = np.stack([np.concatenate([jacobian(n, t, t - i) for n in SIZES], -1)
                               for i in inputs])  # fmt: skip
            sums.add(t, inputs, window)
            for i in inputs:
                for g, mask in enumerate(masks.values()):
                    if mask[i]:
                        value = jacobian("h", t, t - i).T
                        total[layout.block[i], g, t - i] += value
                        half[g, t - i] += value * (layout.half[i] == 0)
        found = sums.result()["h"]
    np.testing.assert_allclose(found.block_sum, total, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.half_sum, half, rtol=0, atol=2e-5)


def test_forty_classes_of_a_large_model_fit(tmp_path):
    """Totals of 40 classes and all, delays 0 to 50, both states of an LSTM of 64/256."""
    length = 200_000
    layout = plan(length, 50, blocks=10, seed=0)
    groups = Groups.from_numbers([f"c{i}" for i in range(40)], np.arange(length) % 40).with_all()
    size = Size.of(layout, groups, 51, 2 * 256 * 64, np.dtype(np.float32))
    assert size.filed
    assert size.staging < 0.6e9


def test_seeds_differ():
    plans = [plan(5000, 10, blocks=10, positions=500, seed=s) for s in (0, 1)]
    assert (plans[0].stretches != plans[1].stretches).any()
    halves = [plan(5000, 10, blocks=10, seed=s).half for s in (0, 1)]
    assert (halves[0] != halves[1]).any()


def test_blocks_are_contiguous_and_even():
    layout = plan(1003, 5, blocks=10, seed=0)
    assert (np.diff(layout.block) >= 0).all()
    sizes = np.bincount(layout.block)
    assert sizes.max() - sizes.min() <= 1


def test_single_precision_does_not_drift():
    # 20,000 additions of 0.1 in float32 alone would be off by 1e-4; staging keeps it near eps.
    length = 20_000
    layout = plan(length, 0, blocks=2, seed=0)
    sums = Accumulator(layout, 0, {"h": 1}, 1, np.float32, Groups.everything(length))
    value = np.full((1, 1, 1), 0.1, np.float32)
    for t in range(length):
        sums.add(t, np.array([t]), value)
    (found,) = sums.result().values()
    exact = length * float(np.float32(0.1))
    # Each staging sum of n terms is off by n eps at most, half of that on average.
    assert abs(float(found.block_sum.sum()) - exact) < 256 * np.finfo(np.float32).eps * exact
    drift = abs(float(np.add.accumulate(np.full(length, 0.1, np.float32))[-1]) - exact)
    assert abs(float(found.block_sum.sum()) - exact) < drift / 3


def test_blocks_taken_in_turns_by_many_stretches():
    # Stretch i counts in block i mod blocks: staging sums come and go, and nothing is lost.
    length, blocks = 4000, 7
    layout = plan(length, 1, blocks=blocks, positions=600, seed=1)
    assert len(layout.stretches) > blocks
    jacobian = random_jacobians(0, np.float32)
    sums = Accumulator(layout, 1, SIZES, E, np.float32, Groups.everything(length))
    total = 0
    for t, inputs, jacobians in windows(layout, length, 1, jacobian):
        sums.add(t, inputs, jacobians)
        total = total + split(jacobians)["h"].astype(np.float64).sum(0).T
    found = sums.result()["h"]
    np.testing.assert_allclose(found.block_sum.sum((0, 1, 2)), total, rtol=0, atol=1e-3)
