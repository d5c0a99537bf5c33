"""A trajectory and its media become the parts of a training example (method section 1).

The prompt is that of inference. The assistant's turn follows: pieces of reasoning, a latent block
where each pair stood, and the answer.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from data_pipeline.trajectories import PAIR, Trajectory
from latentomni_jax.layout import (
    AudioPart,
    InputError,
    LatentPart,
    Part,
    Role,
    TextPart,
    VisionPart,
)
from latentomni_jax.media.processor import build_prompt
from latentomni_jax.media.text import Tokenizer, strip_special

Reasoning = Literal["latent", "text", "none"]


@dataclasses.dataclass(frozen=True, eq=False)
class Media:
    """What a trajectory shows: its clip, and its segments cut out and sampled on their own.

    Without `segments` anchors are taken from the prompt's clip.
    """

    prompt: VisionPart | AudioPart | None = None
    segments: tuple[VisionPart | AudioPart, ...] = ()


def example_parts(
    tokenizer: Tokenizer, trajectory: Trajectory, media: Media, *, reasoning: Reasoning = "latent"
) -> list[Part]:
    """The parts of a training example: the prompt of inference, then the assistant's turn.

    Pieces of text are tokenized separately; special token strings in them are blanked. The answer
    begins on a new line where text stands before it, and ends with `<|im_end|>`.

    Args:
      media: what `trajectory` shows, see `Records.read`.
      reasoning: "latent" is the method; "text" keeps the words alone (Explicit Text CoT); "none"
        trains question and answer only (Vanilla SFT).

    Raises:
      InputError: as many segments as the trajectory has, or none, were expected; or the chat
        template fails.
    """
    prompt = () if media.prompt is None else (media.prompt,)
    parts = build_prompt(
        tokenizer,
        trajectory.question,
        prompt,
        system=trajectory.system,
        choices=trajectory.choices,
    )
    pieces = [strip_special(piece, tokenizer) for piece in trajectory.reasoning.split(PAIR)]
    blocks: list[LatentPart] = []
    if reasoning == "latent":
        segments = media.segments or (None,) * len(trajectory.segments)
        if len(segments) != len(trajectory.segments):
            raise InputError(
                f"{trajectory.id!r} cites {len(trajectory.segments)} segments, "
                f"{len(segments)} were given"
            )
        blocks = [LatentPart(*pair) for pair in zip(trajectory.segments, segments, strict=True)]
    else:
        pieces = [_joined(pieces) if reasoning == "text" else ""]
    for number, piece in enumerate(pieces):
        if number:
            parts.append(blocks[number - 1])
        if piece:
            parts.append(_text(tokenizer.encode(piece), Role.ASSISTANT_TEXT))
    gap = "\n" if pieces[-1].strip() and not pieces[-1][-1].isspace() else ""
    answer = tokenizer.encode(gap + strip_special(trajectory.answer, tokenizer))
    parts.append(_text([*answer, tokenizer.id("<|im_end|>")], Role.ANSWER))
    return parts


def _joined(pieces: list[str]) -> str:
    """Pieces as one text, with a space where two words would touch."""
    text = pieces[0]
    for piece in pieces[1:]:
        touch = text and piece and not text[-1].isspace() and not piece[0].isspace()
        text += " " * bool(touch) + piece
    return text


def _text(token_ids: list[int], role: Role) -> TextPart:
    return TextPart(np.array(token_ids, np.int32), role)
