"""A 60-second clip of 18k tokens is answered within 12 GB of host memory."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.media.test_video import write_video
from tests.processes import environment

# Real widths where memory is decided (the 3B's text layers, the towers' own), one layer each, f32.
SCRIPT = textwrap.dedent(
    """
    import sys
    import jax, numpy as np
    from latentomni_jax.backbone.config import AudioConfig, TextConfig, ThinkerConfig, VisionConfig
    from latentomni_jax.backbone.thinker import init_params
    from latentomni_jax.layout import LatentSpec, MediaSpec, TextPart
    from latentomni_jax.media.processor import clip_part
    from latentomni_jax.media.video import read_clip
    from latentomni_jax.model import LatentOmni

    config = ThinkerConfig(
        text=TextConfig(vocab_size=151_936, hidden_size=2048, intermediate_size=11_008,
                        num_layers=1, num_heads=16, num_kv_heads=2),
        vision=VisionConfig(depth=1, out_hidden_size=2048, full_attention_layers=(0,)),
        audio=AudioConfig(num_layers=1, out_hidden_size=2048),
    )
    model = LatentOmni(init_params(config, jax.random.key(0)), config, LatentSpec())
    clip = clip_part(read_clip(sys.argv[1], MediaSpec()), MediaSpec())
    text = TextPart(np.arange(20, dtype=np.int32))
    out = model.generate([[text, clip, text]], latents="force", max_blocks=1, max_new_tokens=4)[0]
    tokens = int(np.prod(clip.grid)) // 4 + len(clip.mel) // 4
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(f"RESULT {tokens} {len(out.token_ids)} {peak}")
    """
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM from /proc")
def test_sixty_seconds_fit_in_12_gigabytes(tmp_path):
    sound = np.sin(np.arange(60 * 16_000) * 0.2).astype(np.float32)
    path = write_video(tmp_path / "minute.mp4", num_frames=120, fps=2, audio=sound, size=(360, 640))
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    tokens, generated, peak = map(int, ran.stdout.split("RESULT")[1].split())
    assert tokens > 17_900 and generated == 4 + 41
    print(f"peak {peak / 1e9:.2f} GB, {tokens} tokens")
    assert peak < 12e9, f"{peak / 1e9:.1f} GB"
