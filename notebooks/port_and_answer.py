# %% [markdown]
# # Qwen2.5-Omni on one chip: port, answer, measure
#
# The 3B answers on a chip of 16 GB (v5e-1, Colab's), the 7B on one of 32 GB (v6e-1). Before
# anything is downloaded, the real program is compiled for the chip and its memory is read; then the
# checkpoint is ported, asked about a clip, and timed.
#
# Run it from a checkout with `pip install -e '.[tpu,data]' huggingface_hub` (in Colab, clone the
# repository first). It needs disk for the checkpoint twice: 11 GB each for the 3B, 22 GB for
# the 7B, of which the thinker alone is ported. **It has been run on CPU with a small stand-in; on a
# TPU not yet.**

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = next(p for p in (Path.cwd(), *Path.cwd().parents) if (p / "launch").is_dir())
os.chdir(ROOT)  # a notebook starts in its own folder

SIZE, TOPOLOGY = "3b", "v5e:1x1"  # or "7b", "v6e:1x1"
PROMPT = 4096  # positions: about a minute of video with its sound
CHECKPOINT = os.environ.get("LATENTOMNI_CHECKPOINT")  # a downloaded directory, if there is one
OUT = Path(os.environ.get("LATENTOMNI_OUT", "runs/port-and-answer"))

# %% [markdown]
# ## Does it fit?
#
# Asked of the compiler, in a process of its own, without touching the chip. The weights of towers
# that a program does not use are counted too: they stay on the chip.

# %%
config = f"configs/qwen2_5_omni_{SIZE}.py"
asked = ["--topology", TOPOLOGY, "--prompt", str(PROMPT), "--json"]
asked += ["--set", f"model.directory={CHECKPOINT}"] if CHECKPOINT else []
for program in ("prefill", "decode"):
    done = subprocess.run(
        [sys.executable, "-m", "latentomni_jax", "aot", "--config", config, *asked,
         "--program", program],
        env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr[-1000:]
    found = json.loads(done.stdout)
    print(f"{program}: {found['total'] / 2**30:.2f} GiB of {found['hbm'] / 2**30:.0f}")
    assert found["fits"], f"{program} does not fit {TOPOLOGY}"

# %% [markdown]
# ## Port
#
# Every tensor's name and shape is checked; talker and vocoder are left behind.

# %%
if CHECKPOINT is None:
    from huggingface_hub import snapshot_download

    CHECKPOINT = snapshot_download(f"Qwen/Qwen2.5-Omni-{SIZE.upper()}")

from latentomni_jax.weights.checkpoint import port

target = OUT / f"qwen-{SIZE}"
if not target.is_dir():
    print(port(CHECKPOINT, target, progress=True))

# %% [markdown]
# ## Answer
#
# A clip of your own, or one that is drawn here: shapes that move, each with a tone.

# %%
import jax

from data_pipeline.av_events.tiny import make_tiny_set
from latentomni_jax.model import LatentOmni

CLIP = None  # "my-clip.mp4"
QUESTION = "What is seen, and what is heard, from the beginning to the end?"
clip = Path(CLIP) if CLIP else OUT / "drawn" / "clips" / "0000.mp4"
if not clip.is_file():
    make_tiny_set(OUT / "drawn", n=1)
model = LatentOmni.from_pretrained(target)
TOKENS = int(os.environ.get("LATENTOMNI_TOKENS", 64))
answer = model.answer(QUESTION, video=clip, max_new_tokens=TOKENS)
print(answer.text)
memory = jax.local_devices()[0].memory_stats()
if memory:  # CPUs tell nothing
    print(f"{memory['peak_bytes_in_use'] / 2**30:.2f} GiB at most on {answer.device}")

# %% [markdown]
# ## How fast?
#
# The first answer compiled; the second one runs. A position cannot take less than reading the
# decoder's weights and the cache once: the certificate's `memory_s`.

# %%
again = model.answer(QUESTION, video=clip, max_new_tokens=TOKENS)
seconds = again.timings["decode_s"] / max(len(again.token_ids), 1)
print(json.dumps(again.timings, indent=2))
print(f"{1e3 * seconds:.1f} ms a position; at least {1e3 * found['memory_s']:.1f} on {TOPOLOGY}")
