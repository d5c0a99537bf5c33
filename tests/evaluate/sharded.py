"""Prints what one device and a mesh of (2, 1, 2) generate; run as a process with 4 devices.

    NPROC=16 XLA_FLAGS=--xla_force_host_platform_device_count=4 \\
        python -m tests.evaluate.sharded MODEL QUESTIONS.jsonl VIEW
"""

import json
import sys
from pathlib import Path

import jax

from latentomni_jax.evaluate.answers import prompt_of
from latentomni_jax.evaluate.generate import read_questions
from latentomni_jax.layout import InputError
from latentomni_jax.model import LatentOmni
from latentomni_jax.train.mesh import make_mesh


def shards(x: jax.Array, axis: int) -> int:
    """Into how many pieces an axis of an array is cut."""
    return x.shape[axis] // x.sharding.shard_shape(x.shape)[axis]


def main():
    directory, data, view = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    questions = read_questions(data)
    for mesh in (None, make_mesh(data=2, fsdp=1, tensor=2)):
        model = LatentOmni.from_pretrained(directory, mesh=mesh)
        prompts = [prompt_of(model, question, data.parent, view=view) for question in questions]
        caches, decode = [], model._decode
        model._decode = lambda *args, seen=caches, to=decode: (
            seen.append(args[3].cache) or to(*args)
        )
        options = {"latents": "force", "max_blocks": 1, "max_new_tokens": 6}
        generations = model.generate(prompts, **options)
        refused = ""
        if mesh is not None:
            try:
                model.generate(prompts[:3], **options)
            except InputError as error:
                refused = str(error)
        print(json.dumps({
            "tokens": [generation.token_ids.tolist() for generation in generations],
            "query": shards(model.params["text"]["layers_0"]["q_proj"]["kernel"], 1),
            "rows": shards(caches[0][0]["k"], 0),
            "refused": refused,
        }))  # fmt: skip


if __name__ == "__main__":
    main()
