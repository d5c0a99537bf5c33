"""The training objective in PyTorch: the oracle of ours, losses and gradients.

Written from the method's text with the transformers thinker and autograd, one row and one block
after the other. Of our code it takes token ids and positions of a row, which have tests of their
own; where a part stands, what is predicted and what belongs to which block is found out again here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.latent.trajectory import lay_out
from latentomni_jax.layout import (
    AudioPart,
    LatentPart,
    LatentSpec,
    MediaSpec,
    Part,
    Role,
    TextPart,
    VisionPart,
)

Tensor = torch.Tensor


@dataclasses.dataclass
class Block:
    """A latent block of a row: where its trigger stands, and the anchor of every slot or None."""

    trigger: int
    anchors: list[Tensor | None]


@dataclasses.dataclass
class Pass:
    """A row after its forward pass: hidden states [S,D], blocks, (position, id) of targets."""

    hidden: Tensor
    blocks: list[Block]
    targets: list[tuple[int, int]]


def torch_objective(
    reference: Any,
    log_scale: Tensor,
    config: ThinkerConfig,
    spec: LatentSpec,
    media: MediaSpec,
    examples: Sequence[Sequence[Part]],
    *,
    weight_latent: float = 0.005,
    weight_sync: float = 1.0,
    source: str = "segment",
    power: int = 1,
) -> tuple[dict[str, Tensor], list[Pass]]:
    """Losses `total`, `text`, `latent`, `sync` of the batch, and the rows they come from."""
    rows = [forward(reference, config, spec, media, parts, source, power) for parts in examples]
    text = torch.stack([nll for row in rows for nll in text_losses(reference, row)]).mean()
    latent = mean([latent_loss(row.hidden, block) for row in rows for block in row.blocks])
    sync = mean(
        [
            sync_loss(spec, row.hidden, block, log_scale)
            for row in rows
            for block in row.blocks
            if block.anchors[0] is not None and block.anchors[-1] is not None
        ]
    )
    total = text + weight_latent * latent + weight_sync * sync
    return {"total": total, "text": text, "latent": latent, "sync": sync}, rows


def mean(values: list[Tensor]) -> Tensor:
    """0 where nothing counts."""
    return torch.stack(values).mean() if values else torch.zeros(())


def forward(reference, config, spec, media, parts, source, power) -> Pass:
    """Encoders, anchors, teacher-forced slots and one pass of the language model over a row."""
    row = lay_out(config, parts, spec=spec)
    ids = torch.tensor(row.token_ids).long()
    x = reference.model.language_model.embed_tokens(ids)
    encoded = {i: encode(reference, media, p) for i, p in enumerate(parts) if is_media(p)}
    blocks, targets, place = [], [], 0
    for i, part in enumerate(parts):
        if isinstance(part, TextPart):
            size = len(part.token_ids)
            if part.role in (Role.ASSISTANT_TEXT, Role.ANSWER):
                targets += [(p - 1, int(ids[p])) for p in range(place, place + size)]
        elif isinstance(part, LatentPart):
            assert ids[place] == spec.trigger_id
            targets.append((place - 1, spec.trigger_id))
            if source == "segment":
                seen, heard = encode(reference, media, part.segment)
            else:
                seen, heard = cut(parts, encoded, part.seconds)
            visual = pool(seen.detach(), spec.num_visual, power)
            audio = pool(heard.detach(), spec.num_audio, power)
            blocks.append(Block(place, visual + audio))
            size = spec.num_visual + spec.num_audio + 2
            for slot, anchor in enumerate(blocks[-1].anchors):
                given = torch.zeros(x.shape[-1]) if anchor is None else anchor
                x = put(x, [place + 1 + slot], ospe(given, seconds(spec, slot), spec)[None])
        else:
            seen, heard = encoded[i]
            is_video = isinstance(part, VisionPart)
            size = len(seen) + len(heard) + (4 if is_video and part.mel is not None else 2)
            span = range(place, place + size)
            pictures = (config.image_token_id, config.video_token_id)
            x = put(x, [p for p in span if ids[p] in pictures], seen)
            x = put(x, [p for p in span if ids[p] == config.audio_token_id], heard)
        place += size
    assert place == len(ids)
    positions = torch.tensor(row.position_ids).long()[:, None]
    out = reference.model.language_model(inputs_embeds=x[None], position_ids=positions)
    return Pass(out.last_hidden_state[0], blocks, targets)


def is_media(part: Part) -> bool:
    return isinstance(part, VisionPart | AudioPart)


def put(x: Tensor, places: list[int], rows: Tensor) -> Tensor:
    """`x` [S,D] with rows in some places, differentiably."""
    assert len(places) == len(rows)
    return x.index_put((torch.tensor(places, dtype=torch.long),), rows.to(x.dtype))


def encode(reference, media: MediaSpec, part: VisionPart | AudioPart) -> tuple[Tensor, Tensor]:
    """What the towers make of a part's pictures [n,D] and of its sound [m,D]; n or m may be 0."""
    width = reference.lm_head.weight.shape[1]
    seen = heard = torch.zeros(0, width)
    if isinstance(part, VisionPart):
        pixels = torch.tensor(part.patches.reshape(-1, 3, 2 * 14 * 14)).float() / 255
        mean = torch.tensor(media.image_mean)[:, None]
        std = torch.tensor(media.image_std)[:, None]
        patches = ((pixels - mean) / std).reshape(len(pixels), -1)
        seen = reference.model.visual(patches, grid_thw=torch.tensor([part.grid])).pooler_output
    if part.mel is not None:
        lengths = torch.tensor([len(part.mel)])
        mel = torch.tensor(part.mel.T.astype(np.float32))
        heard = reference.model.audio_tower(mel, feature_lens=lengths).last_hidden_state
    return seen, heard


def cut(parts, encoded, cited) -> tuple[Tensor, Tensor]:
    """Features of the prompt's first video and first sound between two moments."""
    start, end = cited
    seen = heard = None
    for i, (pictures, sound) in encoded.items():
        part = parts[i]
        if seen is None and isinstance(part, VisionPart) and not part.is_image:
            by_frame = pictures.reshape(part.grid[0], -1, pictures.shape[-1])
            seen = torch.cat([f for f, t in zip(by_frame, part.seconds, strict=True)
                              if start <= t < end])  # fmt: skip
        if heard is None and part.mel is not None:  # token j covers j/25 .. (j+1)/25 s
            kept = [j for j in range(len(sound)) if (j + 1) / 25 > start and j / 25 < end]
            heard = sound[kept]
    none = torch.zeros(0)
    return none if seen is None else seen, none if heard is None else heard


def pool(x: Tensor, count: int, power: int) -> list[Tensor | None]:
    """N features to `count` anchors: weighted windows, or interpolation where there are few."""
    n = len(x)
    if n == 0:
        return [None] * count
    if n <= count:
        return list(F.interpolate(x.T[None], size=count, mode="linear")[0].T)
    anchors: list[Tensor | None] = []
    for i in range(count):
        window = x[math.floor(i * n / count) : math.ceil((i + 1) * n / count)]
        weight = torch.linalg.norm(window, dim=-1) ** power + 1e-6
        anchors.append((weight[:, None] * window).sum(0) / weight.sum())
    return anchors


def seconds(spec: LatentSpec, slot: int) -> float:
    """Visual slot i stands for (i + 1/2) D / K_v, audio slot j for (j + 1/2) D / K_a."""
    if slot < spec.num_visual:
        return (slot + 0.5) * spec.segment_seconds / spec.num_visual
    return (slot - spec.num_visual + 0.5) * spec.segment_seconds / spec.num_audio


def ospe(h: Tensor, t: float, spec: LatentSpec) -> Tensor:
    """Adjacent pairs as complex numbers, turned by t Θ."""
    half = len(h) // 2
    theta = torch.tensor([spec.ospe_base ** (-i / half) for i in range(half)])
    turned = torch.view_as_complex(h.reshape(half, 2).contiguous()) * torch.exp(1j * t * theta)
    return torch.view_as_real(turned).reshape(-1)


def text_losses(reference, row: Pass) -> list[Tensor]:
    """Cross entropy of every target of a row."""
    logits = reference.lm_head(row.hidden[[place for place, _ in row.targets]])
    ids = torch.tensor([token for _, token in row.targets])
    return list(F.cross_entropy(logits, ids, reduction="none"))


def states(hidden: Tensor, block: Block) -> list[Tensor]:
    """z_1 = h(u), z_(k+1) = h(slot k)."""
    return [hidden[block.trigger + k] for k in range(len(block.anchors))]


def latent_loss(hidden: Tensor, block: Block) -> Tensor:
    """Mean over the anchored slots of a block of the squared distance, summed over the width."""
    pairs = zip(states(hidden, block), block.anchors, strict=True)
    return torch.stack([((z - a) ** 2).sum() for z, a in pairs if a is not None]).mean()


def sync_loss(spec: LatentSpec, hidden: Tensor, block: Block, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over the moments of a block."""
    z = states(hidden, block)
    width = spec.segment_seconds / spec.num_audio
    seen, heard = [], []
    for moment in range(spec.num_audio):
        inside = [
            z[slot]
            for slot in range(spec.num_visual)
            if moment * width <= seconds(spec, slot) < (moment + 1) * width
        ]
        seen.append(torch.stack(inside).mean(0))
        heard.append(z[spec.num_visual + moment])
    similarity = F.cosine_similarity(torch.stack(seen)[:, None], torch.stack(heard)[None], dim=-1)
    logits = similarity * log_scale.exp().clamp(max=100)
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
