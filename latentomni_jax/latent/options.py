"""Every choice of the training objective in one frozen config (docs/method.md 4-6)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from latentomni_jax.layout import InputError, LatentSpec, MediaSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Every choice of the training objective; defaults are the paper's.

    Attributes:
      weight_latent, weight_sync: λ1, λ2; 0 switches a loss off.
      weight_bind: of L_bind, for models from nothing, see `latent.binding`; the paper has none.
      bind_before: L_bind asks for the moment before, too.
      mode: where slot inputs come from, docs/method.md 6.
      jacobi_passes: n of mode "jacobi"; equals rollout at blocks * K + 1.
      own_probability: of feeding a slot its own state in mode "mixed".
      anchor_source: "segment" or "prompt", see `latent.examples`.
      anchor_power: of the norm weights, 1 (paper) or 2 (released code).
      latent_reduction: "sum" over the width (paper) or "mean" (released code).
      sync_negatives: moments of the same block (paper), or of all blocks of the micro-batch.
      sync_features: the model's own latents, or encoder features through heads (released code's).
      target_chunk: predicted tokens of a row whose logits exist at once.
      frames_per_call: frames of a row that the vision encoder reads at once.
      frozen: towers that do not train.
    """

    spec: LatentSpec
    media: MediaSpec
    weight_latent: float = 0.005
    weight_sync: float = 1.0
    weight_bind: float = 0.0
    bind_before: bool = False
    mode: Literal["teacher", "rollout", "jacobi", "mixed"] = "teacher"
    jacobi_passes: int = 3
    own_probability: float = 0.5
    anchor_source: Literal["segment", "prompt"] = "segment"
    anchor_power: Literal[1, 2] = 1
    latent_reduction: Literal["sum", "mean"] = "sum"
    sync_negatives: Literal["block", "global"] = "block"
    sync_features: Literal["latents", "encoder"] = "latents"
    target_chunk: int = 256
    frames_per_call: int = 16
    frozen: tuple[str, ...] = ("vision",)

    def __post_init__(self):
        for name, legal in (
            ("mode", ("teacher", "rollout", "jacobi", "mixed")),
            ("anchor_source", ("segment", "prompt")),
            ("anchor_power", (1, 2)),
            ("latent_reduction", ("sum", "mean")),
            ("sync_negatives", ("block", "global")),
            ("sync_features", ("latents", "encoder")),
        ):
            if getattr(self, name) not in legal:
                raise InputError(f"{name} must be one of {legal}, got {getattr(self, name)!r}")
        if self.jacobi_passes < 1 or not 0 <= self.own_probability <= 1:
            raise InputError("need jacobi_passes >= 1 and 0 <= own_probability <= 1")

    def extra_passes(self, blocks: int) -> int:
        """Passes through the decoder that only make the states to feed (see `latent.passes`).

        Args:
          blocks: latent blocks of a row. Slots that are decoded one by one count as nothing: they
            are few beside the rows of their passes.
        """
        if not blocks or not self.spec.num_latents:
            return 0
        return {
            "teacher": 0,
            "mixed": 1,
            "jacobi": self.jacobi_passes - 1,
            "rollout": blocks,
        }[self.mode]
