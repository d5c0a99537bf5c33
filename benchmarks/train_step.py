"""Tokens per second of a training step, side by side with PyTorch in one run.

    python benchmarks/train_step.py                      # CPU, f32: a tiny thinker
    python benchmarks/train_step.py --preset 100m        # CPU, f32: about 100 M parameters
    python benchmarks/train_step.py --preset 7b-layers   # one GPU or TPU: 7B widths, few layers

Both sides take the same step: encoders (vision frozen), anchors, teacher-forced latent blocks, the
three losses, gradients, clipping, AdamW that skips a step which is not finite, and the metrics of a
training run, from the same weights on the same batch of bytes and half-precision spectrograms.
PyTorch is the transformers thinker, eager, all rows in one pass without padding, encoders called
once for all media, its fused AdamW. Under JAX_PLATFORMS=cpu the process keeps what either side
frees, as `latentomni train` does there. The sides take turns of some steps in a row, as a run takes
them (ours reads metrics one step late), and the medians of turns are compared, so that a busy
machine hurts both alike. Metrics of the first steps are printed: they have to agree.

7b-layers has no other side: it prints MFU, the model FLOPs of `latentomni_jax.train.flops` (forward
and twice that backward; neither recomputation nor padding count) over the device's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import platform
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import Thinker, init_params
from latentomni_jax.latent.examples import collate_examples, lay_out_example, needed_shape
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.sync import init_sync
from latentomni_jax.layout import LatentPart, LatentSpec, MediaSpec, Role, TextPart, VisionPart
from latentomni_jax.train.flops import peak, step_flops
from latentomni_jax.train.host import keep_freed_memory
from latentomni_jax.train.state import OptimizerConfig, new_state
from latentomni_jax.train.step import make_step
from latentomni_jax.weights import safetensors

MEDIA = MediaSpec()
BLOCK = 8  # steps that a side takes in a row
SHOWN = ("loss/text", "loss/latent", "loss/sync", "gradient_norm", "latent/rank")
OPTIMIZER = OptimizerConfig(schedule="constant", warmup_fraction=0.0, learning_rate=1e-5)


@dataclasses.dataclass(frozen=True)
class Load:
    """What a row holds: a video with sound, text, latent blocks with segments, an answer.

    Attributes:
      video, segment: (seconds, height, width) in patches, one temporal patch and 100 mel a second.
      text, answer: tokens of the question, and of each stretch of reasoning and the answer.
    """

    rows: int
    video: tuple[int, int, int]
    segment: tuple[int, int, int]
    blocks: int
    text: int
    answer: int


LOADS = {
    "tiny": Load(rows=4, video=(4, 8, 8), segment=(2, 8, 8), blocks=2, text=16, answer=8),
    "100m": Load(rows=2, video=(8, 8, 8), segment=(5, 8, 8), blocks=2, text=24, answer=16),
    "7b-layers": Load(
        rows=1, video=(48, 16, 30), segment=(5, 16, 30), blocks=3, text=586, answer=128
    ),
}


def make_parts(load: Load, vocabulary: int) -> list[list]:
    """Random rows, all of one length."""
    rng = np.random.default_rng(0)

    def text(length, role=Role.PROMPT_TEXT):
        return TextPart(rng.integers(1, vocabulary, length).astype(np.int32), role)

    def video(grid):
        pixels = rng.integers(0, 256, (int(np.prod(grid)), 3 * 2 * 14 * 14)).astype(np.uint8)
        mel = rng.normal(size=(100 * grid[0], 128)).astype(np.float16)
        return VisionPart(pixels, grid, np.arange(grid[0], dtype=np.float32), mel)

    rows = []
    for _ in range(load.rows):
        parts = [text(4), video(load.video), text(load.text)]
        for _ in range(load.blocks):
            parts.append(text(load.answer, Role.ASSISTANT_TEXT))
            parts.append(LatentPart((0.0, 5.0), video(load.segment)))
        rows.append([*parts, text(load.answer, Role.ANSWER)])
    return rows


def make_batch(config, spec, examples):
    """One micro-batch of exactly the needed shape, which is that of every row."""
    laid_out = [lay_out_example(config, spec, parts) for parts in examples]
    shape = needed_shape(config, laid_out[0])
    shape = dataclasses.replace(shape, patches=-(-shape.patches // 64) * 64)
    return collate_examples(config, MEDIA, spec, laid_out, shape)


class Ours:
    """The jitted step and its state."""

    def __init__(self, config, spec, params, batch, *, dtype=jnp.float32, remat):
        options = Objective(spec=spec, media=MEDIA)
        sync = init_sync(options, config.text.hidden_size, jax.random.key(0))
        thinker = Thinker(config, dtype=dtype, remat_policy=remat)
        optimizer = OPTIMIZER.transformation()
        make = functools.partial(new_state, frozen=("vision/",), optimizer=optimizer, seed=0)
        self.state = jax.jit(make, donate_argnums=0)(params | {"sync": sync})
        self.step = jax.jit(make_step(thinker, options, optimizer), donate_argnums=0)
        self.batch = jax.tree.map(lambda x: jnp.asarray(x[None]), batch)

    def __call__(self, steps: int = 1) -> dict[str, float]:
        """Metrics of the last step; each step is dispatched before the last one is read."""
        pending, values = None, {}
        for _ in range(steps):
            self.state, metrics = self.step(self.state, self.batch)
            pending, metrics = metrics, pending
            if metrics is not None:
                values = {name: value.item() for name, value in metrics.items()}
        values = {name: value.item() for name, value in pending.items()}
        jax.block_until_ready(self.state)
        return values


class Theirs:
    """The same step in PyTorch; indices and masks of the layout are made beforehand."""

    def __init__(self, reference, config, spec, examples, batch):
        import torch

        self.torch, self.model, self.spec = torch, reference, spec
        self.scale = torch.nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        self._media(config, examples, batch)
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
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in trained if p.ndim > 1]},
                {"params": [p for p in self.trained if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=OPTIMIZER.learning_rate,
            weight_decay=OPTIMIZER.weight_decay,
            fused=True,
        )

    def _media(self, config, examples, batch):
        """All media behind each other: inputs of the encoders, and who takes which feature."""
        torch, spec = self.torch, self.spec
        segments = [p.segment for parts in examples for p in parts if isinstance(p, LatentPart)]
        videos = [p for parts in examples for p in parts if isinstance(p, VisionPart)] + segments
        mean, std = (np.float32(x)[:, None] for x in (MEDIA.image_mean, MEDIA.image_std))
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
        torch, model, spec = self.torch, self.model, self.spec
        functional = torch.nn.functional
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
            norm = self.torch.nn.utils.clip_grad_norm_(self.trained, OPTIMIZER.clip_norm)
            if self.torch.isfinite(norm + total):
                self.optimizer.step()
            values = {name: value.item() for name, value in metrics.items()}
        return values | {"gradient_norm": norm.item()}


def make_reference(preset: str):
    """The transformers thinker, random weights."""
    import torch
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
        Qwen2_5OmniThinkerConfig,
    )
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniThinkerForConditionalGeneration,
    )

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
    spec = LatentSpec(
        num_visual=8 if tiny else 32,
        num_audio=2 if tiny else 8,
        pad_id=special + 8,
        trigger_id=special + 9,
        stop_id=special + 10,
    )
    return Qwen2_5OmniThinkerForConditionalGeneration(config).eval(), spec


def port(reference) -> tuple[ThinkerConfig, dict]:
    """The reference's weights through a checkpoint on disk."""
    with tempfile.TemporaryDirectory() as directory:
        reference.save_pretrained(directory)
        text = (pathlib.Path(directory) / "config.json").read_text()
        config = ThinkerConfig.from_hf(json.loads(text))
        return config, safetensors.unflatten(dict(safetensors.load(directory, config)))


def compare(preset: str, rows: int | None, repeats: int, remat: str) -> None:
    """Both sides in turn."""
    import torch
    import transformers

    kept = keep_freed_memory()
    reference, spec = make_reference(preset)
    config, params = port(reference)
    load = LOADS[preset] if rows is None else dataclasses.replace(LOADS[preset], rows=rows)
    examples = make_parts(load, config.text.vocab_size - 20)
    batch = make_batch(config, spec, examples)
    tokens, size = int(batch.lengths.sum()), sum(x.size for x in jax.tree.leaves(params))
    print(f"{platform.machine()}, {torch.get_num_threads()} threads; jax {jax.__version__}, "
          f"torch {torch.__version__}, transformers {transformers.__version__}")  # fmt: skip
    print(f"{preset}: {size / 1e6:.1f} M parameters, {len(examples)} x {batch.lengths[0]} tokens, "
          f"{batch.triggers.size} blocks of {spec.num_latents}, f32, remat {remat}, freed memory "
          f"{'kept' if kept else 'returned'} (both sides)")  # fmt: skip
    sides = {
        "ours": Ours(config, spec, params, batch, remat=remat),
        "torch": Theirs(reference, config, spec, examples, batch),
    }
    times = {name: [] for name in sides}
    for step in range(2):  # the first one compiles
        for name, side in sides.items():
            values = side()
            shown = "  ".join(f"{key} {values[key]:.6f}" for key in SHOWN)
            print(f"  step {step} {name:>5}:  {shown}", flush=True)
    for _ in range(repeats):
        for name, side in sides.items():
            time.sleep(0.5)  # thread pools of the other side spin for a while after their work
            side()  # caches are the other side's: a run's steps follow each other
            started = time.perf_counter()
            side(BLOCK)
            times[name].append((time.perf_counter() - started) / BLOCK)
    medians = {name: statistics.median(all_of) for name, all_of in times.items()}
    for name, median in medians.items():
        spread = f"{min(times[name]):.4f} .. {max(times[name]):.4f}"
        print(f"{name:>6}: {tokens / median:10.1f} tokens/s  (median {median:.4f} s of {spread})")
    best = min(times["torch"]) / min(times["ours"])
    print(f" ratio: {medians['torch'] / medians['ours']:.2f} of medians, {best:.2f} of the fastest")


def measure_layers(layers: int, repeats: int, remat: str) -> None:
    """7B widths with few layers in bf16 on one device: tokens/s and MFU."""
    full = ThinkerConfig.qwen2_5_omni_7b()
    config = dataclasses.replace(
        full,
        text=dataclasses.replace(full.text, num_layers=layers),
        vision=dataclasses.replace(full.vision, depth=layers, full_attention_layers=(layers - 1,)),
        audio=dataclasses.replace(full.audio, num_layers=layers),
    )
    spec = LatentSpec()
    examples = make_parts(LOADS["7b-layers"], 150_000)
    batch = make_batch(config, spec, examples)
    params = init_params(config, jax.random.key(0), jnp.float32)
    size = sum(x.size for x in jax.tree.leaves(params))
    step = Ours(config, spec, params, batch, dtype=jnp.bfloat16, remat=remat)
    del params
    device = jax.devices()[0]
    print(
        f"{device.device_kind}; jax {jax.__version__}; {layers} layers of 7B width, remat {remat}"
    )
    print(f"{size / 1e9:.2f} B parameters, {batch.lengths.sum()} tokens")
    times = []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        values = step()
        seconds = time.perf_counter() - started
        print(f"  step {repeat}: {seconds:.3f} s  {values}", flush=True)
        times += [seconds] * (repeat > 0)
    median = statistics.median(times)
    flops, ceiling = step_flops(config, batch), peak(device.device_kind)
    share = f"{flops / median / ceiling:.1%}" if ceiling else "unknown (no peak for this device)"
    print(f"{batch.lengths.sum() / median:.1f} tokens/s, {flops / median / 1e12:.1f} model TFLOP/s")
    print(f"MFU {share}: model FLOPs of the step / seconds / dense bf16 peak of the device")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=tuple(LOADS), default="tiny")
    parser.add_argument("--rows", type=int, help="of a batch; default is the preset's")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=4, help="of preset 7b-layers")
    parser.add_argument(
        "--remat",
        choices=("none", "dots", "full"),
        help="of our side; default dots (the fastest on CPU), and full for 7b-layers",
    )
    args = parser.parse_args()
    if args.preset == "7b-layers":
        measure_layers(args.layers, args.repeats, args.remat or "full")
    else:
        compare(args.preset, args.rows, args.repeats, args.remat or "dots")


if __name__ == "__main__":
    main()
