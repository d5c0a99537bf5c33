"""L_bind, for models from nothing: sound knows what is seen then, itself, and what was before.

A pretrained thinker has learned to bind sound to picture before latents are trained; a model from
nothing has not, and answers alone teach it slowly (the paper has no such loss). Here the prompt's
sound positions of every frame have to single out their own frame among those of the clip, and their
own sound too: asked for the picture alone, sounds are found again late, if at all. With `before`
they also have to single out frame and sound of the moment before: "what comes after" was learned
with that alone (docs/results.md).

```
h_g   mean state, in the middle layer, of the sound positions from frame g on, up to the next frame
v_g   mean encoder feature of frame g, less the mean over the clip, stop-gradient
a_g   mean encoder feature of those sound positions, likewise
R     a fixed rotation (channels rolled by half), so that one state has room for now and before
```

The sum of symmetric InfoNCE of h_g with v_g and a_g, and with R v_(g-1) and R a_(g-1), over the
moments of a row, as in `latent.sync`.
Features of a frame do not know its time, so that the clock alone does not solve it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from latentomni_jax.backbone.types import Array
from latentomni_jax.latent.losses import unit
from latentomni_jax.latent.sync import sync_scale
from latentomni_jax.layout import Role, TrainBatch


def moments(batch: TrainBatch) -> tuple[Bool[Array, "B G"], Int[Array, "B S"], Int[Array, "B S"]]:
    """Which frames of the prompt are heard; the frame of each picture and of each sound position.

    Positions that are neither, and sound before the first frame, have frame -1.
    """
    _, frames, patches = batch.prompt.windows.shape
    number = jnp.arange(frames)
    time = batch.position_ids[0]
    seen = jnp.where(batch.roles == Role.PROMPT_VIDEO, batch.feature_index // (patches // 4), -1)
    is_sound = batch.roles == Role.PROMPT_AUDIO
    of_frame = seen[..., None] == number
    start = jnp.max(jnp.where(of_frame, time[..., None], -1), axis=1)  # -1: no such frame
    begun = (start[:, None] >= 0) & (start[:, None] <= time[..., None])
    heard = jnp.where(is_sound, jnp.sum(begun, axis=-1) - 1, -1)
    return jnp.any(heard[..., None] == number, axis=1), seen, heard


def binding_loss(
    hidden: Float[Array, "B S D"],
    embeds: Float[Array, "B S D"],
    log_scale: Float[Array, ""],
    batch: TrainBatch,
    *,
    before: bool = False,
) -> Float[Array, ""]:
    """L_bind summed over moments.

    Args:
      hidden: of any layer; the objective takes the middle one, so that later layers can use what
        was bound. embeds: input embeddings, the features at positions of media.
      log_scale: the temperature that L_sync has too.
      before: the moment before is asked for too.
    """
    valid, seen, heard = moments(batch)
    number = jnp.arange(valid.shape[1])

    def mean_of(x, frame):
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        weight = (frame[..., None] == number).astype(x.dtype)
        total = jnp.einsum("bsg,bsd->bgd", weight, x)
        return total / jnp.maximum(weight.sum(axis=1), 1)[..., None]

    count = jnp.maximum(valid.sum(axis=1), 1)[:, None, None]
    state = unit(mean_of(hidden, heard)) * sync_scale(log_scale)

    def loss(x, valid):
        scores = jnp.einsum("bgd,bhd->bgh", state, unit(x))
        scores = jnp.where(valid[:, None] & valid[..., None], scores, -1e9)
        own = jnp.diagonal(scores, axis1=1, axis2=2)
        both = [jax.nn.logsumexp(scores, axis=axis) - own for axis in (1, 2)]
        return jnp.sum(jnp.where(valid, sum(both) / 2, 0))

    has_before = (number > 0) & valid & jnp.roll(valid, 1, axis=1)
    total = jnp.zeros(())
    for frame in (seen, heard):
        x = jax.lax.stop_gradient(mean_of(embeds, frame))
        x = x - jnp.sum(jnp.where(valid[..., None], x, 0), axis=1, keepdims=True) / count
        total = total + loss(x, valid)
        if before:
            earlier = jnp.roll(x, (1, x.shape[-1] // 2), axis=(1, 2))
            total = total + loss(earlier, has_before)
    return total
