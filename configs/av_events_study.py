"""The paper's ablations in small: each a few lines over the last stage of `configs/av_events.py`.

    latentomni train --config configs/av_events_study.py:without_ospe --workdir runs/without_ospe \\
      --set data.cache=events-cache --set model.directory=runs/order/model
    latentomni train --config configs/av_events_study.py:silent_without_ospe \\
      --workdir runs/silent_without_ospe \\
      --set data.cache=events-cache --set model.directory=runs/without_ospe/model

`bash launch/ablate.sh --rows ...` trains and compares them. Unlike the demo's, their last stage has
trajectories alone, so that every step trains latents. Counts of latents are the paper's divided by
four, as the model's own 8 + 2 are; what the paper trains with `teacher` is `rollout` here (see
docs/results.md), so that `teacher` is a row of its own.

A row "silent_X" goes on from the model of row X with reasoning that does not say what it found, a
row "bottleneck_X" with words that see the clip through latents alone: where words do not carry what
was found, latents have to.

Rows: """

from configs.ablations import ABLATIONS
from configs.av_events import get_config as av_events
from latentomni_jax.layout import InputError

STEPS, FURTHER_STEPS = 1200, 1400  # of a row, and of one that goes on from another
# What the rows of a kind share. The weight 0.005 belongs to the 3,584 channels of the 7B model:
# channel for channel it is 0.14 for these 128. Where words tell what was found more than 0.005 cost
# right answers, where they do not latents need more (docs/results.md).
_TOLD = {"data.only": r"^train-[0-9]+-(?!by-|after-|twins|\w+-silent)"}
_SILENT = {"data.only": r"^train-[0-9]+-\w+-silent", "objective.weight_latent": 0.05}
_BOTTLENECK = _TOLD | {"latent.flow": "bottleneck", "objective.weight_latent": 0.05}
_PARTS = (
    "without_audio_latents", "without_visual_latents", "without_ospe", "without_latent_loss",
    "without_sync_loss",
)  # fmt: skip
_GROUPS = {
    "main": {"latentomni": {}}
    | {name: ABLATIONS[name] for name in ("text_cot", "vanilla_sft", *_PARTS)},
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
}


def _kind(prefix, shared, rows):
    return {prefix + name: shared | settings for name, settings in rows.items()}


GROUPS = {
    **{group: _kind("", _TOLD, rows) for group, rows in _GROUPS.items()},
    **{"silent_" + group: _kind("silent_", _SILENT, rows) for group, rows in _GROUPS.items()},
    "bottleneck": _kind(
        "bottleneck_", _BOTTLENECK, {k: _GROUPS["main"][k] for k in ("latentomni", *_PARTS)}
    ),
}
ROWS = {name: settings for group in GROUPS.values() for name, settings in group.items()}
__doc__ += ", ".join(ROWS) + "."


def earlier(row: str) -> str | None:
    """The row whose model this one goes on from; None: the base of all."""
    first, _, rest = row.partition("_")
    return rest if first in ("silent", "bottleneck") else None


def get_config(name):
    if name not in ROWS:
        raise InputError(f"no row {name!r}; there are {', '.join(ROWS)}")
    c = av_events("latentomni")
    c.optimizer.steps = FURTHER_STEPS if earlier(name) else STEPS
    c.update_from_flattened_dict(ROWS[name])
    _, whole, *c.shapes = c.shapes  # no exercises
    if c.data.reasoning != "latent":  # no blocks, and with text more to say
        shape = dict(whole)
        c.shapes = (shape | dict(targets=32), shape | dict(tokens=232, targets=48))
    more = max(c.latent.num_visual + c.latent.num_audio - 10, 0)
    c.shapes = tuple(
        dict(shape) | dict(tokens=shape["tokens"] + more * shape["blocks"]) for shape in c.shapes
    )
    return c
