"""What a model generated, as one pass: the positions, inputs and roles that decoding went through.

One pass over prompt and answer gives every position's attention and states at once; decoding equals
it to rounding (tests/latent/test_decode.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.positions import Clock
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.latent.decode import latent_input
from latentomni_jax.latent.trajectory import PROMPT_BUCKETS, collate, slot_positions
from latentomni_jax.layout import (
    AudioPart,
    EncodedPart,
    LatentSpec,
    Part,
    Role,
    TextPart,
    VisionPart,
    bucket,
)
from latentomni_jax.model import Generation, LatentOmni

_BLOCKS = (1, 2, 4, 8, 16)  # static counts of latent blocks


class Replay(NamedTuple):
    """One row of S positions: the prompt's, then those that were generated, then padding.

    S is from the prompts' table of buckets, so that a set of questions needs few programs.

    Attributes:
      embeds: [1,S,D] inputs, in the computation's dtype. position_ids: i32[3,1,S].
      roles: i8[S] of `Role`, PAD from `length` on.
      token_ids: i32[S]; the pad id stands for a latent slot.
      prompt_length: positions of the prompt. length: of prompt and generation.
      media: the prompt's pictures and recordings, in order.
    """

    embeds: jax.Array
    position_ids: np.ndarray
    roles: np.ndarray
    token_ids: np.ndarray
    prompt_length: int
    length: int
    media: tuple[VisionPart | AudioPart | EncodedPart, ...]


def replay(
    model: LatentOmni, prompt: Sequence[Part], generation: Generation, *, clock: Clock = "true"
) -> Replay:
    """The pass that equals a generation. Raises InputError as `LatentOmni.generate` does."""
    spec, ids = model.latent, np.asarray(generation.token_ids)
    batch, groups, table = collate(model.config, [prompt], clock=clock, media=model.media)
    before = int(batch.lengths[0])
    length = before + len(ids)
    generated = slice(before, length)
    size = bucket(length, PROMPT_BUCKETS)
    roles, token_ids = np.full(size, Role.PAD, np.int8), np.zeros(size, np.int32)
    position_ids = np.zeros((3, 1, size), np.int32)
    roles[:before], roles[generated] = batch.roles[0, :before], generated_roles(spec, ids)
    token_ids[:before], token_ids[generated] = batch.token_ids[0, :before], ids
    position_ids[:, :, :before] = batch.position_ids[:, :, :before]
    position_ids[:, 0, generated] = _positions(
        spec, ids, int(batch.next_position[0]), model.config.positions_per_second
    )
    prompt_embeds = model.embed(batch, groups, table)[0]
    # Rows of the table of `_inputs`: the prompt's, then the slots'.
    rows = np.full(size, -1, np.int32)
    rows[:before] = np.arange(before)
    slots = before + np.flatnonzero(ids == spec.pad_id)
    rows[slots] = len(prompt_embeds) + np.arange(len(slots))
    states = np.zeros(
        (bucket(len(generation.latents), _BLOCKS), spec.num_latents, prompt_embeds.shape[1]),
        np.float32,
    )
    states[: len(generation.latents)] = generation.latents
    embeds = _inputs(
        model.thinker, spec, model.text_params, prompt_embeds, states, token_ids[None], rows[None]
    )
    media = tuple(part for part in prompt if not isinstance(part, TextPart))
    return Replay(embeds, position_ids, roles, token_ids, before, length, media)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inputs(
    thinker: Thinker, spec: LatentSpec, params: Any, prompt_sd, states_bkd, token_ids, rows
) -> jax.Array:
    """Input embeddings [1,S,D]: what a position's row names, or its token's own where it is -1."""
    fed = latent_input(spec, states_bkd, jnp.asarray(spec.slot_seconds()))
    fed = fed.reshape(-1, fed.shape[-1]).astype(prompt_sd.dtype)
    table = jnp.concatenate([prompt_sd, fed])
    return thinker.apply({"params": params}, token_ids, rows, table, method="splice")


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
