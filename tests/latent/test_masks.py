"""Who may look at what, from roles."""

import dataclasses

import numpy as np

from latentomni_jax.latent.masks import flow_mask, media_mask
from latentomni_jax.layout import LatentSpec, Role

TEXT, VIDEO, SOUND = Role.PROMPT_TEXT, Role.PROMPT_VIDEO, Role.PROMPT_AUDIO
BLOCK = [Role.TRIGGER, Role.LATENT_VISUAL, Role.LATENT_AUDIO, Role.STOP]
SAID, ANSWER, PAD = Role.ASSISTANT_TEXT, Role.ANSWER, Role.PAD


def test_from_the_first_trigger_only_triggers_and_slots_see_the_media():
    roles = [
        [TEXT, VIDEO, SOUND, TEXT, SAID, *BLOCK, SAID, *BLOCK, ANSWER, PAD],
        [TEXT, SOUND, TEXT, SAID, *BLOCK, ANSWER, *[PAD] * 7],
        [TEXT, VIDEO, VIDEO, SAID, ANSWER, *[PAD] * 11],
    ]
    spec = LatentSpec(flow="bottleneck")
    blocked, media = flow_mask(spec, np.array(roles, np.int8))
    expected = [
        [0, 0, 0, 0, 0, *[0, 0, 0, 1], 1, *[0, 0, 0, 1], 1, 1],
        [0, 0, 0, 0, *[0, 0, 0, 1], 1, *[1] * 7],
        [0] * 16,
    ]
    np.testing.assert_array_equal(blocked, expected)
    np.testing.assert_array_equal(media, np.isin(roles, (VIDEO, SOUND)))
    np.testing.assert_array_equal(media, media_mask(spec, np.array(roles, np.int8)))


def test_an_open_flow_hides_nothing():
    assert LatentSpec().flow == "open"
    spec = dataclasses.replace(LatentSpec(), num_visual=1)
    assert flow_mask(spec, np.zeros((1, 4), np.int8)) is None
    assert media_mask(spec, np.zeros((1, 4), np.int8)) is None
