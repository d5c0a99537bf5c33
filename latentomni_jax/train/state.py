"""What training changes: parameters, optimiser state, counters; and how they lie on a mesh.

Trainable parameters are float32 masters with optimiser state; frozen ones stay as they were loaded
(bf16) and cost nothing more. Both are trees of the whole model's shape in which the other's leaves
are None, so that they merge by position.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding

from latentomni_jax.backbone.types import Array
from latentomni_jax.layout import InputError, LatentSpec


class TrainState(NamedTuple):
    """The state of a run; a pytree, donated to every step.

    Attributes:
      step: i32[] steps taken, skipped ones included: the place in the data.
      params: f32 masters of what trains; None elsewhere.
      frozen: what does not train; None elsewhere.
      optimizer: optax state of `params`.
      key: PRNG key of the run; step n uses fold_in(key, n).
      skipped: i32[] steps whose gradients were not finite and that changed nothing.
    """

    step: Array
    params: Any
    frozen: Any
    optimizer: Any
    key: Array
    skipped: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up; defaults are the paper's recipe where it gives one.

    Attributes:
      name: "adamw", or "muon": kernels move along orthogonalised momentum (arXiv 2502.16982, scaled
        so that AdamW's rates hold), the rest by AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-5
    warmup_fraction: float = 0.05
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    steps: int = 750
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        if self.name not in ("adamw", "muon"):
            raise InputError(f"the optimizer must be adamw or muon: {self.name!r}")
        if self.schedule not in ("linear", "cosine", "constant"):
            raise InputError(f"schedule must be linear, cosine or constant: {self.schedule!r}")
        if self.steps < 1 or not 0 <= self.warmup_fraction <= 1:
            raise InputError("need steps >= 1 and 0 <= warmup_fraction <= 1")

    def learning_rate_at(self) -> optax.Schedule:
        """Step -> learning rate: up from 0, then down to 0 (or flat)."""
        warmup = round(self.warmup_fraction * self.steps)
        rest = max(self.steps - warmup, 1)
        after = {
            "linear": optax.linear_schedule(self.learning_rate, 0.0, rest),
            "cosine": optax.cosine_decay_schedule(self.learning_rate, rest),
            "constant": optax.constant_schedule(self.learning_rate),
        }[self.schedule]
        if not warmup:
            return after
        # Step 0 already learns: it takes 1/warmup of the rate, and not none of it.
        up = optax.linear_schedule(self.learning_rate / warmup, self.learning_rate, warmup - 1 or 1)
        return optax.join_schedules([up, after], [warmup])

    def transformation(self) -> optax.GradientTransformation:
        """Clip by global norm, then the update; matrices decay, vectors and scalars do not."""
        update = adamw = optax.adamw(
            self.learning_rate_at(),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_decays,
        )
        if self.name == "muon":
            # It has an AdamW of its own for the rest, with Nesterov momentum: ours takes that.
            muon = optax.contrib.muon(
                self.learning_rate_at(),
                weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=0.2,
            )
            update = optax.partition({"muon": muon, "adamw": adamw}, _optimizer_of)
        return optax.chain(_clip(self.clip_norm), update)


def _clip(limit: float) -> optax.GradientTransformation:
    """Gradients scaled down to a global norm of `limit` where theirs is larger.

    One factor for all of them, where optax divides each: the division is dear enough that XLA
    writes it out, a copy of all gradients, before the moments read it.
    """

    def clip(gradients: Any, _params: Any) -> Any:
        factor = jnp.minimum(limit / optax.global_norm(gradients), 1.0)
        return jax.tree.map(lambda x: x * factor, gradients)

    return optax.stateless(clip)


def _decays(params: Any) -> Any:
    """True for kernels and embeddings; biases, norms and the temperature do not decay."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (
            path_name(path).rsplit("/", 1)[-1] in ("kernel", "embed_tokens", "lora_a", "lora_b")
        ),
        params,
    )


def _optimizer_of(params: Any) -> Any:
    """Muon for the matrices inside the model, AdamW for the rest (embeddings and head too)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "muon" if re.search(r"(?<!lm_head)/kernel$", path_name(path)) else "adamw",
        params,
    )


def _muon_axes(params: Any) -> Any:
    """Which axes are a matrix; those of a stack of layers are moved apart."""
    axes = optax.contrib.MuonDimensionNumbers
    return jax.tree_util.tree_map_with_path(
        # A convolution of a few taps is one matrix from all its inputs.
        lambda path, _: axes((0, 1), 2) if "/conv" in path_name(path) else axes(-2, -1),
        params,
    )


def path_name(path: Sequence[Any]) -> str:
    """`text/layers/q_proj/kernel`"""
    return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def split(params: Any, frozen: Sequence[str]) -> tuple[Any, Any]:
    """Parameters that train, and those whose path matches one of the patterns.

    Args:
      frozen: regular expressions matched at the start of a path: `("vision/",)`.

    Raises:
      InputError: a pattern that matches nothing, or nothing left to train.
    """
    patterns = [re.compile(pattern) for pattern in frozen]
    used = set()

    def is_frozen(path):
        hits = {p.pattern for p in patterns if p.match(path_name(path))}
        used.update(hits)
        return bool(hits)

    trained = jax.tree_util.tree_map_with_path(lambda p, x: None if is_frozen(p) else x, params)
    kept = jax.tree_util.tree_map_with_path(lambda p, x: x if is_frozen(p) else None, params)
    if unused := [p.pattern for p in patterns if p.pattern not in used]:
        raise InputError(f"frozen pattern {unused[0]!r} matches no parameter")
    if not jax.tree.leaves(trained):
        raise InputError("every parameter is frozen: nothing would train")
    return trained, kept


def merge(params: Any, frozen: Any) -> Any:
    """The whole tree again."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, params, frozen, is_leaf=lambda x: x is None
    )


def new_state(
    params: Any, frozen: Sequence[str], optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """The state before step 0; call it under `jax.jit` with `state_shardings` on a mesh."""
    trained, kept = split(params, frozen)
    trained = jax.tree.map(lambda x: x.astype(jnp.float32), trained)
    return TrainState(
        step=jnp.int32(0),
        params=trained,
        frozen=kept,
        optimizer=optimizer.init(trained),
        key=jax.random.key(seed),
        skipped=jnp.int32(0),
    )


def state_shardings(abstract: TrainState, shardings: Any, mesh: Mesh) -> TrainState:
    """A sharding for every leaf of the state.

    Args:
      abstract: the state's shapes.
      shardings: of the whole parameter tree; what it lacks (`sync`) is replicated.
    """
    everywhere = NamedSharding(mesh, jax.P())
    flat = {path_name(p): s for p, s in jax.tree_util.tree_flatten_with_path(shardings)[0]}

    def of(path, _leaf):
        # Optimiser moments repeat the parameters' paths below their own names.
        name = path_name(path)
        best = max((known for known in flat if name.endswith(known)), key=len, default=None)
        return flat[best] if best else everywhere

    return jax.tree_util.tree_map_with_path(of, abstract)


def init_latent_rows(params: Any, spec: LatentSpec, seed: int = 0, noise: float = 0.02) -> Any:
    """New tokens start from the mean embedding plus small noise (docs/method.md 1).

    The rows of trigger and stop token, in the embedding and in the head. Porting never does this;
    a training run does whose start has never trained latents. `noise` is relative to the rows'
    spread.
    """
    text = dict(params["text"])
    rows = np.array([spec.trigger_id, spec.stop_id])
    keys = jax.random.split(jax.random.key(seed), 2)

    def fresh(table, key):
        table32 = table.astype(jnp.float32)
        spread = noise * jnp.std(table32)
        made = jnp.mean(table32, axis=0) + spread * jax.random.normal(key, (2, table.shape[1]))
        return table.at[rows].set(made.astype(table.dtype))

    text["embed_tokens"] = fresh(text["embed_tokens"], keys[0])
    if "lm_head" in text:
        head = dict(text["lm_head"])
        head["kernel"] = fresh(head["kernel"].T, keys[1]).T
        text["lm_head"] = head
    return {**params, "text": text}
