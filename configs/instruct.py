"""Who is asked for what when LatentOmni-Instruct is made: the paper's models.

    latentomni data instruct --config configs/instruct.py --llm http://HOST:PORT/v1 \\
      --captions captions.jsonl --videos clips --out instruct

A role with a `url` of its own is asked there; the others at --llm. Names are those of the models
on Hugging Face or at their makers; servers may have others. Prices are per million tokens.
"""

import dataclasses

import ml_collections

from data_pipeline.instruct.settings import Settings

MODELS = {
    "question": "Qwen3-235B-A22B",
    "judge": "GLM-4.7",
    "captioner": "Qwen3-30B-A3B-Captioner",
    "editor": "GLM-4.7",
    "reasoner": "GLM-4.7",
    "auditor": "Gemini-2.5-Flash",
}


def get_config():
    c = ml_collections.ConfigDict(dataclasses.asdict(Settings()))
    c.kinds = ("open", "choice")
    for role, model in MODELS.items():
        c.roles[role].model = model
    c.roles.judge.temperature = 0.3
    c.roles.auditor.temperature = 0.0
    return c
