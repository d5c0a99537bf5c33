"""The whole training step compiled for TPUs: it fits, and holds no array of all logits."""

import contextlib
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.layout import BatchShape, LatentSpec, MediaSpec
from latentomni_jax.pod.certify import Memory, certify
from latentomni_jax.pod.chips import GIB, Topology
from latentomni_jax.pod.programs import Traced, Training, trace_step
from latentomni_jax.train.config import load, resolve
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


def traced(topology, shape, rows, *, data=1, tensor=1, config=None, flow="open"):
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    run = resolve(load(CONFIG))
    spec = dataclasses.replace(run.latent(LatentSpec()), flow=flow)
    training = Training(
        run=run,
        options=run.objective(spec, MediaSpec(video_max_pixels=105_369)),
        shape=shape,
        rows=rows,
    )
    mesh = Topology.parse(topology).mesh(data=data, tensor=tensor)
    return trace_step(config or ThinkerConfig.qwen2_5_omni_7b(), mesh, training)


@pytest.mark.slow
@pytest.mark.parametrize(("topology", "tokens", "tensor", "rows"), STEPS)
def test_the_7b_step_fits(topology, tokens, tensor, rows):
    shape = next(s for s in resolve(load(CONFIG)).shapes if s.tokens == tokens)
    memory = Memory.of(traced(topology, shape, rows, tensor=tensor).lowered.compile())
    sizes = {name: round(value / GIB, 2) for name, value in dataclasses.asdict(memory).items()}
    print(f"\n{topology} tensor={tensor} rows={rows} tokens={tokens}: {sizes} GiB")
    assert memory.peak <= 0.9 * Topology.parse(topology).chip.memory


def shallow_step(topology, *, flow="open", frames=8, **axes):
    """7B widths, two layers of each tower, so that it takes a minute or less."""
    full = ThinkerConfig.qwen2_5_omni_7b()
    config = dataclasses.replace(
        full,
        text=dataclasses.replace(full.text, num_layers=2),
        vision=dataclasses.replace(full.vision, depth=2, full_attention_layers=(1,)),
        audio=dataclasses.replace(full.audio, num_layers=2),
    )
    shape = BatchShape(
        tokens=2048, targets=1024, blocks=2, frames=frames, segment_frames=frames,
        patches=640, chunks=4, segment_chunks=4, visual_anchors=640, audio_anchors=128,
    )  # fmt: skip
    return config, traced(topology, shape, 4, config=config, flow=flow, **axes)


def bytes_of(config, tower, width=2):
    return width * sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(config)[tower]))


MEGABYTE = 10**6


def assert_policy(collectives, mesh, weights, trained):
    """The policy (docs/pods.md): gradients alone cross `data`; over `fsdp` a pass gathers weights
    once and gradients are added up once; activations stay where their rows are.

    Args:
      weights: bytes of those that are gathered, as often as passes need them.
      trained: bytes of all gradients.
    """
    over_data = [c for c in collectives if "data" in c.axes and c.size > MEGABYTE]
    assert {c.kind for c in over_data} <= {"all-reduce", "reduce-scatter"}, over_data
    assert all("transpose" in c.where or not c.where for c in over_data), over_data

    def received(*kinds, axes=("fsdp",)):
        return sum(c.count * c.received for c in collectives
                   if c.kind in kinds and c.axes == axes)  # fmt: skip

    share = 1 - 1 / mesh.shape["fsdp"]
    gathered = received("all-gather", "collective-permute")
    assert gathered <= 1.05 * share * weights, ("gathered", gathered, share * weights)
    reduced = received("reduce-scatter") + received("all-reduce") / 2
    assert reduced <= 1.05 * share * trained, ("reduced", reduced, share * trained)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (None, None),
        ("rows cross data", "all-gather"),
        ("weights are gathered twice", "gathered"),
        ("activations are added up", "reduced"),
    ],
)
def test_a_program_that_breaks_the_policy_is_found(fault, said):
    """Of one layer and its gradient."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu (pip install libtpu)")
    where, width = Topology.parse("v5e:2x2"), 512
    mesh = where.mesh(data=2)
    rows, split = (NamedSharding(mesh, jax.P(axes)) for axes in (("data", "fsdp"), "fsdp"))

    def loss(w, x):
        y = put(jnp.tanh(x @ w), rows)
        if fault == "rows cross data":
            y = put(y, split)
        if fault == "weights are gathered twice":
            y = put(y @ put(jnp.sin(w), split), rows)
        if fault == "activations are added up":
            pairs = y.reshape(2, -1, width)
            y = put(jnp.einsum("bnd,bne->bde", pairs, pairs), NamedSharding(mesh, jax.P("data")))
        return jnp.sum(y.astype(jnp.float32) ** 2)

    put = jax.lax.with_sharding_constraint
    w = jax.ShapeDtypeStruct((width, width), jnp.bfloat16, sharding=split)
    x = jax.ShapeDtypeStruct((4 * width, width), jnp.bfloat16, sharding=rows)
    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss), out_shardings=split).lower(w, x)
    found = certify("train", Traced(lowered, 0.0, 0.0, "a test"), mesh, where)
    of_w = 2 * width * width
    with pytest.raises(AssertionError, match=said) if fault else contextlib.nullcontext():
        assert_policy(found.collectives, mesh, weights=of_w, trained=of_w)


@pytest.mark.parametrize(
    ("topology", "axes"),
    [
        pytest.param("v5e:2x2", {"data": 2, "frames": 0}, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", {"data": 2}, marks=pytest.mark.slow),
        pytest.param("v5e:2x2", {"tensor": 2}, marks=pytest.mark.slow),
        pytest.param("v6e:2x2", {"flow": "bottleneck"}, marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", {}, marks=pytest.mark.slow),
    ],
)
def test_a_shallow_step_sends_what_the_policy_says(topology, axes):
    """And holds no array of all logits."""
    config, step = shallow_step(topology, **axes)
    where = Topology.parse(topology)
    mesh = where.mesh(**{name: n for name, n in axes.items() if name in ("data", "tensor")})
    # The program as given to the compiler, in which the head sees the rows of one chip.
    vocabulary, width, chunk = config.text.vocab_size, config.text.hidden_size, 256
    rows, largest = 4 // (mesh.shape["data"] * mesh.shape["fsdp"]), 0
    for dims in re.findall(r"tensor<([\dx]+)x\w+>", step.lowered.as_text()):
        sizes = [int(d) for d in dims.split("x")]
        if vocabulary in sizes and width not in sizes:
            largest = max(largest, math.prod(sizes) // vocabulary)
    assert largest == rows * chunk

    found = certify("train", step, mesh, where, quick=True)
    assert found.memory.peak > 0
    tensor = mesh.shape["tensor"]
    text, audio, vision = (bytes_of(config, tower) for tower in ("text", "audio", "vision"))
    table = 2 * vocabulary * width  # its rows are looked up where they lie
    # Forward and backward; segments go through the audio encoder once more, both kinds of frames
    # through the frozen vision encoder in one call.
    weights = 2 * (text - table) / tensor + 3 * audio + vision * bool(axes.get("frames", 8))
    assert_policy(found.collectives, mesh, weights, trained=text / tensor + audio)
