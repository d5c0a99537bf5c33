"""Tokens per second of greedy decoding, side by side with the PyTorch reference in one run.

    python benchmarks/decode.py                          # CPU: hidden 512, 12 layers, f32
    python benchmarks/decode.py --preset 7b              # 7B shapes, random bf16, 4k prompt

Both sides run the same random weights on the same prompt. Repetitions alternate between them, and
the medians are compared, so that a busy machine hurts both alike. The floor is what reading the
weights and the cache once per step would take at `--bandwidth` GB/s.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import init_params
from latentomni_jax.latent.trajectory import collate
from latentomni_jax.layout import LatentSpec, TextPart
from latentomni_jax.model import LatentOmni
from latentomni_jax.weights import safetensors


def small_reference():
    """The reference thinker of the CPU comparison: hidden 512, 12 layers, vocabulary 32k, f32."""
    import torch
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
        Qwen2_5OmniThinkerConfig,
    )
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniThinkerForConditionalGeneration,
    )

    torch.manual_seed(0)
    config = Qwen2_5OmniThinkerConfig(
        text_config={
            "vocab_size": 32_000,
            "hidden_size": 512,
            "intermediate_size": 1408,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
                       "out_hidden_size": 512, "fullatt_block_indexes": [0]},
        audio_config={"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2,
                      "encoder_ffn_dim": 32, "output_dim": 512},
        audio_start_token_id=31_000, audio_end_token_id=31_001, vision_start_token_id=31_002,
        vision_end_token_id=31_003, audio_token_index=31_004, audio_token_id=31_004,
        image_token_index=31_005, image_token_id=31_005, video_token_index=31_006,
        video_token_id=31_006, pad_token_id=0,
    )  # fmt: skip
    return Qwen2_5OmniThinkerForConditionalGeneration(config).eval()


def port(reference) -> tuple[ThinkerConfig, dict]:
    """The reference's weights through a checkpoint on disk."""
    with tempfile.TemporaryDirectory() as directory:
        reference.save_pretrained(directory)
        text = (pathlib.Path(directory) / "config.json").read_text()
        config = ThinkerConfig.from_hf(json.loads(text))
        return config, safetensors.unflatten(dict(safetensors.load(directory, config)))


def step_bytes(config: ThinkerConfig, batch: int, length: int, itemsize: int) -> int:
    """Bytes a decode step must read: weights but not the embedding table, and the cache."""
    text = config.text
    per_layer = text.hidden_size * (2 * text.num_heads + 2 * text.num_kv_heads) * text.head_dim
    per_layer += 3 * text.hidden_size * text.intermediate_size
    weights = text.num_layers * per_layer + text.hidden_size * text.vocab_size
    cache = 2 * text.num_layers * batch * length * text.num_kv_heads * text.head_dim
    return (weights + cache) * itemsize


def time_ours(model, prompts, new_tokens):
    timings: dict[str, float] = {}
    started = time.perf_counter()
    out = model.generate(
        prompts, latents="off", max_new_tokens=new_tokens, eos_ids=(), timings=timings
    )
    return time.perf_counter() - started, timings["decode_s"], [g.token_ids for g in out]


def time_reference(reference, batch, new_tokens, suppress):
    import torch

    ids = torch.tensor(batch.token_ids[:, : batch.lengths[0]]).long()
    started = time.perf_counter()
    with torch.no_grad():
        out = reference.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=suppress,
        )
    return time.perf_counter() - started, out[:, ids.shape[1] :].numpy()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("small", "3b", "7b"), default="small")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--prompt", type=int, help="prompt length in tokens")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, help="GB/s of the memory, for the floor")
    parser.add_argument("--no-reference", action="store_true")
    args = parser.parse_args()
    is_small = args.preset == "small"
    batches = args.batch or ([1, 8] if is_small else [1, 8, 32])
    length = args.prompt or (128 if is_small else 4096)

    reference = None
    if is_small:
        reference = small_reference()
        config, params = port(reference)
        spec = LatentSpec(pad_id=31_997, trigger_id=31_998, stop_id=31_999)
    else:
        config = getattr(ThinkerConfig, f"qwen2_5_omni_{args.preset}")()
        params, spec = init_params(config, jax.random.key(0), jnp.bfloat16), LatentSpec()
    model = LatentOmni(params, config, spec)
    del params
    print(f"device: {jax.devices()[0].device_kind}; {args.preset}; prompt {length} tokens")
    suppress = [spec.pad_id, spec.trigger_id, spec.stop_id]
    header = f"{'batch':>5} {'ours tok/s':>11} {'decode only':>11} {'floor':>9} {'of floor':>9}"
    print(header + (f" {'reference':>10} {'ratio':>6}" if reference else ""))
    for size in batches:
        rng = np.random.default_rng(0)
        tokens = rng.integers(1, 30_000, (size, length)).astype(np.int32)
        prompts = [[TextPart(row)] for row in tokens]
        batch, _, _ = collate(config, prompts)
        runs, decode_runs, theirs = [], [], []
        for repeat in range(args.repeats + 1):  # the first one compiles
            time.sleep(0.5)  # thread pools of the other side spin for a while after their work
            seconds, decode_seconds, ours = time_ours(model, prompts, args.new_tokens)
            other = None
            if reference is not None and not args.no_reference:
                time.sleep(0.5)
                other, expected = time_reference(reference, batch, args.new_tokens, suppress)
                if repeat == 0:
                    same = np.mean(np.array(ours) == expected)
                    print(f"      same greedy tokens: {same:.1%}")
            if repeat:
                runs.append(seconds)
                decode_runs.append(decode_seconds)
                theirs.append(other)
        count = size * args.new_tokens
        mine = count / statistics.median(runs)
        decode_rate = count / statistics.median(decode_runs)
        moved = step_bytes(config, size, length + args.new_tokens // 2, model.dtype.itemsize)
        floor = size * args.bandwidth * 1e9 / moved if args.bandwidth else float("nan")
        line = f"{size:>5} {mine:>11.1f} {decode_rate:>11.1f} {floor:>9.1f} "
        line += f"{decode_rate / floor:>9.1%}"
        if theirs[0]:
            rate = count / statistics.median(theirs)
            line += f" {rate:>10.1f} {mine / rate:>6.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
