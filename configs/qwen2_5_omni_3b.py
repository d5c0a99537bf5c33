"""The paper's recipe on Qwen2.5-Omni-3B, for fewer or smaller chips.

    latentomni train --config configs/qwen2_5_omni_3b.py --workdir runs/3b \\
      --set model.directory=Qwen2.5-Omni-3B --set data.cache=cache/train

Written for 16 chips; see qwen2_5_omni_7b.py for the rest.
"""

from configs.qwen2_5_omni_7b import get_config as config_7b


def get_config():
    c = config_7b()
    c.model.preset = "qwen2_5_omni_3b"
    c.accumulate = 6
    return c
