"""Tokens per second of a training step, side by side with PyTorch in one run.

    python benchmarks/train_step.py                      # CPU, f32: a tiny thinker
    python benchmarks/train_step.py --preset 100m        # CPU, f32: about 100 M parameters
    python benchmarks/train_step.py --preset 7b-layers   # one GPU or TPU: 7B widths, few layers

Both sides take the same step: encoders (vision frozen), anchors, teacher-forced latent blocks, the
three losses, gradients, clipping, AdamW that skips a step which is not finite, and the metrics of a
training run, from the same weights on the same batch of bytes and half-precision spectrograms.
PyTorch is the transformers thinker, eager, all rows in one pass without padding, encoders called
once for all media, its fused AdamW. Each side is a process of its own. Under JAX_PLATFORMS=cpu ours
keeps the memory that it frees, as `latentomni train` does there; PyTorch runs as it comes, and once
more with the same setting. The sides take turns of some steps in a row, as a run takes them (ours
reads metrics one step late), and the medians of turns are compared, so that a busy machine hurts
all alike. Metrics of the second step are printed: they have to agree.

7b-layers has no other side: it prints MFU, the model FLOPs of `latentomni_jax.train.flops` (forward
and twice that backward; neither recomputation nor padding count) over the device's dense bf16 peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import tempfile
import time
from multiprocessing.connection import Connection

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
KEPT = "torch, kept"  # PyTorch with our setting of the allocator
SIDES = ("torch", KEPT, "ours")  # the first one writes the weights
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


def make_spec(preset: str, vocabulary: int) -> LatentSpec:
    """The latents of a preset; markers are the last ids of the vocabulary."""
    visual, audio = (8, 2) if preset == "tiny" else (32, 8)
    pad, trigger, stop = range(vocabulary - 4, vocabulary - 1)
    return LatentSpec(
        num_visual=visual, num_audio=audio, pad_id=pad, trigger_id=trigger, stop_id=stop
    )


def _work(name: str, args: argparse.Namespace, directory: str, pipe: Connection) -> None:
    """One side in a process of its own: takes as many steps in a row as it is told, until told 0.

    Sends what it is and what it works on, then their seconds and the last metrics each time.
    """
    kept = name in ("ours", KEPT) and keep_freed_memory()
    if name == "ours":
        reference, about = None, f"jax {jax.__version__}, remat {args.remat}"
    else:
        import torch
        import train_step_torch
        import transformers

        about = f"torch {torch.__version__}, transformers {transformers.__version__}, "
        about += f"{torch.get_num_threads()} threads"
        reference = train_step_torch.make_reference(args.preset)
        if not os.listdir(directory):
            reference.save_pretrained(directory)
    config = ThinkerConfig.from_hf(
        json.loads((pathlib.Path(directory) / "config.json").read_text())
    )
    spec = make_spec(args.preset, config.text.vocab_size)
    load = LOADS[args.preset]
    load = dataclasses.replace(load, rows=args.rows or load.rows)
    examples = make_parts(load, config.text.vocab_size - 20)
    batch = make_batch(config, spec, examples)
    if reference is None:
        params = safetensors.unflatten(dict(safetensors.load(directory, config)))
        side = Ours(config, spec, params, batch, remat=args.remat)
        del params
    else:
        side = train_step_torch.Theirs(reference, config, spec, MEDIA, OPTIMIZER, examples, batch)
    shape = f"{len(examples)} x {batch.lengths[0]} tokens, {batch.triggers.size} blocks of "
    shape += f"{spec.num_latents}, {config.text.num_layers} layers of {config.text.hidden_size}"
    about += f", freed memory {'kept' if kept else 'returned'}"
    pipe.send((about, shape, int(batch.lengths.sum())))
    while steps := pipe.recv():
        side()  # caches are the other side's: a run's steps follow each other
        started = time.perf_counter()
        values = side(steps)
        pipe.send((time.perf_counter() - started, values))


def compare(args: argparse.Namespace) -> None:
    """The sides in turn."""
    context = multiprocessing.get_context("spawn")  # a fork would share what JAX has started
    times, sides, processes, shape, tokens = {}, {}, [], "", 0
    with tempfile.TemporaryDirectory() as directory:
        for name in SIDES:
            sides[name], end = context.Pipe()
            process = context.Process(target=_work, args=(name, args, directory, end), daemon=True)
            process.start()
            processes.append(process)
            end.close()  # so that a side that fails is an end of file here
            about, shape, tokens = sides[name].recv()
            print(f"{name:>11}: {about}", flush=True)
    print(f"{args.preset}: {shape}, f32, {platform.machine()}")
    for name, side in sides.items():
        side.send(1)
        values = side.recv()[1]
        print(f"{name:>11}: " + "  ".join(f"{key} {values[key]:.6f}" for key in SHOWN), flush=True)
    for _ in range(args.repeats):
        for name, side in sides.items():
            time.sleep(0.5)  # thread pools spin for a while after their work
            side.send(BLOCK)
            times.setdefault(name, []).append(side.recv()[0] / BLOCK)
    for side in sides.values():
        side.send(0)
    for process in processes:
        process.join()
    medians = {name: statistics.median(all_of) for name, all_of in times.items()}
    for name, median in medians.items():
        spread = f"{min(times[name]):.4f} .. {max(times[name]):.4f}"
        line = f"{name:>11}: {tokens / median:8.1f} tokens/s  (median {median:.4f} s of {spread})"
        if name != "ours":
            best = min(times[name]) / min(times["ours"])
            line += f"  ours is {median / medians['ours']:.2f} times as fast, fastest {best:.2f}"
        print(line)


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
    parser.add_argument("--layers", type=int, default=8, help="of preset 7b-layers (8: 54 GiB)")
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), default="dots", help="of our side (dots)"
    )
    args = parser.parse_args()
    if args.preset == "7b-layers":
        measure_layers(args.layers, args.repeats, args.remat)
    else:
        compare(args)


if __name__ == "__main__":
    main()
