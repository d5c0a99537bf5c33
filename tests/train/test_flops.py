"""FLOPs of a step, counted by hand for text alone, and of the passes that only make states."""

import numpy as np
import pytest

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.latent.options import Objective
from latentomni_jax.train.flops import step_flops
from tests.examples import MEDIA, SPEC, ExampleMaker, make_batch
from tests.train.sharded import IDS


def test_text_alone_is_counted_by_hand():
    config = ThinkerConfig.tiny(vocab_size=512, **IDS)
    text = config.text
    batch = make_batch(config, [ExampleMaker(0).example("text"), None])
    (length, _), targets = batch.lengths, (batch.target_weights > 0).sum()
    wide = text.num_heads * text.head_dim
    narrow = text.num_kv_heads * text.head_dim
    d = text.hidden_size
    matrices = d * wide + 2 * d * narrow + wide * d + 3 * d * text.intermediate_size
    attention = 2 * wide * length**2 / 2  # scores and values, the causal half
    decoder = text.num_layers * 2 * (matrices * length + attention)
    head = 2 * d * text.vocab_size * targets
    assert step_flops(config, batch) == pytest.approx(3 * (decoder + head))
    assert step_flops(config, batch, extra_passes=2) == pytest.approx(5 * decoder + 3 * head)
    with_adapters = 3 * (decoder + head) - text.num_layers * 2 * matrices * length
    assert step_flops(config, batch, adapters=True) == pytest.approx(with_adapters)


def test_media_add_their_encoders_and_frozen_ones_a_third():
    config = ThinkerConfig.tiny(vocab_size=512, **IDS)
    batch = make_batch(config, [ExampleMaker(1).example("video", [None])], source="prompt")
    frozen = step_flops(config, batch, ("vision",))
    trained = step_flops(config, batch, ())
    lengths = dict(patch_lengths=np.zeros_like(batch.prompt.patch_lengths))
    blind = batch._replace(prompt=batch.prompt._replace(**lengths))
    vision = (trained - step_flops(config, blind, ())) / 3
    assert vision > 0 and trained - frozen == pytest.approx(2 * vision)


@pytest.mark.parametrize(
    ("mode", "passes"), [("teacher", 0), ("mixed", 1), ("jacobi", 2), ("rollout", 3)]
)
def test_passes_that_only_make_states(mode, passes):
    options = Objective(spec=SPEC, media=MEDIA, mode=mode)
    assert options.extra_passes(3) == passes
    assert options.extra_passes(0) == 0
