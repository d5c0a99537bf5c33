"""What a model generated, as one pass: the positions, inputs and roles that decoding went through.

One pass over prompt and answer gives every position's attention and states at once; decoding equals
it to rounding (tests/latent/test_decode.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.positions import Clock
from latentomni_jax.latent.decode import latent_input
from latentomni_jax.latent.trajectory import collate, slot_positions
from latentomni_jax.layout import LatentSpec, Part, Role
from latentomni_jax.model import Generation, LatentOmni


class Replay(NamedTuple):
    """One row, S positions: the prompt's, then those that were generated.

    Attributes:
      embeds: f32[1,S,D] inputs. position_ids: i32[3,1,S]. roles: i8[S] of `Role`.
      token_ids: i32[S]; the pad id stands for a latent slot.
      prompt_length: positions of the prompt.
    """

    embeds: jax.Array
    position_ids: np.ndarray
    roles: np.ndarray
    token_ids: np.ndarray
    prompt_length: int


def replay(
    model: LatentOmni, prompt: Sequence[Part], generation: Generation, *, clock: Clock = "true"
) -> Replay:
    """The pass that equals a generation. Raises InputError as `LatentOmni.generate` does."""
    spec, ids = model.latent, np.asarray(generation.token_ids)
    batch, groups, table = collate(model.config, [prompt], clock=clock, media=model.media)
    length = int(batch.lengths[0])
    before = model.embed(batch, groups, table)[:, :length]
    after = model.thinker.apply({"params": model.text_params}, jnp.asarray(ids), method="embed")
    roles = generated_roles(spec, ids)
    slots = np.flatnonzero(ids == spec.pad_id)
    if len(slots):
        fed = latent_input(spec, jnp.asarray(generation.latents), jnp.asarray(spec.slot_seconds()))
        after = after.at[slots].set(
            fed.reshape(-1, fed.shape[-1])[: len(slots)].astype(after.dtype)
        )
    places = _positions(spec, ids, int(batch.next_position[0]), model.config.positions_per_second)
    return Replay(
        jnp.concatenate([before, after[None]], axis=1),
        np.concatenate(
            [batch.position_ids[:, :, :length], np.broadcast_to(places, (3, 1, len(ids)))], axis=2
        ),
        np.concatenate([batch.roles[0, :length], roles]),
        np.concatenate([batch.token_ids[0, :length], ids]),
        length,
    )


def generated_roles(spec: LatentSpec, ids: np.ndarray) -> np.ndarray:
    """Roles i8[n] of generated ids; a block that the token limit cut off counts as far as it is."""
    roles = np.full(len(ids), Role.ASSISTANT_TEXT, np.int8)
    roles[ids == spec.trigger_id], roles[ids == spec.stop_id] = Role.TRIGGER, Role.STOP
    slot = -1
    for place, token in enumerate(ids):
        slot = slot + 1 if token == spec.pad_id else -1
        if slot >= 0:
            is_visual = slot < spec.num_visual
            roles[place] = Role.LATENT_VISUAL if is_visual else Role.LATENT_AUDIO
    return roles


def _positions(spec, ids, position, per_second):
    """TMRoPE ids i32[n] of generated tokens, as the decoder counts them."""
    offsets, extent = slot_positions(spec, per_second)
    places, slot = np.zeros(len(ids), np.int32), 0
    for place, token in enumerate(ids):
        if token == spec.pad_id:
            places[place] = position + offsets[slot]
            slot += 1
            continue
        if slot:
            position, slot = position + extent, 0
        places[place] = position
        position += 1
    return places
