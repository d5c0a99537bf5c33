"""Whole prompts through the whole thinker against the PyTorch reference: logits within 2e-4."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import LatentSpec
from latentomni_jax.model import LatentOmni
from tests.passes import apply
from tests.prompts import PromptMaker, reference_inputs
from tests.reference import make_ported, make_reference

SPEC = LatentSpec(num_visual=4, num_audio=2, pad_id=509, trigger_id=510, stop_id=511)


def make_model(**kwargs):
    config, params = make_ported()
    return LatentOmni(params, config, SPEC, **kwargs)


def prompts_of(kind):
    make = PromptMaker(seed=7)
    text = [make.text(600)]
    image = [make.text(40), make.vision((1, 40, 58), is_image=True), make.text(30)]
    audio = [make.text(25), make.audio(2211), make.text(20)]
    video = [make.text(33), make.vision((9, 12, 20)), make.text(12)]
    av = [make.text(21), make.vision((7, 16, 18), frames=655), make.text(17)]
    more = [make.vision((4, 10, 14), frames=402), make.audio(97), make.text(8)]
    av2 = [make.text(5), *av[1:], *more]
    return {
        "text": ([text], False),
        "image": ([image], False),
        "audio": ([audio], False),
        "video": ([video], False),
        "audio_in_video": ([av], True),
        "padded_batch": ([image, text, video, audio], False),
        "padded_batch_audio_in_video": ([av2, [make.text(9)], av], True),
    }[kind]


def ours(model, prompts):
    """Logits [B,S,V] of full forward passes, and the batch."""
    batch, groups, table = collate(model.config, prompts, clock="nominal")
    embeds = model.embed(batch, groups, table)
    thinker, params = model.thinker, model.text_params
    hidden, _ = apply(thinker, params, embeds, jnp.asarray(batch.position_ids), method="decode")
    logits = apply(thinker, params, hidden, method="logits")
    return np.asarray(logits), batch


@pytest.mark.parametrize(
    "kind",
    [
        *("text", "image", "audio", "video", "audio_in_video"),
        *("padded_batch", "padded_batch_audio_in_video"),
    ],
)
def test_logits(kind):
    prompts, audio_in_video = prompts_of(kind)
    logits, batch = ours(make_model(), prompts)
    assert batch.lengths.max() >= 500  # shorter prompts cannot see position bugs
    with torch.no_grad():
        expected = make_reference()(
            **reference_inputs(batch, prompts, audio_in_video=audio_in_video)
        ).logits.numpy()
    for row, length in enumerate(batch.lengths):
        difference = np.abs(logits[row, :length] - expected[row, :length]).max()
        assert difference <= 2e-4, f"row {row}: {difference}"
    assert np.abs(expected).max() > 1  # logits of a size that the tolerance means something for


@pytest.mark.parametrize("kind", ["text", "audio_in_video"])
def test_bfloat16_error_is_within_the_reference_error(kind):
    prompts, audio_in_video = prompts_of(kind)
    config, params = make_ported()
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    logits, batch = ours(LatentOmni(half, config, SPEC), prompts)
    reference = make_reference()
    inputs = reference_inputs(batch, prompts, audio_in_video=audio_in_video)
    with torch.no_grad():
        expected = reference(**inputs).logits.numpy()
        theirs = copy.deepcopy(reference).to(torch.bfloat16)
        for key in ("input_features", "pixel_values_videos"):
            if key in inputs:
                inputs[key] = inputs[key].to(torch.bfloat16)
        reference_half = theirs(**inputs).logits.float().numpy()
    n = batch.lengths[0]
    our_error = np.abs(logits[0, :n] - expected[0, :n])
    their_error = np.abs(reference_half[0, :n] - expected[0, :n])
    assert our_error.mean() <= 1.5 * their_error.mean()
    assert np.sqrt((our_error**2).mean()) <= 1.5 * np.sqrt((their_error**2).mean())
