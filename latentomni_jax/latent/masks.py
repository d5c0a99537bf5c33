"""Who may look at what (docs/method.md 7), written from roles.

```
roles    text video audio text | trigger latent latent stop text answer
media     .     x     x    .   |    .      .      .     .    .    .
blocked   .     .     .    .   |    .      .      .     x    x    x
```
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Bool, Int

from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import LatentSpec, Role


def media_mask(spec: LatentSpec, roles: Int[Array, "B S"]) -> Bool[Array, "B S"] | None:
    """Positions of the prompt's video and audio, bool[B,S]; None where `flow` is open."""
    if spec.flow == "open":
        return None
    return _is(roles, Role.PROMPT_VIDEO, Role.PROMPT_AUDIO)


def flow_mask(
    spec: LatentSpec, roles: Int[Array, "B S"]
) -> tuple[Bool[Array, "B S"], Bool[Array, "B S"]] | None:
    """The `hidden` of `backbone.text.Decoder.decode` for rows of these roles (i8[B,S]).

    Blocked are positions from a row's first trigger on that are neither trigger nor latent slot
    (padding among them); they do not see the media. None where `flow` is open.
    """
    media = media_mask(spec, roles)
    if media is None:
        return None
    opened = jnp.cumsum(_is(roles, Role.TRIGGER), axis=1) > 0
    return opened & ~_is(roles, Role.TRIGGER, Role.LATENT_VISUAL, Role.LATENT_AUDIO), media


def _is(roles, *which):
    return jnp.isin(roles, jnp.array(which, jnp.int8))
