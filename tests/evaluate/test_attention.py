"""Attention is that of the decoder, what is said of it adds up, and memory grows with length."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.text import unstack
from latentomni_jax.backbone.thinker import Thinker, abstract_params
from latentomni_jax.evaluate import attention
from latentomni_jax.evaluate.attention import KINDS, look, over_clip, shares
from latentomni_jax.evaluate.replay import _inputs, replay
from latentomni_jax.layout import InputError, LatentSpec, Role
from latentomni_jax.model import Generation, LatentOmni
from latentomni_jax.weights.specs import read_specs
from tests.evaluate.full_attention import (
    OF_KIND,
    SLOTS,
    full_weights,
    projections,
    shares_of,
    through_of,
)
from tests.evaluate.planted import planted
from tests.prompts import PromptMaker
from tests.reference import make_ported

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)


def make_generation(blocks: int, seed: int = 0) -> Generation:
    """Text, and after every few tokens a block of random states; no model is asked for it."""
    rng = np.random.default_rng(seed)
    block = [SPEC.trigger_id, *[SPEC.pad_id] * SPEC.num_latents, SPEC.stop_id]
    runs = [rng.integers(1, 400, 3) for _ in range(blocks + 1)]
    ids = np.concatenate([runs[0], *[np.r_[block, run] for run in runs[1:]]]).astype(np.int32)
    latents = rng.normal(size=(blocks, SPEC.num_latents, 64)).astype(np.float32)
    return Generation(ids, "", latents, None, True)


@pytest.fixture(scope="module")
def replayed():
    """By flow: a model, a row of two blocks about a video with sound, and the oracle of it.

    The prompt has 558 positions: 20 frames of 24 tokens and 50 of sound.
    """

    @functools.cache
    def make(flow):
        config, params = make_ported()
        model = LatentOmni(params, config, dataclasses.replace(SPEC, flow=flow))
        make = PromptMaker(0)
        prompt = [make.text(15), make.vision((20, 8, 12), frames=200), make.text(9)]
        row = replay(model, prompt, make_generation(2))
        assert 512 < row.prompt_length < row.length < len(row.roles) == 1024
        return model, row, full_weights(model, row)

    return make


LAYOUTS = [("open", False), ("bottleneck", False), ("bottleneck", True)]


@pytest.fixture(scope="module", params=LAYOUTS, ids=["open", "bottleneck", "bottleneck-scanned"])
def looked(request, replayed):
    """Flow, row and oracle, and the looks of every position of the row."""
    flow, scan_layers = request.param
    model, row, weights = replayed(flow)
    if scan_layers:
        model = LatentOmni(make_ported()[1], model.config, model.latent, scan_layers=True)
    return flow, row, weights, look(model, row, range(row.length))


@pytest.mark.parametrize("flow", ["open", "bottleneck"])
def test_the_oracle_times_values_is_what_the_layers_made(replayed, flow):
    """So its weights are those that the decoder used."""
    model, row, weights = replayed(flow)
    config = model.config.text
    v, o = (projections(model, row, name) for name in ("v_proj", "o_proj"))
    v = v.reshape(*v.shape[:2], config.num_kv_heads, config.head_dim)
    v = np.repeat(v, config.num_heads // config.num_kv_heads, axis=2)
    mixed = np.einsum("lnqs,lsnh->lqnh", weights, v).reshape(config.num_layers, row.length, -1)
    for layer in range(config.num_layers):
        kernel = np.asarray(model.text_params["text"][f"layers_{layer}"]["o_proj"]["kernel"])
        np.testing.assert_allclose(mixed[layer] @ kernel, o[layer], atol=1e-4)


def test_shares_are_those_of_full_attention(looked):
    """In every layer, head and query."""
    _, row, weights, looks = looked
    assert tuple(OF_KIND) == KINDS
    assert looks.direct.shape == (*weights.shape[:3], len(KINDS))
    np.testing.assert_allclose(looks.direct.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(looks.direct, shares_of(row, weights), atol=1e-5)
    np.testing.assert_allclose(looks.through, through_of(row, weights), atol=1e-5)
    np.testing.assert_allclose(looks.keys[:, : row.length], weights.mean(axis=(0, 1)), atol=1e-5)
    assert not looks.keys[:, row.length :].any()


def test_means_are_of_the_queries_asked_for(looked):
    _, row, weights, looks = looked
    which = np.array([3, 540, row.length - 1])
    expected = np.concatenate(
        [shares_of(row, weights), through_of(row, weights)[..., None]], axis=-1
    )[:, :, which].mean(axis=(1, 2))
    np.testing.assert_allclose(looks.by_layer(which), expected, atol=1e-5)
    np.testing.assert_allclose(looks.shares(which), expected.mean(axis=0), atol=1e-5)


def test_a_bottleneck_shuts_the_direct_way(looked):
    flow, row, _, looks = looked
    slots = np.flatnonzero(np.isin(row.roles, SLOTS))
    after = np.arange(slots[-1] + 2, row.length)
    before = [int(slots[0]) - 2]
    late, early = looks.shares(after), looks.shares(before)
    for one in (late, early):
        assert abs(one.video + one.audio + one.latent + one.text - 1) < 1e-5
    assert early.latent == 0 and early.through_latents == 0 and early.video > 0 < early.audio
    assert late.latent > 0 and late.through_latents > 0
    assert (late.video + late.audio == 0) == (flow == "bottleneck")


def test_maps_lie_where_the_prompt_has_the_tokens(replayed):
    """By TMRoPE ids: height and width of a token, its second, and 25 tokens of sound a second."""
    model, row, weights = replayed("open")
    seen, heard = over_clip(model, row, 20.0, cells=40)[1]
    makers = np.flatnonzero(np.isin(row.roles, SLOTS))[SPEC.num_latents :] - 1
    mean = weights.mean(axis=(0, 1))[makers]
    assert seen.shape == (6, 20, 4, 6) and heard.shape == (6, 40)
    ids, start = row.position_ids[:, 0], 16  # 15 of text and the two start tokens, of one id
    expected = np.zeros_like(seen)
    for place in np.flatnonzero(row.roles == Role.PROMPT_VIDEO):
        time, height, width = ids[:, place] - start
        expected[:, time // 25, height, width] += mean[:, place]
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    expected = np.zeros_like(heard)
    for place in np.flatnonzero(row.roles == Role.PROMPT_AUDIO):
        second = (ids[0, place] - start) / 25
        expected[:, int(second / 0.5)] += mean[:, place]
    np.testing.assert_allclose(heard, expected, atol=1e-6)
    assert (heard[:, :4] > 0).all() and not heard[:, 4:].any()  # 2 s of sound


def test_a_prompt_with_two_clips_has_no_map(replayed):
    model, row, _ = replayed("open")
    two = row._replace(media=row.media * 2)
    with pytest.raises(InputError, match="one clip, this one has 2"):
        over_clip(model, two, 20.0)


def test_no_block_has_no_map_and_text_alone_is_all_text():
    config, params = make_ported()
    model = LatentOmni(params, config, SPEC)
    prompt = [PromptMaker(1).text(9)]
    row = replay(model, prompt, make_generation(0))
    assert over_clip(model, row, 1.0) == []
    np.testing.assert_allclose(shares(model, row, range(9, 12)), (0, 0, 0, 1, 0), atol=1e-6)


def test_rows_of_a_bucket_share_their_programs():
    config, params = make_ported()
    model = LatentOmni(params, config, SPEC)
    compiled = []
    for length, blocks in ((9, 0), (40, 2), (100, 1)):
        prompt = [PromptMaker(1).text(length)]
        row = replay(model, prompt, make_generation(blocks))
        shares(model, row, range(length, row.length))
        compiled.append((_inputs._cache_size(), attention._look._cache_size()))
    # One or two blocks are two shapes of states to splice in; all rows are of 128 positions.
    assert np.subtract(compiled[-1], compiled[0]).tolist() == [1, 0]


def test_a_model_that_attends_to_sound_alone_scores_one_on_audio(tiny_directory):
    """A clip with pictures and sound, a question, and its answer with a latent block."""
    spec = read_specs(tiny_directory)[1]
    spec = dataclasses.replace(spec, num_visual=2, num_audio=1)
    model = planted(tiny_directory, spec, hears=True)
    make = PromptMaker(2)
    prompt = [make.text(5), make.vision((2, 8, 8), frames=200), make.text(7)]
    generation = model.generate([prompt], latents="force", max_blocks=1, max_new_tokens=6)[0]
    assert len(generation.latents) == 1
    row = replay(model, prompt, generation)
    for asked in (model, planted(tiny_directory, spec, hears=True, scan_layers=True)):
        looks = look(asked, row, range(row.prompt_length - 1, row.length))
        assert looks.direct.shape[:2] == (2, 4)
        np.testing.assert_allclose(looks.direct[..., KINDS.index("audio")], 1, atol=1e-6)
        np.testing.assert_allclose(looks.shares(), (0, 1, 0, 0, 0), atol=1e-6)


@pytest.mark.parametrize("scan_layers", [pytest.param(False, marks=pytest.mark.slow), True])
def test_memory_grows_with_the_length_and_not_with_its_square(scan_layers):
    """As compiled for a prompt and for twice its length; and weights of all layers, heads and
    queries never exist."""
    config = ThinkerConfig.tiny(vocab_size=512)
    text = dataclasses.replace(config.text, num_layers=6, num_heads=8)
    config = dataclasses.replace(config, text=text)
    thinker = Thinker(config, scan_layers=scan_layers)
    params = {"text": abstract_params(config)["text"]}
    if not scan_layers:
        params = jax.eval_shape(lambda p: {"text": unstack(p["text"])}, params)
    queries, sizes = 256, (8192, 16_384)
    taken = []
    for length in sizes:
        compiled = attention._look.lower(
            thinker,
            SPEC,
            params,
            jax.ShapeDtypeStruct((1, length, config.text.hidden_size), jnp.float32),
            jax.ShapeDtypeStruct((3, 1, length), jnp.int32),
            jax.ShapeDtypeStruct((length,), jnp.int8),
            jax.ShapeDtypeStruct((queries,), jnp.int32),
            jax.ShapeDtypeStruct((64,), jnp.int32),
        ).compile()
        taken.append(compiled.memory_analysis().temp_size_in_bytes)
    short, long = taken
    assert long < 2.1 * short  # a square would have 4
    whole = 4 * text.num_layers * text.num_heads * queries
    assert (long - short) / (sizes[1] - sizes[0]) < whole / 2
