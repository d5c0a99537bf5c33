"""Plans are pure and complete; the loader resumes exactly and survives damage."""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.loader import Loader
from data_pipeline.plan import Plan, plan_records
from data_pipeline.records import Records
from latentomni_jax.layout import BatchShape, InputError, LatentPart, TextPart, VisionPart
from tests.processes import environment

SMALL, MIDDLE = BatchShape(tokens=64, targets=8), BatchShape(tokens=128, targets=8)
LARGE = BatchShape(tokens=512, targets=16, frames=8)


def measure(parts) -> BatchShape:
    """A stand-in: text tokens, and frames of the prompt's video."""
    tokens = sum(len(part.token_ids) for part in parts if isinstance(part, TextPart))
    frames = sum(part.grid[0] for part in parts if isinstance(part, VisionPart))
    return BatchShape(tokens=tokens, targets=1, frames=frames)


def collate(examples, shape):
    """A stand-in: text and pixels of a row, summed up."""
    tokens = np.zeros((len(examples), shape.tokens), np.int32)
    sums = np.full(len(examples), -1, np.int64)
    for row, parts in enumerate(examples):
        if parts is None:
            continue
        ids = np.concatenate([part.token_ids for part in parts if isinstance(part, TextPart)])
        tokens[row, : len(ids)] = ids
        media = [p.segment if isinstance(p, LatentPart) else p for p in parts]
        sums[row] = sum(int(p.patches.sum()) for p in media if isinstance(p, VisionPart))
    return {"tokens": tokens, "sums": sums}


def equal(a, b) -> bool:
    same = (a.step, a.epoch, a.shape, a.problems) == (b.step, b.epoch, b.shape, b.problems)
    arrays = zip((a.records, *a.batch.values()), (b.records, *b.batch.values()), strict=True)
    return same and all(np.array_equal(x, y) for x, y in arrays)


# ---------------------------------------------------------------------------- plans


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from([1, 60, 64, 65, 128, 129, 500, 513, None]), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(0, 2**40),
)
def test_each_record_is_in_each_epoch_once(sizes, batch_size, seed):
    shapes = [LARGE, SMALL, MIDDLE]
    needs = [s and BatchShape(tokens=s, targets=1) for s in sizes]
    usable = [i for i, s in enumerate(sizes) if s is not None and s <= 512]
    if not usable:
        with pytest.raises(InputError, match="fits a shape"):
            Plan(needs, shapes, batch_size, seed=seed)
        return
    plan = Plan(needs, shapes, batch_size, seed=seed)
    assert plan.steps_per_epoch == -(-len(usable) // batch_size)  # each shape holds the ones before
    for epoch in (2, 0):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen, with_empty = [], 0
        for step in steps:
            given = plan[step]
            assert (given.step, given.epoch) == (step, epoch)
            assert given.records.shape == (batch_size,)
            real = [int(i) for i in given.records if i >= 0]
            assert real and all(given.shape.fits(needs[i]) for i in real)
            with_empty += len(real) < batch_size
            seen += real
        assert sorted(seen) == usable and with_empty <= 1
        for end in (steps.start + 1, steps.stop, 5 * steps.stop):
            ahead = (plan[step].shape for step in range(steps.start, end))
            assert plan.shapes_of(steps.start, end) == list(dict.fromkeys(ahead))


def test_a_record_takes_the_smallest_shape_unless_it_is_left_over():
    needs = [BatchShape(tokens=50, targets=1)] * 10 + [BatchShape(tokens=100, targets=1)] * 3
    plan = Plan(needs, [LARGE, MIDDLE, SMALL], 4)
    assert list(plan.counts().values()) == [10, 3, 0]
    shapes = collections.Counter(plan[step].shape for step in range(plan.steps_per_epoch))
    assert shapes == {SMALL: 2, MIDDLE: 1, LARGE: 1}


def test_shapes_that_do_not_contain_each_other():
    text, video = BatchShape(tokens=512, targets=1), BatchShape(tokens=64, targets=1, frames=8)
    needs = [BatchShape(tokens=400, targets=1)] * 3 + [video] * 3
    plan = Plan(needs, [text, video], 2)
    counts = {plan.steps_per_epoch}
    for epoch in range(5):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = np.concatenate([plan[step].records for step in steps])
        assert sorted(rows) == [-1, -1, 0, 1, 2, 3, 4, 5]
        counts.add(len(steps))
    assert counts == {4}


def test_a_plan_depends_on_nothing_but_its_arguments():
    needs = [BatchShape(tokens=1 + 7 * i % 130, targets=1) for i in range(100)]
    first, second = (Plan(needs, [SMALL, LARGE, MIDDLE], 8, seed=3) for _ in range(2))
    forwards = [first[step].records for step in range(40)]
    backwards = [second[step].records for step in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert first.fingerprint == second.fingerprint
    other = Plan(needs, [SMALL, LARGE, MIDDLE], 8, seed=4)
    assert other.fingerprint != first.fingerprint
    assert not np.array_equal(other[0].records, first[0].records)
    # The epochs differ, and the numbers are these, whatever NumPy's version.
    assert not np.array_equal(first[0].records, first[first.steps_per_epoch].records)
    assert Plan([SMALL] * 8, [SMALL], 8, seed=1)[0].records.tolist() == [3, 5, 2, 7, 0, 6, 1, 4]
    far = first[10**9]
    assert far.epoch == 10**9 // first.steps_per_epoch


@pytest.mark.parametrize("change", [{"shapes": []}, {"batch_size": 0}, {"seed": -1}])
def test_bad_plans(change):
    options = {"shapes": [SMALL], "batch_size": 2, "seed": 0} | change
    with pytest.raises(InputError):
        Plan([SMALL], options["shapes"], options["batch_size"], seed=options["seed"])


def test_only_the_records_whose_id_matches(records, tokenizer):
    plan, skipped = plan_records(records, tokenizer, measure, [LARGE], 2, only="-000[1-3]$")
    assert not skipped and np.flatnonzero(plan.shape_of >= 0).tolist() == [1, 2, 3]
    with pytest.raises(InputError, match=r"no id of 16 records matches data\.only 'events'"):
        plan_records(records, tokenizer, measure, [LARGE], 2, only="events")
    with pytest.raises(InputError, match=r"no regular expression: '\('"):
        plan_records(records, tokenizer, measure, [LARGE], 2, only="(")


def test_over_long_records_are_named(records, tokenizer):
    shape = BatchShape(tokens=10_000, targets=1, frames=3)
    plan, skipped = plan_records(records, tokenizer, measure, [shape], 2)
    assert {s.id for s in skipped} >= {"tiny-0000", "tiny-0001"}
    assert skipped[0] == ("tiny-0000", "over-long", "frames 4 > 3")
    assert (plan.shape_of < 0).sum() == len(skipped)
    with pytest.raises(InputError, match="'tiny-0000' is over-long: frames 4 > 3"):
        plan_records(records, tokenizer, measure, [shape], 2, on_error="fail")

    def picky(parts):
        if not any(isinstance(part, LatentPart) for part in parts):
            raise InputError("no blocks")
        return measure(parts)

    _, skipped = plan_records(records, tokenizer, picky, [LARGE], 2)
    assert skipped == [(f"tiny-{i:04d}", "unusable", "no blocks") for i in (4, 13, 14)]


# ---------------------------------------------------------------------------- loading


@pytest.fixture(scope="module")
def plan(records, tokenizer):
    wide = [BatchShape(tokens=n, targets=1, frames=8) for n in (256, 512)]
    return plan_records(records, tokenizer, measure, wide, 4, seed=5)[0]


def make_loader(records, plan, tokenizer, **options) -> Loader:
    return Loader(records=records, plan=plan, tokenizer=tokenizer, collate=collate, **options)


def test_batches_are_the_plans(records, plan, tokenizer):
    loader = make_loader(records, plan, tokenizer)
    batches = list(loader.steps(9))
    assert [b.step for b in batches] == list(range(9))
    for batch in batches:
        assert equal(batch, loader.load(plan[batch.step]))
        assert batch.batch["tokens"].shape == (4, batch.shape.tokens) and not batch.problems


def test_hosts_read_disjoint_rows_of_the_same_batch(records, plan, tokenizer):
    whole = make_loader(records, plan, tokenizer)
    hosts = [
        make_loader(records, plan, tokenizer, process_index=i, process_count=2) for i in range(2)
    ]
    for one, first, second in zip(*(x.steps(5) for x in (whole, *hosts)), strict=True):
        assert first.shape == second.shape == one.shape
        np.testing.assert_array_equal(np.concatenate([first.records, second.records]), one.records)
        for key, value in one.batch.items():
            np.testing.assert_array_equal(
                np.concatenate([first.batch[key], second.batch[key]]), value
            )
    with pytest.raises(InputError, match="not a multiple of the 3 processes"):
        make_loader(records, plan, tokenizer, process_count=3)
    with pytest.raises(InputError, match="process 2 of 2"):
        make_loader(records, plan, tokenizer, process_index=2, process_count=2)


def test_an_iterator_resumes_exactly(records, plan, tokenizer):
    loader = make_loader(records, plan, tokenizer)
    straight = list(loader.steps(8))
    steps = loader.steps(8)
    begun = [next(steps) for _ in range(3)]
    assert steps.step == 3
    rest = list(loader.steps(8, start=steps.step))
    assert all(map(equal, [*begun, *rest], straight)) and len(begun) + len(rest) == 8
    assert equal(next(loader.steps(start=6)), straight[6])


def test_baselines_read_no_segments(cache, plan, tokenizer):
    seen = set()

    class Spied(Records):
        def read(self, i, *, segments=True):
            seen.add(segments)
            return super().read(i, segments=segments)

    records = Spied(cache)
    for options, wanted in [
        ({}, True),
        ({"reasoning": "text"}, False),
        ({"reasoning": "none"}, False),
        ({"read_segments": False}, False),
    ]:
        seen.clear()
        loader = make_loader(records, plan, tokenizer, **options)
        loader.load(loader.plan[0])
        assert seen == {wanted}


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_records_are_counted_and_do_not_stop_the_run(
    cache, plan, tokenizer, tmp_path, workers
):
    out = tmp_path / "cache"
    shutil.copytree(cache, out)
    shard = sorted(out.glob("*array_record*"))[1]
    shard.write_bytes(shard.read_bytes()[:5000])
    whole = make_loader(Records(cache), plan, tokenizer)
    steps = make_loader(Records(out), plan, tokenizer, workers=workers).steps(
        2 * plan.steps_per_epoch
    )
    for batch, good in zip(steps, whole.steps(2 * plan.steps_per_epoch), strict=True):
        assert set(batch.problems) == set(batch.records) & {4, 5, 6, 7}
        lost = np.isin(batch.records, [4, 5, 6, 7])
        assert (batch.batch["sums"][lost] == -1).all()
        np.testing.assert_array_equal(batch.batch["sums"][~lost], good.batch["sums"][~lost])
    assert set(steps.problems) == {4, 5, 6, 7}
    assert "'tiny-0004' is unreadable" in steps.problems[4]


def test_no_tensorflow_is_imported(tiny, tmp_path):
    script = (
        "import sys\n"
        "from data_pipeline.cache import build_cache\n"
        "from data_pipeline.loader import Loader\n"
        "from data_pipeline.plan import plan_records\n"
        "from data_pipeline.records import Records\n"
        "from latentomni_jax.media.text import load_tokenizer, train_sentencepiece\n"
        "from tests.data_pipeline.conftest import SPEC\n"
        "from tests.data_pipeline.test_loader import LARGE, collate, measure\n"
        "train_sentencepiece(['a b c'], 'tokenizer', vocab_size=280)\n"
        "tokenizer = load_tokenizer('tokenizer')\n"
        "build_cache(sys.argv[1], 'cache', SPEC, progress=False)\n"
        "records = Records('cache')\n"
        "plan, _ = plan_records(records, tokenizer, measure, [LARGE], 4)\n"
        "assert 'jax' not in sys.modules\n"
        "loader = Loader(records=records, plan=plan, tokenizer=tokenizer, collate=collate)\n"
        "print(len(list(loader.steps(2))), 'tensorflow' in sys.modules)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, tiny],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "2 False\n", ran.stderr
