"""The whole training step compiled for TPUs: it fits, and holds no array of all logits."""

import dataclasses
import math
import re

import jax
import pytest

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.layout import BatchShape, LatentSpec, MediaSpec
from latentomni_jax.pod.certify import Memory
from latentomni_jax.pod.chips import GIB, Topology
from latentomni_jax.pod.programs import Training, trace_step
from latentomni_jax.train.config import load, resolve
from tests.topologies import FOUR_CHIPS
from tests.train.conftest import ROOT as REPOSITORY

pytestmark = pytest.mark.tpu_compile

CONFIG = str(REPOSITORY / "configs" / "qwen2_5_omni_7b.py")
# (topology, tokens, tensor axis, rows): a row per chip, but for v5e at 24k, which holds a row on
# two chips.
STEPS = [
    ("v5e:4x8", 8192, 1, 32),
    ("v6e:4x4", 8192, 1, 16),
    ("v5p:2x2x4", 8192, 1, 16),
    ("v6e:4x4", 24_576, 1, 16),
    ("v5p:2x2x4", 24_576, 1, 16),
    ("v5e:4x8", 24_576, 2, 16),
]


def traced(topology, shape, rows, *, tensor=1, config=None, flow="open"):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    run = resolve(load(CONFIG))
    spec = dataclasses.replace(run.latent(LatentSpec()), flow=flow)
    training = Training(
        options=run.objective(spec, MediaSpec(video_max_pixels=105_369), run.raw.model.frozen),
        optimizer=run.optimizer,
        shape=shape,
        rows=rows,
    )
    mesh = Topology.parse(topology).mesh(tensor=tensor)
    return trace_step(config or ThinkerConfig.qwen2_5_omni_7b(), mesh, training)


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "tokens", "tensor", "rows"), STEPS)
def test_the_7b_step_fits(topology, tokens, tensor, rows):
    shape = next(s for s in resolve(load(CONFIG)).shapes if s.tokens == tokens)
    memory = Memory.of(traced(topology, shape, rows, tensor=tensor).lowered.compile())
    sizes = {name: round(value / GIB, 2) for name, value in dataclasses.asdict(memory).items()}
    print(f"\n{topology} tensor={tensor} rows={rows} tokens={tokens}: {sizes} GiB")
    assert memory.peak <= 0.9 * Topology.parse(topology).chip.memory


@pytest.mark.parametrize("topology", FOUR_CHIPS)
def test_a_shallow_step_compiles_and_holds_no_array_of_all_logits(topology):
    """7B widths, two layers of each tower, so that it takes seconds and not minutes."""
    full = ThinkerConfig.qwen2_5_omni_7b()
    config = dataclasses.replace(
        full,
        text=dataclasses.replace(full.text, num_layers=2),
        vision=dataclasses.replace(full.vision, depth=2, full_attention_layers=(1,)),
        audio=dataclasses.replace(full.audio, num_layers=2),
    )
    shape = BatchShape(
        tokens=2048, targets=1024, blocks=2, frames=8, segment_frames=8,
        patches=640, chunks=4, segment_chunks=4, visual_anchors=640, audio_anchors=128,
    )  # fmt: skip
    tensor, rows = (2, 4) if topology == "v5e:2x2" else (1, 4)
    flow = "bottleneck" if topology == "v6e:2x2" else "open"
    step = traced(topology, shape, rows, tensor=tensor, config=config, flow=flow).lowered
    # The program as given to the compiler: global shapes, a dimension each. (The compiled text
    # cannot be had: jaxlib fails to read back TPU programs with asynchronous updates.)
    vocabulary, width, chunk = full.text.vocab_size, full.text.hidden_size, 256
    largest = 0
    for dims in re.findall(r"tensor<([\dx]+)x\w+>", step.as_text()):
        sizes = [int(d) for d in dims.split("x")]
        if vocabulary in sizes and width not in sizes:
            largest = max(largest, math.prod(sizes) // vocabulary)
    assert largest == rows * chunk
    # What a default compile adds takes four times as long; the 7B steps above have it.
    jax.config.update("jax_optimization_level", "O0")
    try:
        assert step.compile().memory_analysis().peak_memory_in_bytes > 0
    finally:
        jax.config.update("jax_optimization_level", "UNKNOWN")
