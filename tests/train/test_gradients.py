"""Losses and gradients of the objective against PyTorch's autograd, one loss at a time."""

from __future__ import annotations

import copy
import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from latentomni_jax.backbone.thinker import Thinker
from latentomni_jax.latent import losses
from latentomni_jax.latent.encode import encode_media
from latentomni_jax.latent.objective import count, objective
from latentomni_jax.latent.options import Objective
from latentomni_jax.latent.passes import produced
from latentomni_jax.layout import BatchShape, Role
from latentomni_jax.weights import safetensors
from tests.examples import MEDIA, SPEC, ExampleMaker, make_batch, mixed_examples
from tests.reference import make_ported, make_reference
from tests.torch_objective import states, torch_objective

LOSSES = ("total", "text", "latent", "sync")
# One shape for all tests, so that the gradient program compiles once per objective. Seven frames
# go through the vision tower four at a time, one of them added.
SHAPE = BatchShape(
    tokens=264, targets=40, blocks=4, frames=7, segment_frames=8, patches=128,
    chunks=4, segment_chunks=5, visual_anchors=64, audio_anchors=60,
)  # fmt: skip
ROWS = 6
EVERYTHING = Objective(spec=SPEC, media=MEDIA, frozen=(), target_chunk=16, frames_per_call=4)


@functools.lru_cache
def program(options: Objective):
    """(params, batch, loss weights f32[4]) -> losses f32[4], gradient of their weighted sum."""
    thinker = Thinker(make_ported()[0])

    def run(params, batch, weights):
        def values(params):
            metrics = objective(
                thinker, options, params, batch, count(options.spec, batch), jax.random.key(0)
            )[1]
            return jnp.stack([metrics[f"loss/{name}"] for name in LOSSES])

        out, vjp = jax.vjp(values, params)
        return out, vjp(weights)[0]

    return jax.jit(run)


def ours(examples, loss="total", *, options=EVERYTHING, log_scale=2.5, source="segment"):
    """Losses by name, and the gradient of one of them by parameter path."""
    config, params = make_ported()
    examples = [*examples, *[None] * (ROWS - len(examples))]
    batch = make_batch(config, examples, options.spec, source=source, shape=SHAPE)
    params = params | {"sync": {"log_scale": jnp.float32(log_scale)}}
    weights = jnp.float32([name == loss for name in LOSSES])
    values, grads = program(options)(params, batch, weights)
    flat = {path: np.asarray(leaf) for path, leaf in safetensors.flatten(grads).items()}
    return dict(zip(LOSSES, map(float, values), strict=True)), flat


def theirs(examples, loss="total", *, log_scale=2.5, **options):
    """The same from the oracle; gradients travel through the weights' own name table."""
    reference = make_reference()
    scale = torch.tensor(log_scale, requires_grad=True)
    values, _ = torch_objective(
        reference, scale, make_ported()[0], SPEC, MEDIA, examples, **options
    )
    parameters = [*reference.parameters(), scale]
    *grads, of_scale = torch.autograd.grad(values[loss], parameters, allow_unused=True)
    flat = as_parameters(reference, grads)
    flat["sync/log_scale"] = np.zeros(()) if of_scale is None else of_scale.numpy()
    return {name: value.item() for name, value in values.items()}, flat


def as_parameters(reference, grads) -> dict[str, np.ndarray]:
    """One tensor for each of the reference's parameters -> the same by our path and layout."""
    holder = copy.deepcopy(reference)
    with torch.no_grad():
        for parameter, grad in zip(holder.parameters(), grads, strict=True):
            parameter.copy_(torch.zeros_like(parameter) if grad is None else grad)
    with tempfile.TemporaryDirectory() as directory:
        holder.save_pretrained(directory)
        loaded = safetensors.load(directory, make_ported()[0])
        return {path: np.array(leaf) for path, leaf in loaded}


def assert_gradients_equal(mine, expected):
    assert set(mine) == set(expected)
    for path, grad in expected.items():
        largest = np.abs(grad).max()
        np.testing.assert_allclose(mine[path], grad, rtol=0, atol=1e-4 * largest, err_msg=path)


def touched(grads, tower):
    """Whether any gradient of a tower is not exactly zero."""
    return any(grad.any() for path, grad in grads.items() if path.startswith(f"{tower}/"))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_equal_autograd(loss):
    examples = mixed_examples()
    values, grads = ours(examples, loss)
    expected_values, expected = theirs(examples, loss)
    for name in LOSSES:
        np.testing.assert_allclose(values[name], expected_values[name], rtol=1e-5, err_msg=name)
    assert all(value > 0 for value in expected_values.values())
    assert_gradients_equal(grads, expected)
    # Nothing is compared with nothing: every layer of the decoder learns from every loss.
    kernel = expected["text/layers/mlp/gate_proj/kernel"]
    assert all(np.abs(layer).max() > 0 for layer in kernel)
    if loss in ("total", "text"):
        zeros = [path for path, grad in expected.items() if not grad.any()]
        assert zeros == (["audio/bos_eos"] + ["sync/log_scale"] * (loss == "text"))


@pytest.mark.parametrize("kind", ["anchors_from_the_prompt", "clamped_temperature"])
def test_variants_equal_autograd(kind):
    make = ExampleMaker(4)
    examples = [
        make.example("video_with_sound", ["sound_and_video", "video"]),
        make.example("video", ["short"]),
    ]
    variant = {"source": "prompt"} if kind == "anchors_from_the_prompt" else {"log_scale": 6.0}
    values, grads = ours(examples, **variant)
    expected_values, expected = theirs(examples, **variant)
    for name in LOSSES:
        np.testing.assert_allclose(values[name], expected_values[name], rtol=1e-5, err_msg=name)
    assert_gradients_equal(grads, expected)
    if kind == "clamped_temperature":
        assert grads["sync/log_scale"] == 0


def test_sync_alone_reaches_the_decoder():
    _, grads = ours(mixed_examples(), "sync")
    for path in ("q_proj/kernel", "mlp/down_proj/kernel", "input_norm/scale"):
        for layer in grads[f"text/layers/{path}"]:
            assert np.abs(layer).max() > 1e-6
    assert not grads["text/lm_head/kernel"].any()
    assert abs(grads["sync/log_scale"]) > 1e-6


@pytest.mark.parametrize(
    "loss", [x if x == "total" else pytest.param(x, marks=pytest.mark.slow) for x in LOSSES]
)
def test_anchors_carry_no_gradient(loss):
    """Media that only segments have leave the towers exactly untouched, whatever the loss."""
    make = ExampleMaker(2)
    # A prompt with pictures, sound in the segment only; then neither in the prompt.
    _, grads = ours([make.example("video", ["sound_and_video", "sound"])], loss)
    assert not touched(grads, "audio") and touched(grads, "vision")
    _, grads = ours([make.example("text", ["sound_and_video", "sound_and_video"])], loss)
    assert not touched(grads, "audio") and not touched(grads, "vision")
    _, grads = ours([make.example("audio", ["sound_and_video"])], loss)
    assert touched(grads, "audio") and not touched(grads, "vision")


@pytest.mark.parametrize(
    "frozen", [pytest.param((), marks=pytest.mark.slow), ("vision",), ("vision", "audio")]
)
def test_frozen_towers_get_no_gradient(frozen):
    """Through the feature table, the only way from the loss to a tower."""
    config, params = make_ported()
    batch = make_batch(config, [ExampleMaker(1).example("video_with_sound")])
    towers = {name: params[name] for name in ("vision", "audio")}

    def loss(towers):
        return jnp.sum(encode_media(Thinker(config), MEDIA, params | towers, batch, 4, frozen) ** 2)

    grads = safetensors.flatten(jax.jit(jax.grad(loss))(towers))
    for tower in towers:
        assert touched(grads, tower) == (tower not in frozen)


@pytest.mark.parametrize("frames_per_call", [3, pytest.param(64, marks=pytest.mark.slow)])
def test_what_is_frozen_is_encoded_alike(frames_per_call):
    """Prompt and segments in one call, however many frames it may take."""
    config, params = make_ported()
    rows = [ExampleMaker(seed).example("video_with_sound") for seed in (1, 2)]
    batch = make_batch(config, rows)
    assert batch.prompt.patches.shape[1] and batch.segments.patches.shape[1]
    encode = functools.partial(encode_media, Thinker(config), MEDIA, params, batch)
    apart = jax.jit(lambda: encode(1))()
    together = jax.jit(lambda: encode(frames_per_call, ("vision", "audio")))()
    np.testing.assert_allclose(together, apart, atol=1e-5, rtol=1e-4)
    assert not np.allclose(apart[0], apart[1], atol=1e-2)


def released_latent_loss(row):
    """Pairs as the released code makes them: the pads of all blocks of a row in one list.

    States are those before each pad of that list, so the first anchor of a later block is predicted
    from the last slot of the block before it, and no trigger but the first is ever trained.
    """
    pads = [b.trigger + 1 + slot for b in row.blocks for slot in range(len(b.anchors))]
    before = [pads[0] - 1, *pads[:-1]]
    anchors = [anchor for block in row.blocks for anchor in block.anchors]
    return torch.stack([
        ((row.hidden[place] - anchor) ** 2).sum()
        for place, anchor in zip(before, anchors, strict=True)
    ]).mean()  # fmt: skip


def test_every_block_is_paired_with_its_own_anchors():
    examples = [ExampleMaker(3).example("video_with_sound", ["sound_and_video"] * 3)]
    values, _ = ours(examples)
    expected, rows = torch_objective(
        make_reference(), torch.tensor(2.5), make_ported()[0], SPEC, MEDIA, examples
    )
    released = released_latent_loss(rows[0]).item()
    assert abs(released - expected["latent"].item()) > 1e-3 * released
    np.testing.assert_allclose(values["latent"], expected["latent"].item(), rtol=1e-5)
    # With one block the two pairings are the same thing.
    examples = [ExampleMaker(3).example("video_with_sound", ["sound_and_video"])]
    expected, rows = torch_objective(
        make_reference(), torch.tensor(2.5), make_ported()[0], SPEC, MEDIA, examples
    )
    np.testing.assert_allclose(released_latent_loss(rows[0]).item(), expected["latent"].item())


def test_every_trigger_is_trained_and_no_last_slot_is():
    """Where L_latent pulls: at h(u) of every block, at every slot but its last."""
    config = make_ported()[0]
    examples = [ExampleMaker(5).example("text", ["sound_and_video"] * 3)]
    batch = make_batch(config, examples, shape=SHAPE)
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, SHAPE.tokens, 64)), jnp.float32)
    anchors = jnp.asarray(rng.normal(size=(1, SHAPE.blocks, SPEC.num_latents, 64)), jnp.float32)
    mask = jnp.broadcast_to((batch.triggers >= 0)[..., None], anchors.shape[:-1])

    def loss(hidden):
        return losses.latent_loss(produced(SPEC, batch, hidden), anchors, mask)

    pulled = np.asarray(jax.grad(loss)(hidden)).any(axis=-1)[0]
    is_latent = np.isin(batch.roles[0], (Role.LATENT_VISUAL, Role.LATENT_AUDIO))
    last = np.roll(batch.roles[0] == Role.STOP, -1)
    expected = (batch.roles[0] == Role.TRIGGER) | (is_latent & ~last)
    np.testing.assert_array_equal(pulled, expected)
    assert (batch.roles[0] == Role.TRIGGER).sum() == 3 == last.sum()
    # And the oracle agrees on which states those are.
    _, rows = torch_objective(make_reference(), torch.tensor(2.5), config, SPEC, MEDIA, examples)
    row = rows[0]
    grad = torch.autograd.grad(
        sum(((z - 1) ** 2).sum() for block in row.blocks for z in states(row.hidden, block)),
        row.hidden,
    )[0]
    np.testing.assert_array_equal(
        np.flatnonzero(expected), np.flatnonzero(grad.numpy().any(axis=-1))
    )


def test_empty_rows_and_batch_mates_change_no_sum():
    """Every loss is a mean over the whole batch, so that of rows alone add up to it."""
    examples = mixed_examples()
    config = make_ported()[0]
    together, _ = ours(examples)
    totals, counts = np.zeros(3), np.zeros(3)
    for example in examples:
        alone, _ = ours([example])
        number = np.array(count(SPEC, make_batch(config, [example], shape=SHAPE))[:3])
        totals += number * [alone[name] for name in ("text", "latent", "sync")]
        counts += number
    np.testing.assert_allclose(
        totals / counts, [together[name] for name in ("text", "latent", "sync")], rtol=1e-5
    )
