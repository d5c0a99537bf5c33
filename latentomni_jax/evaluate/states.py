"""What latent states are like: how different, what they point at, and who looks through them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from latentomni_jax.backbone.types import Array
from latentomni_jax.evaluate.answers import Scored, prompt_of
from latentomni_jax.evaluate.attention import shares
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.latent import losses
from latentomni_jax.latent.anchors import pool
from latentomni_jax.latent.decode import latent_input
from latentomni_jax.latent.sync import latent_moments
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import Part, Role
from latentomni_jax.media.processor import clip_part
from latentomni_jax.media.video import read_segments
from latentomni_jax.model import LatentOmni

ATTENDED = 8  # answers: a pass over each


def measure_states(
    model: LatentOmni, answers: Sequence[Scored], root: Path, *, attended: int = ATTENDED
) -> dict[str, float]:
    """Measures of the states in some answers; a measure without anything to measure is left out.

    Args:
      answers: the model's own, see `answers.answer_all`.
      root: what the questions' paths are relative to.
      attended: of the answers with blocks, how many have their attention looked at.

    Returns:
      cosine, rank: of a block's states, see `losses.diversity`.
      explained: of how far anchors lie from the mean anchor of their slot, the share (squared) that
        the states are nearer. 0 is what one state for all clips gives; below 0 is worse than that.
      retrieval: share of slots nearest to their own anchor among the block's K (chance 1/K).
      segment retrieval: share of blocks whose states are nearest to the anchors of the moment that
        the data cites there, among all blocks' moments.
      matched, unmatched: cosine distance of visual and audio states of the same, and of another
        moment of a block; "rotated" after OSPE.
      to clip, through latents: attention of the text after the last block, see `attention.Shares`.
    """
    spec = model.latent
    blocks = [block for answer in answers for block in answer.generation.latents]
    if not blocks or not spec.num_latents:
        return {}
    z = jnp.asarray(np.stack(blocks))[:, None]  # [blocks, 1, K, D]
    spread = losses.diversity(z, jnp.ones(z.shape[:2], bool))
    found = {name: float(value) / len(blocks) for name, value in spread.items()}
    found |= _retrieval(model, answers, root)
    if spec.num_audio > 1 and spec.num_visual:
        seconds = jnp.asarray(spec.slot_seconds())
        rotated = latent_input(spec, z, seconds)
        for name, states in (("", z), (", rotated", rotated)):
            same, other = _distances(*latent_moments(spec, states))
            found |= {f"matched{name}": same, f"unmatched{name}": other}
    return found | _attention(model, answers, root, attended)


def _retrieval(model, answers, root):
    pairs = []
    for answer in answers:
        question, states = answer.question, answer.generation.latents
        if question.kind == "video" and len(states) == len(question.segments):
            _, cuts = read_segments(root / question.path, model.media, question.segments)
            for state, cut in zip(states, cuts, strict=True):
                if cut is not None:
                    pairs.append((state, anchors_of(model, clip_part(cut, model.media))))
    if not pairs:
        return {}
    z = jnp.asarray(np.stack([state for state, _ in pairs]))[:, None]
    anchor = jnp.stack([anchor for _, (anchor, _) in pairs])[:, None]
    mask = jnp.stack([mask for _, (_, mask) in pairs])[:, None]
    found = {"retrieval": float(losses.retrieval(z, anchor, mask)) / len(pairs)}
    explained = _explained(z[:, 0], anchor[:, 0], mask[:, 0])
    if explained is not None:  # else all anchors are alike
        found["explained"] = explained
    flat_z, flat_a = (losses.unit(x[:, 0] * mask[:, 0, :, None]) for x in (z, anchor))
    scores = jnp.einsum("nkd,mkd->nm", flat_z, flat_a - flat_a.mean(axis=0))
    # Moments that look and sound the same are not told apart: one of the best is right.
    own = jnp.diagonal(scores) >= scores.max(axis=1) - 1e-5
    return found | {"segment retrieval": float(own.mean())}


def _explained(z, anchor, mask):
    weight = mask[..., None].astype(z.dtype)
    mean = jnp.sum(anchor * weight, axis=0) / jnp.maximum(weight.sum(axis=0), 1)
    missed, whole = (float(jnp.sum((x * weight) ** 2)) for x in (z - anchor, anchor - mean))
    return 1 - missed / whole if whole else None


def anchors_of(model: LatentOmni, part: Part) -> tuple[Float[Array, "K D"], Array]:
    """Anchors of a cut segment, pooled as by default, and which slots have one."""
    spec = model.latent
    batch, groups, rows = collate(model.config, [[part]])
    embeds = model.embed(batch, groups, rows)[0]
    pooled, mask = [], []
    for role, count in (
        (Role.PROMPT_VIDEO, spec.num_visual),
        (Role.PROMPT_AUDIO, spec.num_audio),
    ):
        features = embeds[np.flatnonzero(batch.roles[0] == role)]
        if len(features):
            pooled.append(pool(features, jnp.int32(len(features)), count))
        else:
            pooled.append(jnp.zeros((count, embeds.shape[-1])))
        mask.append(jnp.full(count, len(features) > 0))
    return jnp.concatenate(pooled), jnp.concatenate(mask)


def _distances(visual, audio):
    """Means of 1 - cosine over equal, and over different moments of a block."""
    cosine = jnp.einsum("bntd,bnsd->bnts", losses.unit(visual), losses.unit(audio)).mean((0, 1))
    count = len(cosine)
    same = jnp.trace(cosine) / count
    other = (cosine.sum() - jnp.trace(cosine)) / (count * (count - 1))
    return float(1 - same), float(1 - other)


def _attention(model, answers, root, attended):
    looks = []
    for answer in [a for a in answers if len(a.generation.latents)][:attended]:
        row = replay(model, prompt_of(model, answer.question, root), answer.generation)
        stops = np.flatnonzero(row.roles == Role.STOP)
        if len(stops) and stops[-1] + 1 < row.length:
            looks.append(shares(model, row, range(stops[-1] + 1, row.length)))
    if not looks:
        return {}
    return {
        "to clip": float(np.mean([look.video + look.audio for look in looks])),
        "through latents": float(np.mean([look.through_latents for look in looks])),
    }
