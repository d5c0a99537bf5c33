"""Identities of the training modes: each against another way to the same numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.latent.anchors import anchors
from latentomni_jax.latent.encode import encode_media, input_embeddings
from latentomni_jax.latent.objective import count, objective
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.passes import forward, rollout, states_to_feed
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.layout import LatentPart, Role, TextPart
from latentomni_jax.model import LatentOmni
from tests.examples import MEDIA, SPEC, ExampleMaker, make_batch, mixed_examples
from tests.reference import make_ported

BOTTLENECK = dataclasses.replace(SPEC, flow="bottleneck")
FLOWS = [
    pytest.param(SPEC, id="open"),
    pytest.param(BOTTLENECK, id="bottleneck", marks=pytest.mark.slow),
]
CONFIG, PARAMS = make_ported()
THINKER = Thinker(CONFIG)


@functools.cache
def prepared(spec):
    batch = make_batch(CONFIG, mixed_examples(), spec)

    @jax.jit
    def prepare(batch):
        features = encode_media(THINKER, MEDIA, PARAMS, batch, 4)
        anchor, mask = anchors(spec, features, batch.visual_rows, batch.audio_rows)
        return input_embeddings(THINKER, PARAMS, batch, features), anchor, mask

    return batch, *prepare(batch)


@functools.cache
def fed_by(mode, spec=SPEC, **options):
    """The states that a mode feeds, and those that the pass over them produces."""
    batch, embeds, anchor, mask = prepared(spec)
    options = Objective(spec=spec, media=MEDIA, mode=mode, **options)

    @jax.jit
    def run(batch, embeds, anchor, mask):
        key = jax.random.key(5)
        fed = states_to_feed(THINKER, options, PARAMS, batch, embeds, anchor, mask, key)
        return fed, *forward(THINKER, spec, PARAMS, batch, embeds, fed)

    fed, hidden, z = run(batch, embeds, anchor, mask)
    there = batch.triggers >= 0
    return np.asarray(fed)[there], np.asarray(hidden), np.asarray(z)[there]


@pytest.mark.parametrize("spec", FLOWS)
def test_rollout_is_jacobi_to_the_end(spec):
    """Rows of 0, 1, 2 and 3 blocks; after 3 K + 1 passes nothing moves any more."""
    fed, hidden, z = fed_by("rollout", spec)
    passes = 3 * spec.num_latents + 1
    jacobi_fed, jacobi_hidden, jacobi_z = fed_by("jacobi", spec, jacobi_passes=passes)
    real = np.arange(hidden.shape[1]) < prepared(spec)[0].lengths[:, None]
    np.testing.assert_allclose(jacobi_fed, fed, atol=1e-5)
    np.testing.assert_allclose(jacobi_z, z, atol=1e-5)
    np.testing.assert_allclose(jacobi_hidden[real], hidden[real], atol=1e-5)
    # One pass fewer is not there yet: the last state of the third block is still on its way.
    short = fed_by("jacobi", spec, jacobi_passes=passes - 1)[0]
    assert np.abs(short - fed).max() > 1e-4


def test_one_block_needs_k_and_one_passes():
    batch = prepared(SPEC)[0]
    one = np.flatnonzero((np.asarray(batch.triggers) >= 0).sum(-1) == 1)
    fed = np.zeros(batch.triggers.shape, bool)
    fed[one, 0] = True
    pick = fed[np.asarray(batch.triggers) >= 0]
    want = fed_by("rollout")[0][pick]
    got = fed_by("jacobi", jacobi_passes=SPEC.num_latents + 1)[0][pick]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("spec", FLOWS)
def test_a_rollout_is_a_fixed_point(spec):
    """Fed the model's own states in place of anchors, the teacher's pass produces them again."""
    batch, embeds, _, mask = prepared(spec)
    options = Objective(spec=spec, media=MEDIA, mode="teacher")

    @jax.jit
    def again(batch, embeds, own, mask):
        key = jax.random.key(0)
        fed = states_to_feed(THINKER, options, PARAMS, batch, embeds, own, mask, key)
        return forward(THINKER, spec, PARAMS, batch, embeds, fed)[1]

    own = jax.jit(lambda b, e: rollout(THINKER, spec, PARAMS, b, e))(batch, embeds)
    z = again(batch, embeds, own, mask)
    there = np.asarray(batch.triggers) >= 0
    np.testing.assert_allclose(np.asarray(z)[there], np.asarray(own)[there], atol=1e-5)


def test_mixed_takes_anchors_or_own_states():
    batch, _, anchor, mask = prepared(SPEC)
    there = np.asarray(batch.triggers) >= 0
    anchor, mask = np.asarray(anchor)[there], np.asarray(mask)[there]
    never = fed_by("mixed", own_probability=0.0)[0]
    np.testing.assert_array_equal(never[mask], anchor[mask])
    teacher_z = fed_by("teacher")[2]
    always = fed_by("mixed", own_probability=1.0)[0]
    np.testing.assert_allclose(always, teacher_z, atol=1e-5)
    # A slot without an anchor takes its own state whatever the coin says.
    np.testing.assert_allclose(never[~mask], teacher_z[~mask], atol=1e-5)
    half = fed_by("mixed", own_probability=0.5)[0]
    from_anchor = (half == anchor).all(-1)
    assert 0.2 < from_anchor[mask].mean() < 0.8


@pytest.mark.parametrize(
    ("apply", "flow"),
    [
        ("feature", "open"),
        ("both", "bottleneck"),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (
                ("feature", "bottleneck"),
                ("position", "open"),
                ("position", "bottleneck"),
                ("both", "open"),
                ("none", "open"),
                ("none", "bottleneck"),
            )
        ),
    ],
)
def test_training_sees_what_decoding_does(apply, flow):
    """A decoded answer, laid out as a training example, rolls out to the decoder's own states."""
    spec = dataclasses.replace(SPEC, ospe_apply=apply, flow=flow)
    model = LatentOmni(PARAMS, CONFIG, spec, scan_layers=True)
    make = ExampleMaker(1)
    prompt = make.prompt("video_with_sound")
    pixels = [
        dataclasses.replace(part, patches=_normalised(part.patches))
        if hasattr(part, "patches")
        else part
        for part in prompt
    ]
    out = model.generate([pixels], latents="force", max_blocks=2, max_new_tokens=12, eos_ids=())[0]
    assert len(out.latents) >= 1

    parts, ids = list(prompt), list(out.token_ids)
    while ids:
        if ids[0] == spec.trigger_id:
            assert ids[1 : spec.num_latents + 1] == [spec.pad_id] * spec.num_latents
            parts.append(LatentPart((0.0, 2.0), make.vision((1, 2, 2), mel_frames=40)))
            ids = ids[spec.num_latents + 2 :]
        else:
            end = ids.index(spec.trigger_id) if spec.trigger_id in ids else len(ids)
            text = ids[:end]
            parts.append(TextPart(np.array(text, np.int32), Role.ASSISTANT_TEXT))
            ids = ids[len(text) :]
    batch = make_batch(CONFIG, [parts], spec)

    @jax.jit
    def run(batch):
        features = encode_media(THINKER, MEDIA, PARAMS, batch, 4)
        embeds = input_embeddings(THINKER, PARAMS, batch, features)
        return rollout(THINKER, spec, PARAMS, batch, embeds)

    own = run(batch)
    np.testing.assert_allclose(own[0, : len(out.latents)], out.latents, atol=1e-5)


def _normalised(pixels):
    from latentomni_jax.latent.encode import normalise

    return np.asarray(normalise(MEDIA, pixels, jnp.float32))


@pytest.mark.parametrize(
    ("mode", "own_shape"),
    [("teacher", {2}), pytest.param("rollout", {0, 2, 4}, marks=pytest.mark.slow)],
)
def test_padding_and_batch_mates_change_nothing(mode, own_shape):
    """A row's losses alone, in another static shape, are its share of the batch's."""
    options = Objective(spec=SPEC, media=MEDIA, mode=mode)
    params = {**PARAMS, "sync": init_sync(options, CONFIG.text.hidden_size, jax.random.key(0))}
    examples = mixed_examples()

    @jax.jit
    def losses(batch, counts):
        return objective(THINKER, options, params, batch, counts, jax.random.key(0))[1]

    whole = make_batch(CONFIG, [*examples, None])
    counts = count(SPEC, whole)
    together = losses(whole, counts)
    alone = [
        losses(make_batch(CONFIG, [one], shape=None if row in own_shape else _shape(whole)), counts)
        for row, one in enumerate(examples)
    ]
    for name in ("loss/total", "loss/text", "loss/latent", "loss/sync", "text/accuracy"):
        np.testing.assert_allclose(sum(m[name] for m in alone), together[name], rtol=1e-5)
    empty = losses(make_batch(CONFIG, [None], shape=_shape(whole)), counts)
    assert all(float(value) == 0 for value in empty.values())


@pytest.mark.slow
def test_a_shape_without_blocks_or_media_trains_text():
    """What Vanilla SFT and Explicit Text CoT need: the same loss and gradients in a bare shape."""
    options = Objective(spec=SPEC, media=MEDIA)
    params = {**PARAMS, "sync": init_sync(options, CONFIG.text.hidden_size, jax.random.key(0))}
    examples = [ExampleMaker(0).example(prompt) for prompt in ("text", "video_with_sound")]

    @jax.jit
    def run(params, batch):
        def loss(params):
            counts = count(SPEC, batch)
            return objective(THINKER, options, params, batch, counts, jax.random.key(0))

        return jax.value_and_grad(loss, has_aux=True)(params)

    shape = None
    for rows in (examples, [examples[0], None]):
        roomy = make_batch(CONFIG, rows, shape=shape)
        shape = _shape(roomy)
        bare = dataclasses.replace(shape, blocks=0, visual_anchors=0, audio_anchors=0)
        if rows[1] is None:
            bare = dataclasses.replace(bare, frames=0, chunks=0, segment_frames=0, segment_chunks=0)
        (expected, _), wanted = run(params, roomy)
        (value, metrics), gradients = run(params, make_batch(CONFIG, rows, shape=bare))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert all(np.isfinite(float(x)) for x in metrics.values())
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


def _shape(batch):
    from latentomni_jax.layout import BatchShape

    return BatchShape(
        tokens=batch.token_ids.shape[1],
        targets=batch.target_ids.shape[1],
        blocks=batch.triggers.shape[1],
        frames=batch.prompt.patches.shape[1],
        segment_frames=batch.segments.patches.shape[1],
        patches=batch.prompt.patches.shape[2],
        chunks=batch.prompt.mel.shape[1],
        segment_chunks=batch.segments.mel.shape[1],
        visual_anchors=batch.visual_rows.shape[2],
        audio_anchors=batch.audio_rows.shape[2],
    )
