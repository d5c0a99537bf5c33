"""The other side of `train_step.py`: the same step by PyTorch, on the transformers thinker."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniThinkerConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniThinkerForConditionalGeneration,
)

from latentomni_jax.layout import LatentPart, VisionPart


def make_reference(preset: str):
    """The transformers thinker, random weights."""
    torch.manual_seed(0)
    tiny = preset == "tiny"
    width, encoder, depth = (64, 32, 2) if tiny else (768, 256, 4)
    vocabulary = 512 if tiny else 32_000
    special = vocabulary - 12
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": 96 if tiny else 2048,
            "num_hidden_layers": 3 if tiny else 12,
            "num_attention_heads": 4 if tiny else 12,
            "num_key_value_heads": 2 if tiny else 4,
            "max_position_embeddings": 32_768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3] if tiny else [8, 12, 12],
            },
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        },
        vision_config={"depth": depth, "hidden_size": encoder, "embed_dim": encoder,
                       "intermediate_size": 2 * encoder, "num_heads": 2 if tiny else 4,
                       "out_hidden_size": width, "fullatt_block_indexes": [depth - 1],
                       "window_size": 112, "patch_size": 14, "spatial_merge_size": 2,
                       "temporal_patch_size": 2},
        audio_config={"d_model": encoder, "encoder_layers": depth, "output_dim": width,
                      "encoder_attention_heads": 2 if tiny else 4,
                      "encoder_ffn_dim": 2 * encoder, "num_mel_bins": 128, "n_window": 100},
        audio_token_id=special, audio_token_index=special, audio_start_token_id=special + 1,
        audio_end_token_id=special + 2, vision_start_token_id=special + 3,
        vision_end_token_id=special + 4, image_token_id=special + 5, image_token_index=special + 5,
        video_token_id=special + 6, video_token_index=special + 6, pad_token_id=0,
        position_id_per_seconds=25, seconds_per_chunk=2,
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration(config).eval()


class Theirs:
    """The same step in PyTorch; indices and masks of the layout are made beforehand."""

    def __init__(self, reference, config, spec, media, optimizer, examples, batch):
        self.model, self.spec = reference, spec
        self.scale = torch.nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        self._media(config, media, examples, batch)
        self.ids = torch.tensor(batch.token_ids).long()
        self.positions = torch.tensor(batch.position_ids).long()
        rows = np.arange(len(examples))[:, None] * batch.token_ids.shape[1]
        triggers = (rows + batch.triggers).ravel()
        slots = np.arange(spec.num_latents)
        self.slots = torch.tensor(triggers[:, None] + 1 + slots).ravel()
        self.states = torch.tensor(triggers[:, None] + slots)
        self.target_places = torch.tensor((rows + batch.target_positions).ravel())
        self.target_ids = torch.tensor(batch.target_ids.ravel()).long()
        width = config.text.hidden_size
        theta = spec.ospe_base ** (-np.arange(0, width, 2, dtype=np.float32) / width)
        angles = torch.tensor(spec.slot_seconds()[:, None] * theta)
        self.cos, self.sin = angles.cos(), angles.sin()

        reference.model.visual.requires_grad_(False)
        trained = [p for p in reference.parameters() if p.requires_grad]
        self.trained = [*trained, self.scale]
        self.clip_norm = optimizer.clip_norm
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1]},
                {"params": [p for p in self.trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=optimizer.learning_rate,
            weight_decay=optimizer.weight_decay,
            fused=True,
        )

    def _media(self, config, media, examples, batch):
        """All media behind each other: inputs of the encoders, and who takes which feature."""
        spec = self.spec
        segments = [p.segment for parts in examples for p in parts if isinstance(p, LatentPart)]
        videos = [p for parts in examples for p in parts if isinstance(p, VisionPart)] + segments
        mean, std = (np.float32(x)[:, None] for x in (media.image_mean, media.image_std))
        self.pixel_scale, self.pixel_shift = torch.tensor(1 / (255 * std)), torch.tensor(mean / std)
        pixels = np.concatenate([p.patches for p in videos])
        self.pixels = torch.tensor(pixels.reshape(len(pixels), 3, -1))
        self.grids = torch.tensor([p.grid for p in videos])
        mel = np.concatenate([p.mel for p in videos])
        self.mel, self.mel_lengths = torch.tensor(mel.T), torch.tensor([len(p.mel) for p in videos])
        seen = np.cumsum([0] + [int(np.prod(p.grid)) // 4 for p in videos])
        heard = np.cumsum([0] + [len(p.mel) // 4 for p in videos])
        prompts = len(examples)  # one video each, before all segments
        ids = batch.token_ids.ravel()
        self.seen_places = torch.tensor(np.flatnonzero(ids == config.video_token_id))
        self.heard_places = torch.tensor(np.flatnonzero(ids == config.audio_token_id))
        self.prompt_seen, self.prompt_heard = int(seen[prompts]), int(heard[prompts])
        self.windows = []
        for part, slots in ((seen, spec.num_visual), (heard, spec.num_audio)):
            size = int(part[prompts + 1] - part[prompts])
            assert size > slots
            place, slot = np.arange(size), np.arange(slots)[:, None]
            first, end = slot * size // slots, -(-(slot + 1) * size // slots)
            self.windows.append(torch.tensor((place >= first) & (place < end)).float())

    def _anchors(self, features, windows):
        x = features.detach().reshape(-1, windows.shape[1], features.shape[-1])
        weight = windows * (x.norm(dim=-1) + 1e-6)[:, None]
        return (weight / weight.sum(-1, keepdim=True)) @ x

    def loss(self):
        model, spec = self.model, self.spec
        with torch.no_grad():
            patches = (self.pixels.float() * self.pixel_scale - self.pixel_shift).flatten(1)
            seen = model.model.visual(patches, grid_thw=self.grids).pooler_output
        tower = model.model.audio_tower
        heard = tower(self.mel.float(), feature_lens=self.mel_lengths).last_hidden_state
        anchors = torch.cat(
            [
                self._anchors(seen[self.prompt_seen :], self.windows[0]),
                self._anchors(heard[self.prompt_heard :], self.windows[1]),
            ],
            dim=1,
        )
        first, second = anchors[..., 0::2], anchors[..., 1::2]
        turned = torch.stack(
            [first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-1
        )
        x = model.model.language_model.embed_tokens(self.ids)
        shape, width = x.shape, x.shape[-1]
        x = x.reshape(-1, width).index_put((self.seen_places,), seen[: self.prompt_seen])
        x = x.index_put((self.heard_places,), heard[: self.prompt_heard])
        x = x.index_put((self.slots,), turned.reshape(-1, width)).reshape(shape)
        out = model.model.language_model(
            inputs_embeds=x, position_ids=self.positions, use_cache=False
        )
        hidden = out.last_hidden_state.reshape(-1, width)
        logits = model.lm_head(hidden[self.target_places])
        text = functional.cross_entropy(logits, self.target_ids)
        z = hidden[self.states]
        latent = ((z - anchors) ** 2).sum(-1).mean()
        visual = z[:, : spec.num_visual].reshape(len(z), spec.num_audio, -1, width).mean(2)
        visual, audio = (functional.normalize(v, dim=-1) for v in (visual, z[:, spec.num_visual :]))
        scores = visual @ audio.transpose(1, 2) * self.scale.exp().clamp(max=100)
        own = torch.arange(spec.num_audio).repeat(len(z))
        sync = sum(
            functional.cross_entropy(s.reshape(-1, spec.num_audio), own) / 2
            for s in (scores, scores.transpose(1, 2))
        )
        total = text + 0.005 * latent + sync
        with torch.no_grad():
            metrics = {"loss/total": total, "loss/text": text, "loss/latent": latent}
            metrics |= {"loss/sync": sync, "temperature": (-self.scale).exp()}
            metrics["text/accuracy"] = (logits.argmax(-1) == self.target_ids).float().mean()
            states, count = functional.normalize(z, dim=-1), spec.num_latents
            gram = states @ states.transpose(1, 2)
            trace = gram.diagonal(dim1=1, dim2=2).sum(-1)
            off_diagonal = gram.sum((1, 2)) - trace
            metrics["latent/cosine"] = (off_diagonal / (count * (count - 1))).mean()
            metrics["latent/rank"] = (trace**2 / (gram**2).sum((1, 2))).mean()
            nearest = states @ functional.normalize(anchors, dim=-1).transpose(1, 2)
            right = nearest.argmax(-1) == torch.arange(count)
            metrics["latent/retrieval"] = right.float().mean()
        return total, metrics

    def __call__(self, steps: int = 1) -> dict[str, float]:
        """Metrics of the last step."""
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            total, metrics = self.loss()
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
            if torch.isfinite(norm + total):
                self.optimizer.step()
            values = {name: value.item() for name, value in metrics.items()}
        return values | {"gradient_norm": norm.item()}
