"""What decoding a prompt gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """What one row produced.

    Attributes:
      token_ids: i32[n] every generated position; the pad id stands for a latent slot.
      text: the text tokens, special ones left out.
      latents: f32[blocks, K, D] states z before OSPE.
      hidden: f32[n,D] final hidden state of every fed position, if asked for.
      finished: the row ended by itself and not by the token limit.
    """

    token_ids: np.ndarray
    text: str
    latents: np.ndarray
    hidden: np.ndarray | None
    finished: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """A generation with what it took; `to_dict` is what `latentomni answer --json` prints."""

    text: str
    answer: str | None
    token_ids: list[int]
    latent_blocks: int
    latent_steps: int
    prompt_tokens: dict[str, int]
    timings: dict[str, float]
    device: str
    generation: Generation

    def to_dict(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["generation"]
        return fields
