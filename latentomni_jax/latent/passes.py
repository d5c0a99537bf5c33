"""Passes over a training batch, and the states that each mode feeds its slots (docs/method.md 6).

A block's states z are what its trigger and slots produce; slot k is fed OSPE(z_k, t_k):

```
position   u      slot 1    slot 2   ..  slot K     u'
fed        emb    z_1       z_2          z_K        emb
produces   z_1    z_2       z_3          (unused)   text
```
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from latentomni_jax.backbone.text import make_cache
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.latent.decode import latent_input
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.latent.options import Objective
from latentomni_jax.layout import LatentSpec, Role, TrainBatch


def place_states(
    spec: LatentSpec,
    batch: TrainBatch,
    embeds: Float[Array, "B S D"],
    fed: Float[Array, "B N num_latents D"],
) -> Float[Array, "B S D"]:
    """Input embeddings with OSPE of the fed states in the latent slots."""
    b, n, k, width = fed.shape
    if not n * k:
        return embeds
    is_slot = (batch.roles == Role.LATENT_VISUAL) | (batch.roles == Role.LATENT_AUDIO)
    place = jnp.clip(jnp.cumsum(is_slot, axis=1) - 1, 0, n * k - 1)
    rotated = latent_input(spec, fed, jnp.asarray(spec.slot_seconds()))
    rotated = rotated.reshape(b, n * k, width).astype(embeds.dtype)
    taken = jnp.take_along_axis(rotated, place[..., None], axis=1)
    return jnp.where(is_slot[..., None], taken, embeds)


def forward(
    thinker: Thinker,
    spec: LatentSpec,
    params: Any,
    batch: TrainBatch,
    embeds: Float[Array, "B S D"],
    fed: Float[Array, "B N num_latents D"],
) -> tuple[Float[Array, "B S D"], Float[Array, "B N num_latents D"]]:
    """One pass with the states `fed` in the slots: hidden states, and the states z it produces."""
    hidden, _ = _decode(thinker, spec, params, batch, embeds, fed)
    return hidden, produced(spec, batch, hidden)


def forward_with_middle(
    thinker: Thinker,
    spec: LatentSpec,
    params: Any,
    batch: TrainBatch,
    embeds: Float[Array, "B S D"],
    fed: Float[Array, "B N num_latents D"],
) -> tuple[Float[Array, "B S D"], Float[Array, "B N num_latents D"], Float[Array, "B S D"]]:
    """As `forward`, and what the middle layer puts out."""
    (hidden, _), kept = _decode(
        thinker, spec, params, batch, embeds, fed, mutable=["intermediates"]
    )
    middle = thinker.config.text.num_layers // 2 - 1
    (layers,) = kept["intermediates"]["text"]["layers"]["out"]
    return hidden, produced(spec, batch, hidden), layers[middle]


def _decode(thinker, spec, params, batch, embeds, fed, *cache, **options):
    return thinker.apply(
        {"params": params},
        place_states(spec, batch, embeds, fed),
        batch.position_ids,
        *cache,
        hidden=flow_mask(spec, batch.roles),
        method="decode",
        **options,
    )


def produced(
    spec: LatentSpec, batch: TrainBatch, hidden: Float[Array, "B S D"]
) -> Float[Array, "B N num_latents D"]:
    """The states z of every block: h(u), then h of every slot but the last."""
    b, n = batch.triggers.shape
    places = jnp.maximum(batch.triggers, 0)[..., None] + jnp.arange(spec.num_latents)
    z = jnp.take_along_axis(hidden, places.reshape(b, -1, 1), axis=1)
    return z.reshape(b, n, spec.num_latents, hidden.shape[-1])


def states_to_feed(
    thinker: Thinker,
    options: Objective,
    params: Any,
    batch: TrainBatch,
    embeds: Float[Array, "B S D"],
    anchor: Float[Array, "B N num_latents D"],
    has_anchor: Bool[Array, "B N num_latents"],
    key: Array,
) -> Float[Array, "B N num_latents D"]:
    """What the slots of the differentiated pass are fed; carries no gradient.

    A slot without an anchor (a segment without sound) is fed zeros by "teacher", its own state by
    the other modes.
    """
    spec = options.spec
    params, embeds, anchor = jax.lax.stop_gradient((params, embeds, anchor))
    anchor = anchor.astype(embeds.dtype)
    if not anchor.size or options.mode == "teacher":
        return anchor
    if options.mode == "rollout":
        return rollout(thinker, spec, params, batch, embeds)

    def again(fed):
        return forward(thinker, spec, params, batch, embeds, fed)[1]

    if options.mode == "mixed":
        own = again(anchor)
        takes_own = jax.random.bernoulli(key, options.own_probability, anchor.shape[:-1])
        return jnp.where((takes_own | ~has_anchor)[..., None], own, anchor)
    fed, _ = jax.lax.scan(
        lambda fed, _: (again(fed), None),
        jnp.zeros_like(anchor),
        length=options.jacobi_passes - 1,
    )
    return fed


def rollout(
    thinker: Thinker,
    spec: LatentSpec,
    params: Any,
    batch: TrainBatch,
    embeds: Float[Array, "B S D"],
) -> Float[Array, "B N num_latents D"]:
    """The model's own states, slot after slot with a cache, exactly as decoding makes them.

    Per block one full pass, which writes the cache up to the block's trigger (what it writes
    behind is overwritten or not looked at), then K steps of one position each.
    """
    b, n = batch.triggers.shape
    k, (_, length, width) = spec.num_latents, embeds.shape
    slots = jnp.arange(length)
    seconds = jnp.asarray(spec.slot_seconds())
    ids = jnp.moveaxis(batch.position_ids, 0, -1)

    def block(fed, index):
        cache = make_cache(
            thinker.config.text, b, length, embeds.dtype, scan_layers=thinker.scan_layers
        )
        hidden, cache = _decode(thinker, spec, params, batch, embeds, fed, cache)
        trigger = jnp.maximum(jnp.take(batch.triggers, index, axis=1), 0)
        z = jnp.take_along_axis(hidden, trigger[:, None, None], axis=1)

        def step(carry, slot):
            z, cache = carry
            place = trigger + 1 + slot
            hidden, cache = thinker.apply(
                {"params": params},
                latent_input(spec, z, seconds[slot]).astype(embeds.dtype),
                jnp.moveaxis(jnp.take_along_axis(ids, place[:, None, None], axis=1), -1, 0),
                cache,
                place,
                (slots <= place[:, None])[:, None],
                method="decode",
            )
            return (hidden, cache), z[:, 0]

        _, states = jax.lax.scan(step, (z, cache), jnp.arange(k))
        return fed.at[:, index].set(jnp.moveaxis(states, 0, 1)), None

    fed, _ = jax.lax.scan(block, jnp.zeros((b, n, k, width), embeds.dtype), jnp.arange(n))
    return fed
