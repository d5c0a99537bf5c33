"""What int8 weights cost a model's answers: the same questions under its own weights and others.

    python benchmarks/int8.py --model runs/demo/latentomni/model --data runs/demo/events/test.jsonl
    python benchmarks/int8.py --model models/qwen7b --data questions.jsonl --questions 200 --batch 4

The data are trajectories with choices (`latentomni data cache --help` has the format). Every kind
of weights answers, greedily; then it reads the answers that the model's own weights gave, latent
states as those fed them, and its scores of every next text token are compared with theirs:

  right, other     questions answered rightly, and answered otherwise than by the own weights
  d logit, spread  mean difference of a logit, and the standard deviation of one over the vocabulary
  KL, most         KL(own || these) of the next token in nats, mean over tokens, and the largest
  same             next tokens that are the likeliest under both

Kinds: bfloat16 (all weights and the computation), int8, and int8-head, which gives a tied head a
matrix of its own first, so that it is quantised as an untied model's is. One kind is in memory at a
time; the scores of `--texts` answers are kept (40 MB each at a vocabulary of 152k).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from data_pipeline.trajectories import read_jsonl
from latentomni_jax.evaluate.answers import answer_all, prompt_of
from latentomni_jax.evaluate.replay import replay
from latentomni_jax.latent.masks import flow_mask
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.model import LatentOmni
from latentomni_jax.weights import safetensors
from latentomni_jax.weights.checkpoint import load_model
from latentomni_jax.weights.quantize import is_quantized, quantize, quantize_kernel

KINDS = ("own", "bfloat16", "int8", "int8-head")


def load(directory: str, kind: str) -> LatentOmni:
    """The model with one kind of weights; the computation stays the own one's but in bfloat16."""
    own_head = kind == "int8-head"
    loaded = load_model(
        directory,
        dtype=jnp.bfloat16 if kind == "bfloat16" else None,
        weights="int8" if kind == "int8" else None,
    )
    params, config = loaded.params, loaded.config
    if own_head and config.text.tie_embeddings:
        head = {"lm_head": {"kernel": params["text"]["embed_tokens"].T}}
        params = params | {"text": params["text"] | head}
        text = dataclasses.replace(config.text, tie_embeddings=False)
        config = dataclasses.replace(config, text=text)
    params = quantize(params) if own_head else params
    return LatentOmni(params, config, loaded.latent, loaded.media, load_tokenizer(directory))


def text_scores(model: LatentOmni, root: pathlib.Path, scored) -> np.ndarray:
    """Logits f32[n,V] of every text token of an answer, read as it was given."""
    row = replay(model, prompt_of(model, scored.question, root), scored.generation)
    ids = scored.generation.token_ids
    # Slots and the stop token are not chosen; what stands before a position tells of it.
    chosen = np.flatnonzero((ids != model.latent.pad_id) & (ids != model.latent.stop_id))
    hidden = _read(
        model.thinker,
        model.latent,
        model.text_params,
        row.embeds,
        row.position_ids,
        row.roles[None],
    )
    before = hidden[0, row.prompt_length - 1 + chosen]
    return np.asarray(_head(model.thinker, model.text_params, before))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _read(thinker, spec, params, embeds, positions, roles):
    hidden = flow_mask(spec, roles)
    given = ({"params": params}, embeds, positions)
    return thinker.apply(*given, hidden=hidden, method="decode")[0]


@functools.partial(jax.jit, static_argnums=0)
def _head(thinker, params, hidden):
    return thinker.apply({"params": params}, hidden, method="logits")


def compare(own: list[np.ndarray], other: list[np.ndarray]) -> str:
    """The last columns of a row; see the module."""
    p, q = (jnp.concatenate([jnp.asarray(x) for x in side]) for side in (own, other))
    log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
    kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    same = jnp.mean(jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1))
    return (
        f"{jnp.mean(jnp.abs(p - q)):>9.4f}{jnp.mean(jnp.std(p, axis=-1)):>8.2f}"
        f"{jnp.mean(kl):>10.2e}{jnp.max(kl):>10.2e}{100 * same:>8.2f}%"
    )


def relative_errors(directory: str) -> str:
    """|W - Q s| over |W| (Frobenius) of a model's matrices, and of two of normal numbers."""

    def error(kernel):
        kernel = np.asarray(kernel)
        q, scale = quantize_kernel(kernel, "")
        difference = kernel.astype(np.float32) - q * scale[..., None, :]
        return np.linalg.norm(difference) / np.linalg.norm(kernel.astype(np.float32))

    flat = safetensors.flatten(load_model(directory).params)
    errors = {
        f"{path} {i}": error(matrix)
        for path, leaf in flat.items()
        if is_quantized(path)
        for i, matrix in enumerate(leaf if leaf.ndim == 3 else leaf[None])
    }
    worst = max(errors, key=errors.__getitem__)
    rng = np.random.default_rng(0)
    normal = {n: error(rng.normal(size=(n, 512)).astype(np.float32)) for n in (3584, 18_944)}
    return (
        f"relative error of {len(errors)} matrices: mean {np.mean([*errors.values()]):.2%}, most "
        f"{errors[worst]:.2%} ({worst})\nof normal numbers: "
        + ", ".join(f"{found:.2%} with {n} inputs" for n, found in normal.items())
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, type=pathlib.Path, metavar="FILE")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--texts", type=int, default=32, help="answers whose scores are compared")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", choices=KINDS[1:], default=["int8"])
    args = parser.parse_args()
    root = args.data.parent
    questions = [q for q in read_jsonl(args.data)[0] if q.choices][: args.questions]
    print(f"device: {jax.devices()[0].device_kind}; {len(questions)} questions")
    print(relative_errors(args.model))
    print(f"{'weights':<10} right  other  d logit  spread        KL      most     same")
    own, own_scores = [], []
    for kind in ("own", *args.kinds):
        model = load(args.model, kind)
        answers = answer_all(
            model, questions, root, batch=args.batch, max_new_tokens=args.max_new_tokens
        )
        answers = list(tqdm.tqdm(answers, total=len(questions), desc=kind))
        own = own or answers
        scores = [text_scores(model, root, one) for one in own[: args.texts]]
        own_scores = own_scores or scores
        right = sum(one.is_right for one in answers)
        other = sum(a.given != b.given for a, b in zip(own, answers, strict=True))
        print(f"{kind:<10}{right:>6}{other:>7}{compare(own_scores, scores)}", flush=True)
        del model  # before the next one is loaded


if __name__ == "__main__":
    main()
