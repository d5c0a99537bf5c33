"""TMRoPE ids: exact, against the reference where it is right and a NumPy oracle where it is not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentomni_jax.backbone.audio import num_audio_tokens
from latentomni_jax.backbone.positions import (
    Kind,
    audio_span,
    temporal_ids,
    text_positions,
    vision_span,
)
from tests.reference import make_ported, make_reference

CONFIG = make_ported()[0]
IDS = {
    Kind.VISION_START: CONFIG.vision_start_id,
    Kind.VISION_END: CONFIG.vision_end_id,
    Kind.AUDIO_START: CONFIG.audio_start_id,
    Kind.AUDIO_END: CONFIG.audio_end_id,
    Kind.AUDIO: CONFIG.audio_token_id,
}
sides = st.integers(1, 7).map(lambda n: 2 * n)
grids = st.tuples(st.integers(1, 9), sides, sides)
mel_frames = st.integers(5, 1500)
items = st.one_of(
    st.tuples(st.just("image"), st.tuples(st.just(1), sides, sides)),
    st.tuples(st.just("audio"), mel_frames),
    st.tuples(st.just("video"), grids, st.sampled_from([1.0, 0.5, 2.0, 4.7, 0.33]), mel_frames),
)


def lay_out(prompt, *, with_sound, clock="nominal"):
    """Our ids and positions, and what the reference's `get_rope_index` wants to know."""
    ids, positions, start = [], [], 0
    images, videos, seconds_per_grid, mels = [], [], [], []
    for text_length, item in prompt:
        ids += [7] * text_length
        positions.append(text_positions(start, text_length))
        start += text_length
        if item is None:
            continue
        names = dict(IDS)
        if item[0] == "audio":
            span = audio_span(start, num_audio_tokens(item[1]))
            mels.append(item[1])
        elif item[0] == "image":
            span = vision_span(CONFIG, start, item[1], np.zeros(1), clock=clock)
            names[Kind.VISION] = CONFIG.image_token_id
            images.append(item[1])
        else:
            _, grid, step, frames = item
            span = vision_span(
                CONFIG,
                start,
                grid,
                np.arange(grid[0], dtype=np.float32) * np.float32(step),
                num_audio_tokens=num_audio_tokens(frames) if with_sound else None,
                clock=clock,
            )
            names[Kind.VISION] = CONFIG.video_token_id
            videos.append(grid)
            seconds_per_grid.append(step)
            mels += [frames] if with_sound else []
        ids += [names[Kind(kind)] for kind in span.kinds]
        positions.append(span.position_ids)
        start = span.next_start
    arguments = {
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor(videos) if videos else None,
        "use_audio_in_video": with_sound,
        "audio_seqlens": torch.tensor(mels) if mels else None,
        "second_per_grids": torch.tensor(seconds_per_grid) if videos else None,
    }
    return np.array(ids), np.concatenate(positions, axis=1), arguments


prompts = st.lists(st.tuples(st.integers(1, 9), items), min_size=1, max_size=4)


@given(prompts, st.booleans(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_equal_to_the_reference_on_random_layouts(prompt, with_sound, tail):
    """Images, recordings, several videos all with or all without sound, odd lengths and steps."""
    ids, ours, arguments = lay_out([*prompt, (tail, None)], with_sound=with_sound)
    if arguments["image_grid_thw"] is None and arguments["video_grid_thw"] is None:
        # The reference numbers prompts without pictures sequentially, whatever is in them.
        np.testing.assert_array_equal(ours, np.broadcast_to(np.arange(len(ids)), ours.shape))
        return
    tokens = torch.tensor(ids)[None]
    expected, delta = make_reference().model.get_rope_index(
        tokens, attention_mask=torch.ones_like(tokens), **arguments
    )
    np.testing.assert_array_equal(ours, expected[:, 0].numpy())
    assert ours.max() + 1 - len(ids) == int(delta)


def test_the_reference_suite_own_case():
    """`test_get_rope_index_video_with_audio` of transformers: 3 patches of 1 s, 300 mel frames."""
    import dataclasses

    config = dataclasses.replace(
        CONFIG, vision=dataclasses.replace(CONFIG.vision, merge_size=1), positions_per_second=25
    )
    span = vision_span(config, 2, (3, 2, 2), np.arange(3.0), num_audio_tokens=75, clock="nominal")
    time = [2, 2, *[3] * 4, *[28] * 4, *range(3, 53), *[53] * 4, *range(53, 78), 78, 78]
    assert list(span.position_ids[0]) == time
    assert list(span.position_ids[1][2:10]) == [3, 3, 4, 4, 3, 3, 4, 4]
    assert list(span.position_ids[2][2:10]) == [3, 4, 3, 4, 3, 4, 3, 4]
    assert span.next_start == 79


def oracle_video(start, grid, seconds, num_audio):
    """The true clock, token by token in plain Python: the specification, not the implementation."""
    rows, columns = grid[1] // 2, grid[2] // 2
    chunks = {}
    for second in seconds:
        for row in range(rows):
            for column in range(columns):
                t = int(25 * float(second) + 1e-3)
                chunks.setdefault((int((float(second) + 4e-5) // 2), 0), []).append(
                    (start + 1 + t, start + 1 + row, start + 1 + column)
                )
    for k in range(num_audio or 0):
        chunks.setdefault((k // 50, 1), []).append((start + 1 + k,) * 3)
    ordered = [chunks[key] for key in sorted(chunks)]
    bos = [(start,) * 3] * (1 if num_audio is None else 2)
    end = max(max(ids) for ids in ordered[-1]) + 1
    if num_audio is None:  # the reference lays a silent video out in one piece
        end = max(max(ids) for chunk in ordered for ids in chunk) + 1
    eos = [(end,) * 3] * len(bos)
    return np.array([*bos, *(ids for chunk in ordered for ids in chunk), *eos]).T


@given(
    grids,
    st.one_of(st.none(), st.integers(1, 400)),
    st.integers(0, 50),
    st.lists(st.floats(0.02, 6.0), min_size=9, max_size=9),
)
@settings(max_examples=150, deadline=None)
def test_true_clock_equals_the_oracle(grid, num_audio, start, steps):
    """Irregular frame times, gaps of several chunks, sound longer and shorter than the pictures."""
    seconds = np.cumsum([0.0, *steps])[: grid[0]].astype(np.float32)
    span = vision_span(CONFIG, start, grid, seconds, num_audio_tokens=num_audio)
    np.testing.assert_array_equal(span.position_ids, oracle_video(start, grid, seconds, num_audio))


@given(prompts, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_clocks_agree_at_two_frames_per_second(prompt, tail):
    at_two_fps = [
        (length, (item[0], item[1], 1.0, item[3]) if item[0] == "video" else item)
        for length, item in prompt
    ]
    nominal = lay_out([*at_two_fps, (tail, None)], with_sound=True)[1]
    true = lay_out([*at_two_fps, (tail, None)], with_sound=True, clock="true")[1]
    np.testing.assert_array_equal(nominal, true)


@given(grids, grids, mel_frames, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_videos_mixed_in_sound_are_each_laid_out_alone_and_shifted(first, second, frames, gap):
    """The reference is silently wrong here: it takes one answer for all videos of a prompt."""
    audio = num_audio_tokens(frames)
    with_sound = vision_span(CONFIG, 0, first, np.arange(first[0]), num_audio_tokens=audio)
    start = with_sound.next_start + gap
    silent = vision_span(CONFIG, start, second, np.arange(second[0]))
    alone = oracle_video(0, second, np.arange(second[0], dtype=np.float32), None)
    np.testing.assert_array_equal(silent.position_ids, alone + start)
    np.testing.assert_array_equal(
        with_sound.position_ids,
        oracle_video(0, first, np.arange(first[0], dtype=np.float32), audio),
    )


def test_times_just_below_a_multiple_are_not_rounded_down():
    times = np.array([0.0, 0.04, 0.08, 1.0, 1.001, 29.0 * 1.001], np.float32)
    assert list(temporal_ids(CONFIG, times, "true")) == [0, 1, 2, 25, 25, 725]


@pytest.mark.parametrize("clock", ["nominal", "true"])
def test_rows_count_every_feature_once(clock):
    span = vision_span(CONFIG, 0, (5, 8, 6), np.arange(5), num_audio_tokens=140, clock=clock)
    assert sorted(span.rows[span.kinds == Kind.VISION]) == list(range(5 * 4 * 3))
    assert sorted(span.rows[span.kinds == Kind.AUDIO]) == list(range(140))
    assert set(span.rows[np.isin(span.kinds, (Kind.VISION, Kind.AUDIO), invert=True)]) == {-1}
