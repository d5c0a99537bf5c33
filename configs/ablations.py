"""The paper's baselines and ablations: each a few lines over the 7B recipe.

    latentomni train --config configs/ablations.py:without_ospe --workdir runs/without_ospe \\
      --set model.directory=Qwen2.5-Omni-7B --set data.cache=cache/train

Names: """

from configs.qwen2_5_omni_7b import get_config as config_7b
from latentomni_jax.layout import InputError

ABLATIONS = {
    # Baselines on the same data: reasoning in words alone, and no reasoning at all.
    "text_cot": {"data.reasoning": "text"},
    "vanilla_sft": {"data.reasoning": "none"},
    # One part of the method taken out.
    "without_audio_latents": {"latent.num_audio": 0},
    "without_visual_latents": {"latent.num_visual": 0},
    "without_ospe": {"latent.ospe_apply": "none"},
    "without_latent_loss": {"objective.weight_latent": 0.0},
    "without_sync_loss": {"objective.weight_sync": 0.0},
    # How many latents, at the default's ratio of 4 to 1; and how they are shared out.
    "latents_20": {"latent.num_visual": 16, "latent.num_audio": 4},
    "latents_30": {"latent.num_visual": 24, "latent.num_audio": 6},
    "latents_40": {},
    "latents_50": {"latent.num_visual": 40, "latent.num_audio": 10},
    "split_24_16": {"latent.num_visual": 24, "latent.num_audio": 16},
    "split_28_12": {"latent.num_visual": 28, "latent.num_audio": 12},
    "split_32_8": {},
    "split_36_4": {"latent.num_visual": 36, "latent.num_audio": 4},
    # Beyond the paper: choices that it leaves open, and the released code's.
    "ospe_position": {"latent.ospe_apply": "position"},
    "bottleneck": {"latent.flow": "bottleneck"},
    "rollout": {"objective.mode": "rollout"},
    "jacobi": {"objective.mode": "jacobi"},
    "mixed": {"objective.mode": "mixed"},
    "global_negatives": {"objective.sync_negatives": "global"},
    "prompt_anchors": {"objective.anchor_source": "prompt"},
    "released_losses": {
        "objective.latent_reduction": "mean",
        "objective.weight_latent": 0.1,
        "objective.anchor_power": 2,
        "objective.sync_features": "encoder",
    },
}
__doc__ += ", ".join(ABLATIONS) + "."


def get_config(name):
    if name not in ABLATIONS:
        raise InputError(f"no ablation {name!r}; there are {', '.join(ABLATIONS)}")
    c = config_7b()
    c.update_from_flattened_dict(ABLATIONS[name])
    return c
