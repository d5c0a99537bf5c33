"""The paper's ablations in small: each a few lines over the last stage of `configs/av_events.py`.

    latentomni train --config configs/av_events_study.py:without_ospe --workdir runs/without_ospe \\
      --set data.cache=events-cache --set model.directory=runs/order/model

`bash launch/ablate.sh --rows ...` trains and compares them. Counts of latents are the paper's
divided by four, as the model's own 8 + 2 are; what the paper trains with `teacher` is `rollout`
here (see docs/results.md), so that `teacher` is a row of its own. Rows of the group "silent" learn
from reasoning that does not say what it found, and are compared with the first of them. Names: """

from configs.ablations import ABLATIONS
from configs.av_events import get_config as av_events
from latentomni_jax.layout import InputError

_SILENT = r"^train-[0-9]+-(by-thing|by-sound|after-|twins|\w+-silent)|-(tell|compare)$"
GROUPS = {
    "main": {"latentomni": {}}
    | {
        name: ABLATIONS[name]
        for name in (
            "text_cot", "vanilla_sft", "without_audio_latents", "without_visual_latents",
            "without_ospe", "without_latent_loss", "without_sync_loss",
        )
    },
    "count": {
        "latents_5": {"latent.num_visual": 4, "latent.num_audio": 1},
        "latents_8": {"latent.num_visual": 6, "latent.num_audio": 2},
        "latents_13": {"latent.num_visual": 10, "latent.num_audio": 3},
    },
    "split": {
        "split_6_4": {"latent.num_visual": 6, "latent.num_audio": 4},
        "split_7_3": {"latent.num_visual": 7, "latent.num_audio": 3},
        "split_9_1": {"latent.num_visual": 9, "latent.num_audio": 1},
    },
    "ospe": {
        "ospe_position": {"latent.ospe_apply": "position"},
        "ospe_both": {"latent.ospe_apply": "both"},
    },
    "mode": {
        "teacher": {"objective.mode": "teacher"},
        "mixed": {"objective.mode": "mixed"},
        **{
            f"jacobi_{n}": {"objective.mode": "jacobi", "objective.jacobi_passes": n}
            for n in (2, 3, 5)
        },
    },
    "flow": {"bottleneck": {"latent.flow": "bottleneck"}},
    # Reasoning that does not say what it found: words do not carry it to the next step.
    "silent": {
        name: {"data.only": _SILENT} | settings
        for name, settings in {
            "silent": {},
            "silent_text_cot": ABLATIONS["text_cot"],
            "silent_without_latent_loss": ABLATIONS["without_latent_loss"],
            "silent_without_sync_loss": ABLATIONS["without_sync_loss"],
            "silent_without_ospe": ABLATIONS["without_ospe"],
            "silent_bottleneck": {"latent.flow": "bottleneck"},
        }.items()
    },
}  # fmt: skip
ROWS = {name: settings for group in GROUPS.values() for name, settings in group.items()}
__doc__ += ", ".join(ROWS) + "."


def get_config(name):
    if name not in ROWS:
        raise InputError(f"no row {name!r}; there are {', '.join(ROWS)}")
    c = av_events("latentomni")
    c.update_from_flattened_dict(ROWS[name])
    if c.data.reasoning != "latent":  # no blocks, and with text more to say
        words, shape = map(dict, c.shapes[:2])
        c.shapes = (words, shape, shape | dict(tokens=232, targets=48))
    more = max(c.latent.num_visual + c.latent.num_audio - 10, 0)
    c.shapes = tuple(
        dict(shape) | dict(tokens=shape["tokens"] + more * shape["blocks"]) for shape in c.shapes
    )
    return c
