"""Training examples: rows as decoding makes them, targets, features, anchors, padding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from latentomni_jax.backbone.audio import num_audio_tokens
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.latent.anchors import anchors
from latentomni_jax.latent.encode import encode_media, normalise
from latentomni_jax.latent.examples import collate_examples, lay_out_example, needed_shape
from latentomni_jax.latent.objective import count
from latentomni_jax.latent.trajectory import lay_out
from latentomni_jax.layout import (
    AudioPart,
    BatchShape,
    InputError,
    LatentPart,
    Role,
    TextPart,
    VisionPart,
)
from latentomni_jax.model import LatentOmni
from tests.examples import MEDIA, SPEC, ExampleMaker, make_batch, mixed_examples, roomy_shape
from tests.reference import make_ported, make_reference
from tests.torch_objective import encode, pool

SLOTS = (Role.LATENT_VISUAL, Role.LATENT_AUDIO)


def decoded(spec, prompt):
    """Ids and TMRoPE ids of every position that the decoder feeds, read off step by step."""
    config, params = make_ported()
    kernel = params["text"]["lm_head"]["kernel"]
    kernel = kernel.at[:, spec.trigger_id].multiply(12.0)  # opens blocks of its own accord
    params = params | {"text": params["text"] | {"lm_head": {"kernel": kernel}}}
    model = LatentOmni(params, config, spec)
    tokens, positions = [], []
    prefill, decode = model._prefill, model._decode

    def first(*args):
        state = prefill(*args)
        tokens.append(int(state.token[0]))
        positions.append(int(state.position[0]))
        return state

    def one_by_one(spec, params, lengths, state, limit, media, given):
        for step in range(int(limit)):
            state = decode(spec, params, lengths, state, np.int32(step + 1), media, given)
            tokens.append(int(state.token[0]))
            positions.append(int(state.position[0]))
        return state

    model._prefill, model._decode = first, one_by_one
    options = {"latents": "force", "max_blocks": 2, "max_new_tokens": 30, "temperature": 1.0}
    generated = model.generate([prompt], **options)[0].token_ids
    n = len(generated)
    assert tokens[:n] == list(generated)
    return generated, np.array(positions[:n])


@pytest.mark.parametrize(
    "apply",
    ["feature", "position", *(pytest.param(x, marks=pytest.mark.slow) for x in ("both", "none"))],
)
def test_rows_are_what_the_decoder_makes(apply):
    spec = dataclasses.replace(SPEC, ospe_apply=apply)
    config = make_ported()[0]
    prompt = ExampleMaker(1).prompt("video_with_sound")
    prompt[1] = dataclasses.replace(prompt[1], patches=prompt[1].patches.astype(np.float32))
    ids, positions = decoded(spec, prompt)
    # The same tokens as a training example: a stretch of text or a block after the other.
    parts = list(prompt)
    block, place = spec.num_latents + 2, 0
    while place < len(ids):
        if ids[place] == spec.trigger_id:
            parts.append(LatentPart((0.0, 2.0)))
            place += block
            continue
        parts.append(TextPart(ids[place : place + 1], Role.ASSISTANT_TEXT))
        place += 1
    row = lay_out(config, parts, spec=spec)
    start = len(row.token_ids) - len(ids)
    np.testing.assert_array_equal(row.token_ids[start:], ids)
    np.testing.assert_array_equal(row.position_ids[:, start:], np.tile(positions, (3, 1)))
    # Both blocks are really there, text follows them, and the clock is in the ids where asked for.
    triggers = np.flatnonzero(ids == spec.trigger_id)
    assert len(triggers) == 2 and triggers[1] + block < len(ids)
    steps = np.diff(positions[triggers[0] :][:block])
    assert (steps == 1).all() == (apply in ("feature", "none"))


def test_positions_of_a_block_in_numbers():
    """K_v = 4, K_a = 2, 5 s: slots at 0.625, 1.875, .. and 1.25, 3.75 s, 25 ids a second."""
    parts = [
        TextPart(np.arange(1, 4, dtype=np.int32)),
        LatentPart((7.0, 9.0)),
        TextPart(np.arange(1, 3, dtype=np.int32), Role.ASSISTANT_TEXT),
    ]
    config = make_ported()[0]
    row = lay_out(config, parts, spec=dataclasses.replace(SPEC, ospe_apply="position"))
    expected = [0, 1, 2, 3, 4 + 15, 4 + 46, 4 + 78, 4 + 109, 4 + 31, 4 + 93, 114, 115, 116]
    np.testing.assert_array_equal(row.position_ids, np.tile(expected, (3, 1)))
    row = lay_out(config, parts, spec=SPEC)
    np.testing.assert_array_equal(row.position_ids, np.tile(np.arange(13), (3, 1)))
    assert list(row.roles[3:11]) == [Role.TRIGGER, *[SLOTS[0]] * 4, *[SLOTS[1]] * 2, Role.STOP]


def test_targets_are_what_the_assistant_says():
    config = make_ported()[0]
    examples = mixed_examples()
    batch = make_batch(config, examples)
    for b, parts in enumerate(examples):
        said, place = [], 0
        row = lay_out(config, parts, spec=SPEC)
        for i, part in enumerate(parts):
            if isinstance(part, LatentPart):
                said.append((place, SPEC.trigger_id))
                place += SPEC.num_latents + 2
            elif isinstance(part, TextPart):
                if part.role != Role.PROMPT_TEXT:
                    said += [(place + k, token) for k, token in enumerate(part.token_ids)]
                place += len(part.token_ids)
            else:
                place = np.flatnonzero(row.items == i)[-1] + 2 + _has_both(part)
        real = batch.target_weights[b] > 0
        assert list(batch.target_positions[b][real] + 1) == [place for place, _ in said]
        assert list(batch.target_ids[b][real]) == [token for _, token in said]
        assert set(batch.target_weights[b]) <= {0.0, 1.0}
        # What follows a block is predicted from the stop token, which nobody predicts.
        roles = batch.roles[b]
        after = np.flatnonzero(roles == Role.STOP) + 1
        assert set(after - 1) <= set(batch.target_positions[b][real])
        assert SPEC.stop_id not in batch.target_ids[b] and SPEC.pad_id not in batch.target_ids[b]
        assert not set(after - 2) & set(batch.target_positions[b][real])
    assert batch.target_weights.sum() == count(SPEC, batch).targets


def _has_both(part):
    return int(isinstance(part, VisionPart) and part.mel is not None)


def test_features_and_anchors_are_those_of_their_media():
    """The feature table, read through the batch's indices, is the reference encoders' output."""
    config, params = make_ported()
    examples = [*mixed_examples(), None]
    batch = make_batch(config, examples)
    encode_all = jax.jit(lambda b: encode_media(Thinker(config), MEDIA, params, b, 4))
    table = np.asarray(encode_all(batch))
    triggers = batch.triggers
    for b, parts in enumerate(examples[:-1]):
        row = lay_out(config, parts, spec=SPEC)
        n = len(row.token_ids)
        blocks = [part for part in parts if isinstance(part, LatentPart)]
        for i, part in enumerate(parts):
            if not isinstance(part, VisionPart | AudioPart):
                continue
            seen, heard = (x.detach().numpy() for x in encode(make_reference(), MEDIA, part))
            for role, features in ((Role.PROMPT_VIDEO, seen), (Role.PROMPT_AUDIO, heard)):
                at = np.flatnonzero((row.items == i) & (row.roles == role))
                got = table[b, batch.feature_index[b, at]]
                np.testing.assert_allclose(got, features, atol=1e-5, rtol=1e-4)
        is_media = np.isin(row.roles, (Role.PROMPT_VIDEO, Role.PROMPT_AUDIO))
        np.testing.assert_array_equal(batch.feature_index[b, :n] >= 0, is_media)
        assert (batch.feature_index[b, n:] == -1).all()
        np.testing.assert_array_equal(
            triggers[b][triggers[b] >= 0], np.flatnonzero(row.token_ids == SPEC.trigger_id)
        )
        for block, part in enumerate(blocks):
            seen, heard = (x.detach() for x in encode(make_reference(), MEDIA, part.segment))
            for rows, features in ((batch.visual_rows, seen), (batch.audio_rows, heard)):
                mine = rows[b, block]
                assert (mine[len(features) :] == -1).all()
                got = table[b, mine[mine >= 0]]
                np.testing.assert_allclose(got, features.numpy(), atol=1e-5, rtol=1e-4)
        assert (batch.visual_rows[b, len(blocks) :] == -1).all()
        assert (batch.audio_rows[b, len(blocks) :] == -1).all()
    assert (batch.visual_rows[-1] == -1).all() and (triggers[-1] == -1).all()


def test_pixels_are_normalised_as_the_processor_does_it():
    """u8 patches of the batch, scaled on the device, are `patchify`'s floats."""
    pixels = np.arange(256, dtype=np.uint8).repeat(5)[: 3 * 2 * 14 * 14].reshape(1, -1)
    scale, shift = MEDIA.normalisation()
    np.testing.assert_allclose(
        normalise(MEDIA, jnp.asarray(pixels), jnp.float32), pixels * scale + shift, atol=1e-6
    )


@pytest.mark.parametrize("power", [1, 2])
def test_anchors_equal_the_formula(power):
    """Windows, interpolation, one feature, exactly K features and none, against plain loops."""
    rng = np.random.default_rng(0)
    counts = [(0, 7), (1, 0), (3, 1), (4, 2), (5, 3), (24, 25), (23, 2), (8, 5)]
    table = rng.normal(size=(2, 40, 16)).astype(np.float32)
    visual, audio = np.full((2, 4, 30), -1, np.int32), np.full((2, 4, 27), -1, np.int32)
    for place, sizes in enumerate(counts):
        for rows, size in zip((visual, audio), sizes, strict=True):
            rows[divmod(place, 4)][:size] = np.sort(rng.choice(40, size, replace=False))
    run = jax.jit(anchors, static_argnums=(0, 4))
    got, mask = run(SPEC, jnp.asarray(table), visual, audio, power)
    for place, sizes in enumerate(counts):
        b, n = divmod(place, 4)
        expected = []
        for rows, size, slots in zip((visual, audio), sizes, (4, 2), strict=True):
            features = torch.tensor(table[b, rows[b, n, :size]])
            expected += pool(features, slots, power)
        for slot, anchor in enumerate(expected):
            assert bool(mask[b, n, slot]) == (anchor is not None)
            wanted = np.zeros(16) if anchor is None else anchor.numpy()
            np.testing.assert_allclose(got[b, n, slot], wanted, atol=1e-6, rtol=1e-5)


def test_anchors_from_the_prompt_are_cut_by_time():
    """A video of 5 patches at 0..4 s with 4.87 s of sound; sound tokens are 1/25 s."""
    config = make_ported()[0]
    make = ExampleMaker(0)
    tokens = 12  # of a temporal patch: 8 x 6 patches

    def rows_of(seconds):
        parts = [*make.prompt("video_with_sound"), make.text(3, Role.ASSISTANT_TEXT)]
        parts.append(LatentPart(seconds))
        example = lay_out_example(config, SPEC, parts, "prompt")
        (video, visual), (sound, audio) = example.anchors[0]
        assert video == 0 == sound and len(example.media) == 1
        return visual, audio

    visual, audio = rows_of((1.0, 3.0))
    np.testing.assert_array_equal(visual, np.arange(tokens, 3 * tokens))
    np.testing.assert_array_equal(audio, np.arange(25, 75))
    visual, audio = rows_of((1.2, 1.8))  # between two patches: the picture on the screen
    np.testing.assert_array_equal(visual, np.arange(tokens, 2 * tokens))
    np.testing.assert_array_equal(audio, np.arange(30, 45))
    visual, audio = rows_of((3.5, 99.0))
    np.testing.assert_array_equal(visual, np.arange(4 * tokens, 5 * tokens))
    np.testing.assert_array_equal(audio, np.arange(87, num_audio_tokens(487)))


def test_prompt_and_segment_anchors_point_into_the_same_table():
    config = make_ported()[0]
    parts = ExampleMaker(6).example("video_with_sound", ["sound_and_video", "video"])
    by_segment, by_prompt = (
        make_batch(config, [parts], source=source) for source in ("segment", "prompt")
    )
    assert by_segment.segments.patch_lengths.any() and by_segment.segments.mel_lengths.any()
    assert not by_prompt.segments.patch_lengths.any()  # they are not encoded
    assert not by_prompt.segments.mel_lengths.any()
    at = by_prompt.feature_index[0]
    assert set(by_prompt.visual_rows[0, 0]) - {-1} <= set(at)
    assert set(by_prompt.audio_rows[0, 0]) - {-1} <= set(at)
    at = by_segment.feature_index[0]
    assert not (set(by_segment.visual_rows[0, 0]) - {-1}) & set(at)
    assert not (set(by_segment.audio_rows[0, 0]) - {-1}) & set(at)


def test_what_cannot_be_an_example_is_refused():
    config = make_ported()[0]
    make = ExampleMaker(0)
    with pytest.raises(InputError, match="nothing to learn"):
        lay_out_example(config, SPEC, make.prompt("text"))
    with pytest.raises(InputError, match="no media"):
        lay_out_example(config, SPEC, make.example("video", [None]))
    with pytest.raises(InputError, match="no video or sound"):
        lay_out_example(config, SPEC, make.example("image", [None]), "prompt")
    silent = LatentPart((0.0, 1.0), AudioPart(make.mel(2)))
    with pytest.raises(InputError, match="without pictures and without sound"):
        parts = [*make.prompt("text"), silent, make.text(3, Role.ANSWER)]
        lay_out_example(config, SPEC, parts)
    floats = make.vision((1, 2, 2))
    floats = dataclasses.replace(floats, patches=floats.patches.astype(np.float32))
    with pytest.raises(InputError, match="u8 patches"):
        make_batch(config, [[floats, make.text(3, Role.ANSWER)]])


SIZES = [field.name for field in dataclasses.fields(BatchShape)]


@pytest.mark.parametrize("field", SIZES)
def test_an_example_that_does_not_fit_is_an_error(field):
    config = make_ported()[0]
    examples = [lay_out_example(config, SPEC, parts) for parts in mixed_examples()[1:3]]
    need = needed_shape(config, examples[1])
    exact = dataclasses.replace(need, patches=64)
    collate_examples(config, MEDIA, SPEC, [None, examples[1]], exact)  # exactly enough is enough
    small = dataclasses.replace(exact, **{field: getattr(need, field) - 1})
    with pytest.raises(InputError, match="row 1 needs"):
        collate_examples(config, MEDIA, SPEC, [None, examples[1]], small)


def test_padding_and_batch_mates_change_nothing_of_a_row():
    """A row's arrays are the same alone and among others, and beyond them there is only padding."""
    config = make_ported()[0]
    laid_out = [lay_out_example(config, SPEC, parts) for parts in mixed_examples()]
    shape = roomy_shape(needed_shape(config, example) for example in laid_out)
    together = collate_examples(config, MEDIA, SPEC, [*laid_out, None], shape)
    for b, example in enumerate([*laid_out, None]):
        alone = collate_examples(config, MEDIA, SPEC, [example], shape)
        jax.tree.map(
            np.testing.assert_array_equal,
            together.map_rows(lambda x, axis, b=b: np.take(x, b, axis)),
            alone.map_rows(lambda x, axis: np.take(x, 0, axis)),
        )
    empty = jax.tree.map(lambda x: x[-1], together)
    assert not empty.lengths and not empty.target_weights.any() and not empty.roles.any()
    for media in (empty.prompt, empty.segments):
        assert not media.patch_lengths.any() and not media.mel_lengths.any()
    assert [float(n) for n in count(SPEC, alone)] == [0, 0, 0, 0]
