"""The training objective: L = L_text + λ1 L_latent + λ2 L_sync (paper Eq. 7, docs/method.md 4-6).

One forward pass over `[prompt, text, u, slots, u', text, .., answer]` in which every slot is fed a
given state; the modes differ only in where that state comes from:

```
teacher   the anchor                       rollout  the model's own, one slot after the other
mixed     the anchor or the model's own    jacobi   the model's own, all slots at once, n passes
```

States that are fed carry no gradient; a slot's loss reaches the model through the pass that
produced it. Params are the thinker's towers and `{"sync": {"log_scale": f32[]}}`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Array
from latentomni_jax.latent import losses
from latentomni_jax.latent.anchors import anchors as make_anchors
from latentomni_jax.latent.binding import binding_loss, moments
from latentomni_jax.latent.encode import encode_media, input_embeddings
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.passes import forward, forward_with_middle, states_to_feed
from latentomni_jax.latent.sync import sync_loss, sync_mask
from latentomni_jax.layout import LatentSpec, TrainBatch


class Counts(NamedTuple):
    """What the losses are means over, for a whole step: targets, anchored blocks, moments of sync,
    moments of prompts that are seen and heard."""

    targets: Float[Array, ""]
    blocks: Float[Array, ""]
    moments: Float[Array, ""]
    bound: Float[Array, ""]


def count(spec: LatentSpec, batch: TrainBatch) -> Counts:
    """Counts of a batch (sum them over micro-batches)."""
    mask = _anchor_mask(spec, batch)
    return Counts(
        jnp.sum(batch.target_weights),
        jnp.sum(jnp.any(mask, axis=-1).astype(jnp.float32)),
        jnp.sum(sync_mask(spec, mask).astype(jnp.float32)),
        jnp.sum(moments(batch)[0].astype(jnp.float32)),
    )


def objective(
    thinker: Thinker,
    options: Objective,
    params: Any,
    batch: TrainBatch,
    counts: Counts,
    key: Array,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of one micro-batch and its share of the metrics.

    Args:
      counts: of the whole step, so that micro-batches simply add up.
      key: for mode "mixed".

    Returns:
      The loss, and metrics that are all sums over the step once micro-batches are added.
    """
    spec = options.spec
    features = encode_media(
        thinker, options.media, params, batch, options.frames_per_call, options.frozen
    )
    anchor, mask = make_anchors(
        spec, features, batch.visual_rows, batch.audio_rows, options.anchor_power
    )
    embeds = input_embeddings(thinker, params, batch, features)
    fed = states_to_feed(thinker, options, params, batch, embeds, anchor, mask, key)
    if options.weight_bind:
        hidden, z, middle = forward_with_middle(thinker, spec, params, batch, embeds, fed)
    else:
        hidden, z = forward(thinker, spec, params, batch, embeds, fed)

    name = "embed_tokens" if thinker.config.text.tie_embeddings else "lm_head"

    def logits(head, h):
        text = params["text"] | {name: head}
        return thinker.apply({"params": {"text": text}}, h, method="logits")

    with jax.named_scope("losses"):
        at_targets = jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
        nll, right = losses.text_loss(
            logits,
            params["text"][name],
            at_targets,
            batch.target_ids,
            batch.target_weights,
            options.target_chunk,
        )
        distance = losses.latent_loss(z, anchor, mask, options.latent_reduction)
        sync = sync_loss(options, params["sync"], z, mask, features, batch, thinker.platform)
        text = nll / jnp.maximum(counts.targets, 1)
        latent = distance / jnp.maximum(counts.blocks, 1)
        sync = sync / jnp.maximum(counts.moments, 1)
        total = text + options.weight_latent * latent + options.weight_sync * sync
        extra = {}
        if options.weight_bind:
            bind = binding_loss(
                middle, embeds, params["sync"]["log_scale"], batch, before=options.bind_before
            )
            extra["loss/bind"] = bind / jnp.maximum(counts.bound, 1)
            total = total + options.weight_bind * extra["loss/bind"]
    frozen_z = jax.lax.stop_gradient(z)
    has_anchor = jnp.any(mask, axis=-1)
    spread = losses.diversity(frozen_z, has_anchor)
    per_block = 1 / jnp.maximum(counts.blocks, 1)
    return total, {
        "loss/total": total,
        "loss/text": text,
        "loss/latent": latent,
        "loss/sync": sync,
        **extra,
        "text/accuracy": right / jnp.maximum(counts.targets, 1),
        "latent/cosine": spread["cosine"] * per_block,
        "latent/rank": spread["rank"] * per_block,
        "latent/retrieval": losses.retrieval(frozen_z, anchor, mask) * per_block,
    }


def _anchor_mask(spec: LatentSpec, batch: TrainBatch) -> Bool[Array, "B N num_latents"]:
    """Slots that have an anchor, from the row lists alone."""
    has = [jnp.any(rows >= 0, axis=-1) for rows in (batch.visual_rows, batch.audio_rows)]
    counts = (spec.num_visual, spec.num_audio)
    return jnp.concatenate(
        [jnp.broadcast_to(h[..., None], (*h.shape, n)) for h, n in zip(has, counts, strict=True)],
        axis=-1,
    )
