"""The decode loop: equal to full forward passes, to rows alone, and to the reference."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from latentomni_jax.evaluate.replay import replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import InputError, LatentSpec
from latentomni_jax.model import LatentOmni
from latentomni_jax.weights.quantize import quantize
from tests.passes import apply
from tests.prompts import PromptMaker, reference_inputs
from tests.reference import make_ported, make_reference

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)


def make_model(spec=SPEC, *, eager_trigger=False, **kwargs):
    """The ported random model; `eager_trigger` makes it open blocks of its own accord."""
    config, params = make_ported()
    if eager_trigger:
        kernel = params["text"]["lm_head"]["kernel"]
        kernel = kernel.at[:, spec.trigger_id].multiply(-12.0)
        params = params | {"text": params["text"] | {"lm_head": {"kernel": kernel}}}
    return LatentOmni(params, config, spec, **kwargs)


def make_prompts(seed=3):
    """Eight rows: text, pictures, sound and video with sound, of 6 to 560 tokens."""
    make = PromptMaker(seed)
    return [
        [make.text(11)],
        [make.text(3), make.vision((2, 8, 8), frames=180), make.text(9)],
        [make.text(200)],
        [make.text(7), make.audio(310), make.text(6)],
        [make.text(6)],
        [make.text(4), make.vision((1, 12, 14), is_image=True), make.text(40)],
        [make.text(500)],
        [make.text(30), make.vision((5, 10, 8)), make.vision((2, 8, 6)), make.text(60)],
    ]


def full_forward(model, prompt, generation, flow=None):
    """Final hidden states of one pass over prompt and generated positions [S+n,D].

    Attention flows as in the model's spec, or as told.
    """
    row = replay(model, prompt, generation, clock="nominal")
    hidden, _ = apply(
        model.thinker,
        model.text_params,
        row.embeds,
        jnp.asarray(row.position_ids),
        hidden=flow_mask(
            dataclasses.replace(model.latent, flow=flow or model.latent.flow), row.roles[None]
        ),
        method="decode",
    )
    return np.asarray(hidden[0, : row.length]), row.prompt_length


POSITION, BOTTLENECK = {"ospe_apply": "position"}, {"flow": "bottleneck"}


@pytest.mark.parametrize(
    ("latents", "blocks", "changes"),
    [
        ("auto", 3, {}),
        ("force", 1, POSITION),
        ("auto", 3, BOTTLENECK),
        *(
            pytest.param(*other, marks=pytest.mark.slow)
            for other in (
                ("off", 0, {}),
                ("force", 1, {}),
                ("off", 0, POSITION),
                ("auto", 3, POSITION),
                ("off", 0, BOTTLENECK),
                ("force", 1, BOTTLENECK),
            )
        ),
    ],
    ids=str,
)
def test_decode_equals_full_forward(latents, blocks, changes):
    spec = dataclasses.replace(SPEC, **changes)
    model = make_model(spec, eager_trigger=latents == "auto")
    prompt = make_prompts()[7] + [PromptMaker(1).text(400)]
    generation = model.generate(
        [prompt],
        clock="nominal",
        latents=latents,
        max_blocks=max(blocks, 1),
        max_new_tokens=40,
        temperature=1.0,  # greedy decoding of a random model falls into a cycle without triggers
        keep_hidden=True,
    )[0]
    ids = generation.token_ids
    assert np.sum(ids == spec.trigger_id) == blocks == len(generation.latents)
    assert np.sum(ids == spec.pad_id) == blocks * spec.num_latents
    assert np.sum(ids == spec.stop_id) == blocks
    hidden, length = full_forward(model, prompt, generation)
    assert length > 500
    np.testing.assert_allclose(generation.hidden, hidden[length:-1], atol=2e-4, rtol=0)
    logits = [
        np.asarray(apply(model.thinker, model.text_params, h, method="logits"))
        for h in (generation.hidden, hidden[length:-1])
    ]
    np.testing.assert_allclose(*logits, atol=2e-4, rtol=0)
    if spec.flow == "bottleneck":  # and it is another model where there is a block
        other, _ = full_forward(model, prompt, generation, flow="open")
        assert (np.abs(other - hidden).max() > 0.1) == (blocks > 0)
    # The latents are those very states: z_1 = h(u), z_(k+1) = h(slot k).
    states = np.concatenate([hidden[length - 1 : length], generation.hidden])
    np.testing.assert_allclose(
        generation.latents.reshape(-1, 64), states[ids_before_slots(ids, spec)], atol=2e-4
    )


def test_int8_decode_equals_int8_full_forward():
    config, params = make_ported()
    model = LatentOmni(quantize(params), config, SPEC, scan_layers=True)
    assert model.thinker.weights == "int8" and model.dtype == jnp.float32
    prompt = make_prompts()[1]
    generation = model.generate(
        [prompt], clock="nominal", latents="force", max_new_tokens=12, keep_hidden=True
    )[0]
    assert len(generation.latents) == 1
    hidden, length = full_forward(model, prompt, generation)
    np.testing.assert_allclose(generation.hidden, hidden[length:-1], atol=2e-4, rtol=0)
    other, _ = full_forward(make_model(scan_layers=True), prompt, generation)
    assert np.abs(other - hidden).max() > 1e-2  # which is not that of the ordinary weights


def ids_before_slots(ids, spec):
    """Index into the states [before first, after each position] that became each latent."""
    return np.flatnonzero(ids == spec.pad_id)


@pytest.mark.parametrize(
    ("latents", "flow"),
    [
        ("auto", "open"),
        pytest.param("off", "open", marks=pytest.mark.slow),
        pytest.param("auto", "bottleneck", marks=pytest.mark.slow),
    ],
)
def test_rows_do_not_depend_on_their_batch(latents, flow):
    model = make_model(dataclasses.replace(SPEC, flow=flow), eager_trigger=True)
    prompts = make_prompts()
    options = {"latents": latents, "max_new_tokens": 24, "max_blocks": 2, "temperature": 1.0}
    together = model.generate(prompts, **options)
    for row, prompt in enumerate(prompts):
        alone = model.generate([prompt], seeds=[row], **options)[0]
        np.testing.assert_array_equal(together[row].token_ids, alone.token_ids)
        np.testing.assert_allclose(together[row].latents, alone.latents, atol=1e-5, rtol=1e-5)
    if latents == "auto":  # the rows really were in different phases
        assert len({tuple(g.token_ids == SPEC.pad_id) for g in together}) > 1


@pytest.mark.slow
def test_sampled_rows_do_not_depend_on_their_batch():
    model = make_model()
    prompts = make_prompts()[:3]
    options = {"temperature": 1.3, "top_p": 0.9, "top_k": 50, "max_new_tokens": 16}
    together = model.generate(prompts, seeds=[5, 6, 7], **options)
    alone = model.generate(prompts[2:], seeds=[7], **options)[0]
    np.testing.assert_array_equal(together[2].token_ids, alone.token_ids)
    again = model.generate(prompts[2:], seeds=[8], **options)[0]
    assert list(again.token_ids) != list(alone.token_ids)


def test_a_finished_row_changes_nothing_in_others():
    model = make_model()
    prompts = make_prompts()[:3]
    options = {"latents": "off", "max_new_tokens": 20, "temperature": 1.0}
    free = model.generate(prompts, **options)
    eos = int(free[0].token_ids[2])
    assert eos not in free[0].token_ids[:2]
    ended = model.generate(prompts, eos_ids=(eos,), **options)  # row 0 ends after three tokens
    assert len(ended[0].token_ids) == 3 and ended[0].finished
    for row in (1, 2):
        stop = np.flatnonzero(free[row].token_ids == eos)
        length = stop[0] + 1 if len(stop) else 20
        np.testing.assert_array_equal(ended[row].token_ids, free[row].token_ids[:length])


@pytest.mark.parametrize("row", [2, 7], ids=["text", "video"])
def test_greedy_text_equals_reference_generate(row):
    model = make_model()
    prompt = make_prompts()[row]
    ours = model.generate([prompt], latents="off", max_new_tokens=128, clock="nominal")[0]
    batch, _, _ = collate(model.config, [prompt], clock="nominal")
    length = int(batch.lengths[0])
    short = batch._replace(token_ids=batch.token_ids[:, :length])
    inputs = reference_inputs(short, [prompt], audio_in_video=False)
    theirs = make_reference().generate(
        **inputs,
        max_new_tokens=128,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        suppress_tokens=[SPEC.pad_id, SPEC.trigger_id, SPEC.stop_id],
    )
    np.testing.assert_array_equal(ours.token_ids, theirs[0, length:].numpy())
    assert len(ours.token_ids) == 128


def test_one_program_per_length_bucket():
    model = make_model()
    make = PromptMaker(0)
    for batch_number in range(8):  # 64 prompts, 8 at a time, from the buckets 128, 256, 512
        longest = (20, 130, 300)[batch_number % 3]
        prompts = [[make.text(longest + 3 * i)] for i in range(8)]
        model.generate(prompts, latents="force", max_new_tokens=4)
    assert model._prefill._cache_size() == 3
    assert model._decode._cache_size() == 3


def test_streaming_reuses_the_program_and_changes_nothing():
    model = make_model()
    prompts = make_prompts()[:2]
    plain = model.generate(prompts, latents="force", max_new_tokens=40)
    model.generate(prompts, latents="force", max_new_tokens=40, on_text=lambda row, text: None)
    streamed = model.generate(
        prompts, latents="force", max_new_tokens=40, on_text=lambda row, text: None
    )
    for a, b in zip(plain, streamed, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    assert model._decode._cache_size() == 1


@pytest.mark.parametrize(("visual", "audio"), [(0, 3), (3, 0), (0, 0)])
def test_blocks_without_a_modality_or_without_slots(visual, audio):
    spec = dataclasses.replace(SPEC, num_visual=visual, num_audio=audio)
    ids = (
        make_model(spec)
        .generate([make_prompts()[0]], latents="force", max_blocks=1, max_new_tokens=5)[0]
        .token_ids
    )
    expected = [spec.trigger_id] + [spec.pad_id] * (visual + audio) + [spec.stop_id]
    assert list(ids[: len(expected)]) == expected
    assert len(ids) == 5 + visual + audio + 1


def test_blocks_are_capped_and_pad_and_stop_are_never_sampled():
    model = make_model(eager_trigger=True)
    for cap in (0, 1, 2):
        ids = model.generate([make_prompts()[0]], max_blocks=cap, max_new_tokens=30)[0].token_ids
        assert np.sum(ids == SPEC.trigger_id) == cap
        assert np.sum(ids == SPEC.stop_id) == cap
        assert np.sum(ids == SPEC.pad_id) == cap * SPEC.num_latents


def test_given_states_are_fed_in_place_of_the_models_own():
    """Own states given change nothing; others are what the slots hear, as a full pass says too."""
    model = make_model(eager_trigger=True)
    prompts = make_prompts()[1:4]
    options = {"latents": "force", "max_new_tokens": 20, "temperature": 1.0, "keep_hidden": True}
    own = model.generate(prompts, **options)
    assert [len(g.latents) for g in own] == [2, 3, 1]
    again = model.generate(prompts, given=[g.latents for g in own], **options)
    for a, b in zip(own, again, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.hidden, b.hidden, atol=1e-5)
    # The first row gets others in both blocks, the second in the first of three, the third none.
    rng = np.random.default_rng(0)
    others = [rng.normal(size=(n, SPEC.num_latents, 64)).astype(np.float32) for n in (2, 1, 0)]
    changed = model.generate(prompts, given=others, **options)
    np.testing.assert_array_equal(changed[2].token_ids, own[2].token_ids)
    for prompt, other, mine, row in zip(prompts, others, own, changed, strict=True):
        np.testing.assert_array_equal(row.latents[: len(other)], other)
        assert np.isfinite(row.latents).all()
        replayed = replay(model, prompt, row)
        hidden, _ = apply(
            model.thinker,
            model.text_params,
            replayed.embeds,
            jnp.asarray(replayed.position_ids),
            method="decode",
        )
        made = np.asarray(hidden[0, replayed.prompt_length : replayed.length - 1])
        np.testing.assert_allclose(row.hidden, made, atol=2e-4)
        if len(other):
            slots = np.flatnonzero(mine.token_ids == SPEC.pad_id)
            assert np.abs(row.hidden[slots[1]] - mine.hidden[slots[1]]).max() > 0.1
    with pytest.raises(InputError, match="given states"):
        model.generate(prompts, given=[g.latents[:, 1:] for g in own], **options)


def test_latent_ids_beyond_the_vocabulary_are_refused():
    with pytest.raises(InputError, match="do not fit a vocabulary of 512"):
        make_model(LatentSpec())


def test_torch_is_not_needed_by_the_package():
    """The parity tests import torch; the package itself must not."""
    import subprocess
    import sys

    code = (
        "import sys, latentomni_jax.model, latentomni_jax.weights.safetensors;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.__version__
