"""The Python face: `LatentOmni.from_pretrained(DIR).answer("...", video="clip.mp4")`.

Holds the parameters and the four compiled programs (encode, splice, prefill, decode); everything
they compute lives in `backbone` and `latent`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.positions import Clock
from latentomni_jax.backbone.sharding import cache_sharding, param_shardings, row_sharding
from latentomni_jax.backbone.text import unstack
from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.backbone.types import Weights
from latentomni_jax.latent import decode as decoding
from latentomni_jax.latent.decode import DecodeSpec, DecodeState
from latentomni_jax.latent.generation import Answer, Generation
from latentomni_jax.latent.masks import media_mask
from latentomni_jax.latent.trajectory import MediaGroup, collate, lay_out
from latentomni_jax.layout import (
    AudioGroup,
    AudioPart,
    Batch,
    EncodedPart,
    FeatureGroup,
    InputError,
    LatentSpec,
    MediaSpec,
    Part,
    Role,
    VisionGroup,
    VisionPart,
)
from latentomni_jax.media.extract import extract_answer
from latentomni_jax.media.processor import build_prompt, clip_part
from latentomni_jax.media.text import TextStream, Tokenizer, load_tokenizer
from latentomni_jax.media.video import read_clip
from latentomni_jax.weights.checkpoint import load_model
from latentomni_jax.weights.quantize import weights_of
from latentomni_jax.weights.specs import read_specs

_LOG = logging.getLogger(__name__)
_STREAM_STEP = 16  # generated positions between two looks at the streamed text


def _place(table: jax.Array, features: jax.Array, offset: jax.Array) -> jax.Array:
    """A feature table with rows from `offset` on set."""
    return jax.lax.dynamic_update_slice_in_dim(table, features.astype(table.dtype), offset, axis=0)


def _on_mesh(method):
    """A method of a model that runs under the model's mesh, where it has one."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        with contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
            return method(self, *args, **kwargs)

    return run


class LatentOmni:
    """A loaded model that answers questions about media.

    Args:
      params: stacked parameters, ordinary or int8, see `backbone.thinker`; the caller's reference
        may be dropped.
      config, latent, media: the three specs of a checkpoint.
      tokenizer: from `media.text.load_tokenizer`; None serves token-id batches only.
      dtype: of the computation and of the caches; default is the parameters'.
      scan_layers: default is True on TPU only, see `backbone.text`.
      mesh: (data, fsdp, tensor), over which `params` lie as `backbone.sharding` has it; rows of
        a batch, which have to divide, are spread over data and fsdp. None is one device.
    """

    def __init__(
        self,
        params: Any,
        config: ThinkerConfig,
        latent: LatentSpec,
        media: MediaSpec | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        dtype: Any = None,
        scan_layers: bool | None = None,
        mesh: Mesh | None = None,
    ):
        self.mesh = mesh
        self.config, self.latent, self.tokenizer = config, latent, tokenizer
        self.media = media or MediaSpec()
        if max(latent.pad_id, latent.trigger_id, latent.stop_id) >= config.text.vocab_size:
            raise InputError(
                f"latent token ids {latent.pad_id}, {latent.trigger_id}, {latent.stop_id} do not "
                f"fit a vocabulary of {config.text.vocab_size}"
            )
        if scan_layers is None:
            scan_layers = jax.default_backend() == "tpu"
        self.dtype = jnp.dtype(dtype or params["text"]["embed_tokens"].dtype)
        self.thinker = Thinker(
            config, dtype=self.dtype, scan_layers=scan_layers, weights=weights_of(params)
        )
        self.params = dict(params)
        if not scan_layers:
            self.params["text"] = unstack(self.params["text"])
        table = rows = state = None
        if mesh is not None:
            table, rows = NamedSharding(mesh, jax.P()), row_sharding(mesh)
            fields: dict[str, Any] = dict.fromkeys(DecodeState._fields, rows)
            fields |= {"step": table, "cache": cache_sharding(mesh, scan_layers=scan_layers)}
            state = DecodeState(**fields)
        self._encode_vision = jax.jit(
            self._encode_vision_into, donate_argnums=1, out_shardings=table
        )
        self._encode_audio = jax.jit(self._encode_audio_into, donate_argnums=1, out_shardings=table)
        self._place = jax.jit(_place, donate_argnums=0, out_shardings=table)
        self._splice = jax.jit(functools.partial(self._apply, method="splice"), out_shardings=rows)
        # Static specs are hashable; shapes come from the bucket tables.
        self._prefill = jax.jit(
            functools.partial(decoding.prefill, self.thinker), static_argnums=0, out_shardings=state
        )
        self._decode = jax.jit(
            functools.partial(decoding.decode, self.thinker),
            static_argnums=0,
            donate_argnums=3,
            out_shardings=state,
        )

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        *,
        dtype: Any = None,
        weights: Weights = None,
        mesh: Mesh | None = None,
        **kwargs,
    ) -> LatentOmni:
        """Loads a ported or a Hugging Face directory.

        Args:
          dtype: of weights and computation; None keeps the checkpoint's (bf16 stays bf16).
          weights: "int8" holds the decoder's matrices so, see `load_model`.
          mesh, kwargs: see the class; each device of a mesh loads its own shards.

        Raises:
          InputError: an unusable directory, or a mesh that the model does not divide into.
        """
        directory = os.fspath(directory)
        tokenizer = load_tokenizer(directory)
        shardings = None
        if mesh is not None:
            shardings = param_shardings(read_specs(directory)[0], mesh, weights=weights)
        loaded = load_model(directory, shardings=shardings, dtype=dtype, weights=weights)
        return cls(
            loaded.params, loaded.config, loaded.latent, loaded.media, tokenizer, mesh=mesh,
            **kwargs,
        )  # fmt: skip

    # ------------------------------------------------------------------ programs

    def _apply(self, params, *args, method) -> Any:
        return self.thinker.apply({"params": params}, *args, method=method)

    def _encode_vision_into(self, params, table, group: VisionGroup):
        features = self._apply(params, *group[:-1], method="encode_vision")
        return _place(table, features.reshape(-1, features.shape[-1]), group.offset)

    def _encode_audio_into(self, params, table, group: AudioGroup):
        features = self._apply(params, *group[:-1], method="encode_audio")
        return _place(table, features.reshape(-1, features.shape[-1]), group.offset)

    # ------------------------------------------------------------------ public

    def prompt(
        self,
        question: str,
        *,
        video: str | os.PathLike | None = None,
        audio: str | os.PathLike | None = None,
        image: str | os.PathLike | None = None,
        system: str | None = None,
        choices: Sequence[str] = (),
        clock: Clock = "true",
    ) -> list[Part]:
        """Reads the files and builds the prompt's parts; any mix of media, or none, is legal."""
        if self.tokenizer is None:
            raise InputError("this model was made without a tokenizer")
        media: list[Part] = []
        for path, options in ((image, {}), (video, {}), (audio, {"video": False})):
            if path is not None:
                clip = read_clip(path, self.media, **options)
                media.append(clip_part(clip, self.media, nominal_clock=clock == "nominal"))
        return build_prompt(self.tokenizer, question, media, system=system, choices=choices)

    @_on_mesh
    def embed(self, batch: Batch, groups: Sequence[MediaGroup], table_rows: int) -> jax.Array:
        """Encodes the media and splices it into the prompts: input embeddings [B,S,D]."""
        table = self._table(groups, table_rows)
        batch = self._spread_rows(batch)
        return self._splice(self.text_params, batch.token_ids, batch.feature_index, table)

    @_on_mesh
    def encode(self, part: VisionPart | AudioPart) -> EncodedPart:
        """Encodes a clip once, for many prompts: they come out to the bit as with the clip.

        Features have the model's dtype. Raises InputError for sound that is too short.
        """
        batch, groups, table_rows = collate(self.config, [[part]], media=self.media)
        table = np.asarray(self._table(groups, table_rows))

        def features(role: Role) -> np.ndarray | None:
            places = batch.feature_index[batch.roles == role]
            return table[places] if len(places) else None

        is_sound = isinstance(part, AudioPart)
        return EncodedPart(
            part.kind,
            features(Role.PROMPT_VIDEO),
            features(Role.PROMPT_AUDIO),
            (0, 0, 0) if is_sound else part.grid,
            np.zeros(0, np.float32) if is_sound else part.seconds,
        )

    @_on_mesh
    def generate(
        self,
        prompts: Sequence[Sequence[Part]],
        *,
        clock: Clock = "true",
        seeds: Sequence[int] | None = None,
        on_text: Callable[[int, str], None] | None = None,
        timings: dict[str, float] | None = None,
        given: Sequence[np.ndarray] | None = None,
        **options,
    ) -> list[Generation]:
        """Decodes a batch of prompts; each row's result is independent of its batch mates.

        Args:
          prompts: rows of parts, see `prompt`.
          seeds: one per row (default 0, 1, ...); matter only with a temperature.
          on_text: called with (row, new text) while rows are being decoded.
          timings: filled with seconds of encode, prefill and decode.
          given: states f32[blocks,K,D] of each row that its slots are fed instead of their own, for
            causal probes; later blocks keep their own.
          options: fields of `DecodeSpec` (latents, max_blocks, max_new_tokens, temperature, ...).

        Raises:
          InputError: unusable options, seeds or states; prompts that do not divide over the mesh.
        """
        options.setdefault("eos_ids", self.tokenizer.eos_ids if self.tokenizer else ())
        spec = DecodeSpec(spec=self.latent, **options)
        seeds = range(len(prompts)) if seeds is None else seeds
        if len(seeds) != len(prompts):
            raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts")
        if bad := [seed for seed in seeds if not 0 <= seed < 1 << 32]:
            raise InputError(f"seeds must lie in 0 .. 2^32 - 1, got {bad[0]}")
        if len(prompts) % self._row_devices:
            raise InputError(
                f"{len(prompts)} prompts do not divide over {self._row_devices} devices (data x "
                "fsdp of the mesh)"
            )
        clockwork = _Stopwatch(timings)
        batch, groups, table_rows = collate(self.config, prompts, clock=clock, media=self.media)
        batch = self._spread_rows(batch)
        embeds = clockwork("encode_s", self.embed(batch, groups, table_rows))
        keys = self._spread(jnp.stack([jax.random.key(seed) for seed in seeds]))
        state = self._prefill(
            spec,
            self.text_params,
            embeds,
            batch.position_ids,
            batch.lengths,
            batch.next_position,
            keys,
        )
        clockwork("prefill_s", state.token)
        media = media_mask(self.latent, batch.roles)
        states = None if given is None else self._spread(self._given(spec, given, len(prompts)))
        streams = [TextStream(self.tokenizer) for _ in prompts]
        step = _STREAM_STEP if on_text else spec.max_positions
        for limit in range(step, spec.max_positions + step, step):
            state = self._decode(
                spec, self.text_params, batch.lengths, state, np.int32(limit), media, states
            )
            if on_text:
                tokens = np.asarray(state.tokens)
                for row, stream in enumerate(streams):
                    if new := stream.push(self._text_ids(tokens[row])):
                        on_text(row, new)
            if bool(jnp.all(state.done)):
                break
        clockwork("decode_s", state.tokens)
        return self._collect(spec, state)

    def answer(
        self,
        question: str,
        *,
        video: str | os.PathLike | None = None,
        audio: str | os.PathLike | None = None,
        image: str | os.PathLike | None = None,
        choices: Sequence[str] = (),
        system: str | None = None,
        clock: Clock = "true",
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        **options,
    ) -> Answer:
        """Answers one question; options as in `generate`."""
        started = time.perf_counter()
        parts = self.prompt(
            question,
            video=video,
            audio=audio,
            image=image,
            system=system,
            choices=choices,
            clock=clock,
        )
        media_s = time.perf_counter() - started
        return self.answer_prompt(
            parts,
            choices=choices,
            clock=clock,
            seed=seed,
            on_text=on_text,
            media_s=media_s,
            **options,
        )

    def answer_prompt(
        self,
        parts: Sequence[Part],
        *,
        choices: Sequence[str] = (),
        clock: Clock = "true",
        seed: int = 0,
        on_text: Callable[[str], None] | None = None,
        media_s: float = 0.0,
        **options,
    ) -> Answer:
        """Answers a prompt whose media are already read (in `media_s` seconds)."""
        timings = {"media_s": media_s}
        generation = self.generate(
            [parts],
            clock=clock,
            seeds=[seed],
            timings=timings,
            on_text=None if on_text is None else lambda row, text: on_text(text),
            **options,
        )[0]
        timings["tokens_per_s"] = len(generation.token_ids) / max(timings["decode_s"], 1e-9)
        return Answer(
            text=generation.text,
            answer=extract_answer(generation.text, choices),
            token_ids=[int(i) for i in generation.token_ids],
            latent_blocks=int(np.sum(generation.token_ids == self.latent.trigger_id)),
            latent_steps=int(np.sum(generation.token_ids == self.latent.pad_id)),
            prompt_tokens=self.prompt_tokens(parts, clock),
            timings={name: round(value, 4) for name, value in timings.items()},
            device=f"{jax.devices()[0].device_kind} x{jax.device_count()}",
            generation=generation,
        )

    def prompt_tokens(self, parts: Sequence[Part], clock: Clock = "true") -> dict[str, int]:
        """How many positions of a prompt are text, video (or image) and audio. Raises InputError
        where it cannot be laid out."""
        row = lay_out(self.config, parts, clock)
        return {
            "text": row.count(Role.PROMPT_TEXT),
            "video": row.count(Role.PROMPT_VIDEO),
            "audio": row.count(Role.PROMPT_AUDIO),
        }

    def with_latent(self, **changes: Any) -> LatentOmni:
        """The same weights and programs with another `LatentSpec`, for probes and sweeps."""
        other = copy.copy(self)
        other.latent = dataclasses.replace(self.latent, **changes)
        return other

    def with_media(self, **changes: Any) -> LatentOmni:
        """The same weights and programs that read files by another `MediaSpec`."""
        other = copy.copy(self)
        other.media = dataclasses.replace(self.media, **changes)
        return other

    @property
    def text_params(self) -> dict[str, Any]:
        """The decoder's parameters, as its module takes them."""
        return {"text": self.params["text"]}

    # ------------------------------------------------------------------ details

    def _table(self, groups: Sequence[MediaGroup], rows: int) -> jax.Array:
        """Features [rows,D] of a batch's media."""
        everywhere = None if self.mesh is None else NamedSharding(self.mesh, jax.P())
        table = jnp.zeros((rows, self.config.text.hidden_size), self.dtype, device=everywhere)
        for group in groups:
            if isinstance(group, FeatureGroup):
                table = self._place(table, *group)
                continue
            encode = self._encode_audio if isinstance(group, AudioGroup) else self._encode_vision
            spread = {name: self._spread(x) for name, x in group._asdict().items()}
            table = encode(self._tower(group), table, type(group)(**spread))
        return table

    def _tower(self, group):
        name = "audio" if isinstance(group, AudioGroup) else "vision"
        return {name: self.params[name]}

    @property
    def _row_devices(self) -> int:
        """How many devices share the rows of a batch."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def _spread(self, x, axis: int = 0):
        """An array with its rows on the devices that compute them, where they divide evenly."""
        if self.mesh is None or not np.ndim(x) or x.shape[axis] % self._row_devices:
            return x
        return jax.device_put(x, row_sharding(self.mesh, axis))

    def _spread_rows(self, batch: Batch) -> Batch:
        axes = {"position_ids": 1}
        return Batch(**{k: self._spread(x, axes.get(k, 0)) for k, x in batch._asdict().items()})

    def _text_ids(self, tokens: np.ndarray) -> list[int]:
        return [int(i) for i in tokens if i >= 0 and i != self.latent.pad_id]

    def _given(self, spec: DecodeSpec, given, rows: int) -> np.ndarray:
        """f32[rows, blocks*K, D] with NaN where nothing is given."""
        shape = (spec.blocks, self.latent.num_latents, self.config.text.hidden_size)
        states = np.full((rows, *shape), np.nan, np.float32)
        fits = len(given) == rows and all(
            len(one) <= shape[0] and one.shape[1:] == shape[1:] for one in given
        )
        if not fits:
            raise InputError(
                f"given states are {[one.shape for one in given]}, expected {rows} of up to {shape}"
            )
        for row, one in enumerate(given):
            states[row, : len(one)] = one
        return states.reshape(rows, -1, shape[-1])

    def _collect(self, spec: DecodeSpec, state: DecodeState) -> list[Generation]:
        tokens, latents = np.asarray(state.tokens), np.asarray(state.latents)
        hidden = np.asarray(state.hidden)
        out = []
        for row, ids in enumerate(tokens):
            ids = ids[ids >= 0]
            blocks = int(np.sum(ids == self.latent.trigger_id))
            per_block = latents[row].reshape(-1, max(self.latent.num_latents, 1), latents.shape[-1])
            out.append(
                Generation(
                    token_ids=ids,
                    text=self.tokenizer.decode(self._text_ids(ids)) if self.tokenizer else "",
                    latents=per_block[:blocks],
                    hidden=hidden[row, : len(ids) - 1] if spec.keep_hidden else None,
                    finished=bool(len(ids)) and int(ids[-1]) in spec.eos_ids,
                )
            )
        return out


class _Stopwatch:
    """Seconds between calls, waiting for the given arrays."""

    def __init__(self, timings: dict[str, float] | None):
        self.timings, self.last = timings, time.perf_counter()

    def __call__(self, name: str, value: Any) -> Any:
        if self.timings is not None:
            jax.block_until_ready(value)
            now = time.perf_counter()
            self.timings[name], self.last = now - self.last, now
        return value
