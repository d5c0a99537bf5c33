"""Dimensions of the Qwen2.5-Omni thinker."""

from __future__ import annotations

import dataclasses
from typing import Any

from latentomni_jax.layout import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text decoder: pre-norm GQA transformer with TMRoPE."""

    vocab_size: int = 152_064
    hidden_size: int = 3584
    intermediate_size: int = 18_944
    num_layers: int = 28
    num_heads: int = 28
    num_kv_heads: int = 4
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    tie_embeddings: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision encoder: windows of 4x4 merged patches, full attention inside a frame at some."""

    depth: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 3420
    num_heads: int = 16
    out_hidden_size: int = 3584
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    window_size: int = 112
    full_attention_layers: tuple[int, ...] = (7, 15, 23, 31)
    in_channels: int = 3

    @property
    def patch_dim(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """The audio encoder: Whisper blocks over 2-second chunks, pooled to 25 tokens per second."""

    num_layers: int = 32
    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_heads: int = 20
    num_mel_bins: int = 128
    n_window: int = 100  # half a chunk, in mel frames
    out_hidden_size: int = 3584

    @property
    def chunk_frames(self) -> int:
        """Mel frames of one chunk."""
        return 2 * self.n_window


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThinkerConfig:
    """The whole thinker and the ids of its placeholder tokens."""

    text: TextConfig = TextConfig()
    vision: VisionConfig = VisionConfig()
    audio: AudioConfig = AudioConfig()
    audio_token_id: int = 151_646
    audio_start_id: int = 151_647
    audio_end_id: int = 151_648
    vision_start_id: int = 151_652
    vision_end_id: int = 151_653
    image_token_id: int = 151_655
    video_token_id: int = 151_656
    positions_per_second: int = 25
    seconds_per_chunk: float = 2.0

    def __post_init__(self):
        text, vision, audio = self.text, self.vision, self.audio
        if text.num_heads % text.num_kv_heads:
            raise InputError(f"{text.num_heads} heads are no multiple of {text.num_kv_heads} kv")
        if sum(text.mrope_section) * 2 != text.head_dim:
            raise InputError(
                f"mrope_section {text.mrope_section} must sum to half of head_dim {text.head_dim}"
            )
        for name, width in (("vision", vision.out_hidden_size), ("audio", audio.out_hidden_size)):
            if width != text.hidden_size:
                raise InputError(f"{name} output width {width} != text width {text.hidden_size}")

    @classmethod
    def qwen2_5_omni_7b(cls) -> ThinkerConfig:
        return cls()

    @classmethod
    def qwen2_5_omni_3b(cls) -> ThinkerConfig:
        text = TextConfig(
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=11_008,
            num_layers=36,
            num_heads=16,
            num_kv_heads=2,
        )
        return cls(
            text=text,
            vision=VisionConfig(out_hidden_size=2048),
            audio=AudioConfig(out_hidden_size=2048),
        )

    @classmethod
    def tiny(cls, *, vocab_size: int = 152_064, hidden_size: int = 64, **ids) -> ThinkerConfig:
        """A few-million-parameter thinker of the same shape, for demos and tests."""
        head_dim = 16
        return cls(
            text=TextConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_layers=2,
                num_heads=4,
                num_kv_heads=2,
                head_dim=head_dim,
                mrope_section=(2, 3, 3),
            ),
            vision=VisionConfig(
                depth=2,
                hidden_size=32,
                intermediate_size=48,
                num_heads=2,
                out_hidden_size=hidden_size,
                full_attention_layers=(1,),
            ),
            audio=AudioConfig(
                num_layers=2,
                hidden_size=32,
                intermediate_size=64,
                num_heads=2,
                out_hidden_size=hidden_size,
            ),
            **ids,
        )

    @classmethod
    def small(cls, *, vocab_size: int = 152_064, hidden_size: int = 128, **ids) -> ThinkerConfig:
        """About a million parameters: what learns a small world from nothing on a CPU.

        A decoder this shallow finds its way by the clock, so that time has more of the rotary
        frequencies than in the released models: periods up to 14 s instead of 1.4 s.
        """
        tiny = cls.tiny(vocab_size=vocab_size, hidden_size=hidden_size, **ids)
        return dataclasses.replace(
            tiny,
            text=dataclasses.replace(
                tiny.text,
                num_layers=4,
                head_dim=32,
                rope_theta=1e4,
                mrope_section=(9, 4, 3),
                tie_embeddings=True,  # a word that is read is near to one that is said
            ),
            vision=dataclasses.replace(
                tiny.vision, hidden_size=64, intermediate_size=128, window_size=56
            ),
            audio=dataclasses.replace(tiny.audio, hidden_size=64, intermediate_size=128),
        )

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> ThinkerConfig:
        """From a checkpoint's `config.json`: full (`thinker_config` inside) or thinker-only.

        Raises:
          InputError: the file describes another model, or misses a field.
        """
        thinker = config.get("thinker_config", config)
        kind = thinker.get("model_type")
        if kind not in ("qwen2_5_omni_thinker", "qwen2_5_omni"):
            raise InputError(f"config.json is of model_type {kind!r}, expected qwen2_5_omni")
        try:
            text, vision, audio = (thinker[f"{n}_config"] for n in ("text", "vision", "audio"))
            rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
            heads = text["num_attention_heads"]
            if text.get("use_sliding_window"):
                raise InputError("config.json asks for sliding-window attention: not supported")
            return cls(
                text=TextConfig(
                    vocab_size=text["vocab_size"],
                    hidden_size=text["hidden_size"],
                    intermediate_size=text["intermediate_size"],
                    num_layers=text["num_hidden_layers"],
                    num_heads=heads,
                    num_kv_heads=text["num_key_value_heads"],
                    head_dim=text.get("head_dim") or text["hidden_size"] // heads,
                    rms_norm_eps=text["rms_norm_eps"],
                    rope_theta=float(text.get("rope_theta") or rope["rope_theta"]),
                    mrope_section=tuple(rope["mrope_section"]),
                    # The thinker's own field decides; the text config's is a generic default.
                    tie_embeddings=bool(
                        thinker.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
                    ),
                ),
                vision=VisionConfig(
                    depth=vision["depth"],
                    hidden_size=vision["hidden_size"],
                    intermediate_size=vision["intermediate_size"],
                    num_heads=vision["num_heads"],
                    out_hidden_size=vision["out_hidden_size"],
                    patch_size=vision["patch_size"],
                    temporal_patch_size=vision["temporal_patch_size"],
                    merge_size=vision["spatial_merge_size"],
                    window_size=vision["window_size"],
                    full_attention_layers=tuple(vision["fullatt_block_indexes"]),
                    in_channels=vision.get("in_channels", 3),
                ),
                audio=AudioConfig(
                    num_layers=audio["encoder_layers"],
                    hidden_size=audio["d_model"],
                    intermediate_size=audio["encoder_ffn_dim"],
                    num_heads=audio["encoder_attention_heads"],
                    num_mel_bins=audio["num_mel_bins"],
                    n_window=audio["n_window"],
                    out_hidden_size=audio["output_dim"],
                ),
                audio_token_id=_either(thinker, "audio_token_index", "audio_token_id"),
                audio_start_id=thinker["audio_start_token_id"],
                audio_end_id=thinker["audio_end_token_id"],
                vision_start_id=thinker["vision_start_token_id"],
                vision_end_id=thinker["vision_end_token_id"],
                image_token_id=_either(thinker, "image_token_index", "image_token_id"),
                video_token_id=_either(thinker, "video_token_index", "video_token_id"),
                positions_per_second=thinker["position_id_per_seconds"],
                seconds_per_chunk=float(thinker["seconds_per_chunk"]),
            )
        except KeyError as error:
            raise InputError(f"config.json of the thinker misses the field {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The thinker-only `config.json` of this model; `from_hf` reads it back equal."""
        text, vision, audio = self.text, self.vision, self.audio
        text_config = {
            "model_type": "qwen2_5_omni_text",
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": {
                "type": "default",
                "rope_type": "default",
                "mrope_section": list(text.mrope_section),
            },
            "tie_word_embeddings": text.tie_embeddings,
            "hidden_act": "silu",
            "max_position_embeddings": 32_768,
            "use_sliding_window": False,
        }
        if text.head_dim * text.num_heads != text.hidden_size:
            text_config["head_dim"] = text.head_dim
        return {
            "architectures": ["Qwen2_5OmniThinkerForConditionalGeneration"],
            "model_type": "qwen2_5_omni_thinker",
            "text_config": text_config,
            "vision_config": {
                "model_type": "qwen2_5_omni_vision_encoder",
                "depth": vision.depth,
                "hidden_size": vision.hidden_size,
                "embed_dim": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_heads": vision.num_heads,
                "out_hidden_size": vision.out_hidden_size,
                "patch_size": vision.patch_size,
                "temporal_patch_size": vision.temporal_patch_size,
                "spatial_merge_size": vision.merge_size,
                "window_size": vision.window_size,
                "fullatt_block_indexes": list(vision.full_attention_layers),
                "in_channels": vision.in_channels,
                "hidden_act": "silu",
            },
            "audio_config": {
                "model_type": "qwen2_5_omni_audio_encoder",
                "encoder_layers": audio.num_layers,
                "d_model": audio.hidden_size,
                "encoder_ffn_dim": audio.intermediate_size,
                "encoder_attention_heads": audio.num_heads,
                "num_mel_bins": audio.num_mel_bins,
                "n_window": audio.n_window,
                "output_dim": audio.out_hidden_size,
                "activation_function": "gelu",
            },
            "tie_word_embeddings": text.tie_embeddings,
            "audio_token_index": self.audio_token_id,
            "audio_start_token_id": self.audio_start_id,
            "audio_end_token_id": self.audio_end_id,
            "vision_start_token_id": self.vision_start_id,
            "vision_end_token_id": self.vision_end_id,
            "image_token_index": self.image_token_id,
            "video_token_index": self.video_token_id,
            "position_id_per_seconds": self.positions_per_second,
            # The reference insists on an int where it is one.
            "seconds_per_chunk": int(self.seconds_per_chunk)
            if self.seconds_per_chunk == int(self.seconds_per_chunk)
            else self.seconds_per_chunk,
        }


def _either(config: dict[str, Any], *names: str) -> Any:
    for name in names:
        if name in config:
            return config[name]
    raise KeyError(names[0])
