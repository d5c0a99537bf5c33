"""Decoding (paper Eq. 2, docs/method.md 2 and 9): one compiled loop over a whole batch.

Each row is in its own mode. A row that has just read the trigger feeds its own last hidden state
back, K times, rotated by OSPE; then the stop token is inserted and text resumes:

```
fed        .. w  u  OSPE(z1,t1) .. OSPE(zK,tK)  u'  w ..
produces      u  z1     z2      ..  (dropped)    w  ..
slot        0 0  0      1       ..      K        0  0
```

Every position is fed as an embedding, so the loop body has no branches. Rows share the cache slot
of a step: prompts are padded on the right, generated positions start at the prompt bucket's end,
and the padding between is masked. The loop stops at a traced `limit`, so that streaming calls the
same program again instead of compiling another.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.text import Cache, make_cache
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.latent.trajectory import slot_positions
from latentomni_jax.layout import InputError, LatentSpec
from pallas_kernels.ospe.api import ospe


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSpec:
    """What one decode program is compiled for.

    Attributes:
      latents: "auto" lets the model open blocks, "force" opens the answer with one, "off" forbids.
      max_blocks: blocks a row may open.
      max_new_tokens: sampled tokens of a row; latent slots and stop tokens do not count.
      temperature: 0 is greedy; top_k 0 and top_p 1 switch those filters off.
      eos_ids: tokens that end a row.
      keep_hidden: also return the hidden state of every generated position.
    """

    spec: LatentSpec
    latents: str = "auto"
    max_blocks: int = 3
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    eos_ids: tuple[int, ...] = ()
    keep_hidden: bool = False

    def __post_init__(self):
        if self.latents not in ("auto", "force", "off"):
            raise InputError(f"latents must be auto, force or off, got {self.latents!r}")
        if self.latents == "force" and self.max_blocks < 1:
            raise InputError("latents=force needs max_blocks >= 1")
        if self.max_new_tokens < 1 or self.max_blocks < 0:
            raise InputError("max_new_tokens must be >= 1 and max_blocks >= 0")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise InputError("need temperature >= 0, top_k >= 0 and 0 < top_p <= 1")

    @property
    def blocks(self) -> int:
        return 0 if self.latents == "off" else self.max_blocks

    @property
    def max_positions(self) -> int:
        """Generated positions that a row can have: tokens, latent slots and stop tokens."""
        return self.max_new_tokens + self.blocks * (self.spec.num_latents + 1)

    @property
    def capacity(self) -> int:
        """Cache slots for generated positions, a multiple of 64."""
        return -(-self.max_positions // 64) * 64


class DecodeState(NamedTuple):
    """The loop's carry. B rows, T = `capacity` generated positions.

    Attributes:
      step: generated positions already fed; the next one goes to cache slot S_prompt + step.
      embed: [B,D] input embedding of the next position.
      token: i32[B] its id; the spec's pad id for a latent slot.
      slot: i32[B] 0 for text, k for latent slot k = 1..K.
      position: i32[B] its TMRoPE id.
      block_base: i32[B] TMRoPE id where the open block's clock starts.
      blocks: i32[B] blocks opened; texts: i32[B] tokens sampled; done: bool[B].
      tokens: i32[B,T] ids of all generated positions, -1 where there is none.
      latents: f32[B, blocks*K, D] the states z, before OSPE.
      hidden: f32[B,T,D] of every fed position, or [B,0,D].
      keys: one PRNG key per row.
      cache: see `backbone.text`.
    """

    step: Int[Array, ""]
    embed: Float[Array, "B D"]
    token: Int[Array, B]
    slot: Int[Array, B]
    position: Int[Array, B]
    block_base: Int[Array, B]
    blocks: Int[Array, B]
    texts: Int[Array, B]
    done: Bool[Array, B]
    tokens: Int[Array, "B T"]
    latents: Float[Array, "B Z D"]
    hidden: Float[Array, "B T D"]
    keys: Array
    cache: Cache


def prefill(
    thinker: Thinker,
    decode_spec: DecodeSpec,
    params: Any,
    embeds: Float[Array, "B S D"],
    position_ids: Int[Array, "3 B S"],
    lengths: Int[Array, B],
    next_position: Int[Array, B],
    keys: Array,
) -> DecodeState:
    """Reads the prompts and chooses each row's first position."""
    batch, length, width = embeds.shape
    config = thinker.config.text
    cache = make_cache(
        config, batch, length + decode_spec.capacity, embeds.dtype, scan_layers=thinker.scan_layers
    )
    hidden, cache = thinker.apply({"params": params}, embeds, position_ids, cache, method="decode")
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    capacity, latents = decode_spec.capacity, decode_spec.blocks * decode_spec.spec.num_latents
    zeros = jnp.zeros(batch, jnp.int32)
    state = DecodeState(
        step=jnp.int32(0),
        embed=jnp.zeros((batch, width), embeds.dtype),
        token=jnp.full(batch, -1),
        slot=zeros,
        position=next_position - 1,
        block_base=zeros,
        blocks=zeros,
        texts=zeros,
        done=jnp.zeros(batch, bool),
        tokens=jnp.full((batch, capacity), -1),
        latents=jnp.zeros((batch, latents, width), jnp.float32),
        hidden=jnp.zeros((batch, capacity if decode_spec.keep_hidden else 0, width), jnp.float32),
        keys=keys,
        cache=cache,
    )
    return _choose(thinker, decode_spec, params, state, last, place=jnp.int32(0))


def decode(
    thinker: Thinker,
    decode_spec: DecodeSpec,
    params: Any,
    lengths: Int[Array, B],
    state: DecodeState,
    limit: Int[Array, ""],
    media_bs: Bool[Array, "B S"] | None = None,
    given: Float[Array, "B Z D"] | None = None,
) -> DecodeState:
    """Runs the loop until every row is done or `limit` generated positions are fed.

    Args:
      lengths: of the prompts.
      state: from `prefill` or an earlier call.
      media_bs: prompt positions that only triggers and latent slots see from a row's first trigger
        on (`masks.media_mask`), so none of `prefill`; None hides nothing.
      given: states z, block after block, that slots are fed instead of the model's own (causal
        probes); NaN leaves a slot its own.
    """
    first = state.cache if isinstance(state.cache, dict) else state.cache[0]
    prompt = first["k"].shape[-2] - decode_spec.capacity
    slots = jnp.arange(first["k"].shape[-2])
    in_prompt_bs = slots < lengths[:, None]
    if media_bs is not None:
        media_bs = jnp.pad(media_bs, ((0, 0), (0, decode_spec.capacity)))

    def body(state: DecodeState) -> DecodeState:
        generated = (slots >= prompt) & (slots <= prompt + state.step)
        visible_bs = in_prompt_bs | generated
        if media_bs is not None:
            is_trigger = state.token == decode_spec.spec.trigger_id
            looks = (state.blocks == 0) | is_trigger | (state.slot > 0)
            visible_bs &= looks[:, None] | ~media_bs
        hidden, cache = thinker.apply(
            {"params": params},
            state.embed[:, None],
            jnp.broadcast_to(state.position[:, None], (3, len(lengths), 1)),
            state.cache,
            prompt + state.step,
            visible_bs[:, None],
            method="decode",
        )
        hidden = hidden[:, 0]
        state = state._replace(cache=cache, step=state.step + 1)
        if decode_spec.keep_hidden:
            row = hidden.astype(jnp.float32)[:, None]
            rows = jax.lax.dynamic_update_slice_in_dim(state.hidden, row, state.step - 1, axis=1)
            state = state._replace(hidden=rows)
        return _choose(thinker, decode_spec, params, state, hidden, state.step, given)

    limit = jnp.minimum(limit, decode_spec.max_positions)
    return jax.lax.while_loop(lambda s: (s.step < limit) & ~jnp.all(s.done), body, state)


def _choose(thinker, decode_spec, params, state, hidden, place, given=None):
    """What follows a position whose final hidden state is `hidden` [B,D]; written at `place`."""
    spec, num_latents = decode_spec.spec, decode_spec.spec.num_latents
    opens = (state.token == spec.trigger_id) & (state.slot == 0)
    next_slot = jnp.where(opens, 1, jnp.where(state.slot > 0, state.slot + 1, 0))
    closes = next_slot > num_latents
    next_slot = jnp.where(closes, 0, next_slot)
    is_latent = next_slot > 0

    with jax.named_scope("logits"):
        logits = thinker.apply({"params": params}, hidden, method="logits")
    may_open = (
        (state.blocks < decode_spec.blocks)
        & (state.texts + 1 < decode_spec.max_new_tokens)
        & (decode_spec.latents != "off")
    )
    ids = jnp.arange(logits.shape[-1])
    forbidden = (ids == spec.pad_id) | (ids == spec.stop_id)
    forbidden = forbidden | ((ids == spec.trigger_id) & ~may_open[:, None])
    logits = jnp.where(forbidden, -jnp.inf, logits)
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, place)
    sampled = sample(decode_spec, logits, keys)
    if decode_spec.latents == "force":
        sampled = jnp.where(place == 0, spec.trigger_id, sampled)
    is_text = ~is_latent & ~closes
    token = jnp.where(is_latent, spec.pad_id, jnp.where(closes, spec.stop_id, sampled))

    # Positions: a slot's id comes from the block's clock, everything else follows on.
    offsets, extent = slot_positions(spec, thinker.config.positions_per_second)
    block_base = jnp.where(opens, state.position + 1, state.block_base)
    which = jnp.maximum(next_slot - 1, 0)
    position = jnp.where(
        is_latent,
        block_base + jnp.asarray(offsets)[which] if num_latents else 0,
        jnp.where(closes, block_base + extent, state.position + 1),
    )
    embed = thinker.apply({"params": params}, token, method="embed")
    latents = state.latents
    if latents.shape[1]:
        number = (state.blocks - 1) * num_latents + which  # of the slot, over all blocks
        if given is not None:
            index = jnp.maximum(number, 0)[:, None, None]
            other = jnp.take_along_axis(given, index, axis=1)[:, 0].astype(hidden.dtype)
            hidden = jnp.where(is_latent[:, None] & ~jnp.isnan(other), other, hidden)
        seconds = jnp.asarray(spec.slot_seconds())[which]
        embed = jnp.where(
            is_latent[:, None], latent_input(spec, hidden, seconds).astype(embed.dtype), embed
        )
        # Out of range (dropped) where there is no latent.
        row = jnp.where(is_latent & ~state.done, number, latents.shape[1])
        latents = latents.at[jnp.arange(len(row)), row].set(hidden.astype(jnp.float32), mode="drop")

    texts = state.texts + (is_text & ~state.done)
    ends = jnp.isin(token, jnp.array(decode_spec.eos_ids, jnp.int32)) & is_text
    emitted = jnp.where(state.done, -1, token)
    return state._replace(
        embed=embed,
        token=token,
        slot=next_slot,
        position=position,
        block_base=block_base,
        blocks=state.blocks + (is_text & ~state.done & (token == spec.trigger_id)),
        texts=texts,
        done=state.done | ends | (texts >= decode_spec.max_new_tokens),
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, emitted[:, None], place, axis=1),
        latents=latents,
    )


def latent_input(
    spec: LatentSpec, z: Float[Array, "*B D"], seconds: Float[Array, "*#B"]
) -> Float[Array, "*B D"]:
    """The input embedding of a latent slot: OSPE(z, t), or z where OSPE acts elsewhere."""
    return ospe(z, seconds, spec.ospe_base) if spec.ospe_apply in ("feature", "both") else z


def sample(decode_spec: DecodeSpec, logits: Float[Array, "B V"], keys: Array) -> Int[Array, B]:
    """One token per row with the row's own key: its draw does not depend on its batch mates."""
    if decode_spec.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / decode_spec.temperature
    if decode_spec.top_k:
        floor = jax.lax.top_k(logits, min(decode_spec.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    if decode_spec.top_p < 1:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        mass = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
        # Keep tokens until the mass before them reaches top_p; the first always stays.
        kept = jnp.sum(mass - jax.nn.softmax(ranked, axis=-1) < decode_spec.top_p, axis=-1)
        floor = jnp.take_along_axis(ranked, (kept - 1)[:, None], axis=-1)
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
