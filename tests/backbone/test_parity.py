"""Every block of the thinker against the PyTorch reference under the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from latentomni_jax.backbone.audio import AudioBlock, AudioEncoder, chunk_mel, num_audio_tokens
from latentomni_jax.backbone.positions import text_positions
from latentomni_jax.backbone.text import Decoder, DecoderLayer, tmrope
from latentomni_jax.backbone.vision import (
    PatchMerger,
    VisionBlock,
    VisionEncoder,
    _axial_rope,
    frame_layout,
)
from tests.reference import assert_close, make_ported, make_reference

F32 = (jnp.float32, jnp.float32)


def layer(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def frames_of(config, grid, padded):
    """Our inputs for all frames of a grid: layout, stacked `rows_columns`, `windows`, `restore`."""
    time, height, width = grid
    one = frame_layout(config, height, width, padded)
    tile = lambda x: np.repeat(x[None], time, axis=0)  # noqa: E731
    lengths = np.full(time, one.length, np.int32)
    return one, tile(one.rows_columns), tile(one.windows), tile(one.restore), lengths


def pad_frames(x, grid, padded):
    """[time*h*w, ...] -> [time, padded, ...]."""
    x = x.reshape(grid[0], grid[1] * grid[2], -1)
    return np.pad(x, ((0, 0), (0, padded - x.shape[1]), (0, 0)))


# Odd grids: windows cut at the right and the bottom, several windows, one window.
GRIDS = [(2, 18, 32), (1, 4, 6), (3, 10, 26)]


@pytest.mark.parametrize("grid", GRIDS)
def test_window_order_equals_reference(grid):
    config = make_ported()[0].vision
    one, coordinates, windows, restore, _ = frames_of(config, grid, 640)
    merged, cu_windows = get_vision_window_index(torch.tensor([grid]), 2, 112, 14)
    per_frame = grid[1] * grid[2]
    expected = (merged[:, None] * 4 + torch.arange(4)).numpy().reshape(grid[0], per_frame)
    for frame in range(grid[0]):
        np.testing.assert_array_equal(one.order + frame * per_frame, expected[frame])
    flat = windows[:, :per_frame] + np.arange(grid[0])[:, None] * 10_000
    starts = np.flatnonzero(np.diff(flat.ravel(), prepend=-1))
    np.testing.assert_array_equal(starts, np.unique(cu_windows.numpy())[:-1])
    positions = get_vision_position_ids(torch.tensor([grid]), 2).numpy().reshape(*expected.shape, 2)
    np.testing.assert_array_equal(coordinates[0, :per_frame], positions[0][one.order])
    np.testing.assert_array_equal(
        np.argsort(merged.numpy()).reshape(grid[0], -1)[0], restore[0, : per_frame // 4]
    )


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("index", [0, 1], ids=["window", "full"])
def test_vision_block(grid, index):
    config, params = make_ported()
    reference = make_reference().model.visual
    one, coordinates, windows, _, lengths = frames_of(config.vision, grid, 640)
    x = randn(grid[0] * one.length, 32)
    thw = torch.tensor([grid])
    merged, cu_windows = get_vision_window_index(thw, 2, 112, 14)
    cu_full = torch.tensor([one.length * frame for frame in range(grid[0] + 1)])
    order = (merged[:, None] * 4 + torch.arange(4)).ravel()
    rope = reference.rotary_pos_emb(torch.tensor(x), get_vision_position_ids(thw, 2)[order])
    expected = reference.blocks[index](
        torch.tensor(x),
        cu_seqlens=cu_full if index == 1 else torch.unique_consecutive(cu_windows),
        position_embeddings=rope,
    )
    block = VisionBlock(config.vision, *F32, "auto", None)
    ours, _ = jax.jit(block.apply)(
        {"params": layer(params["vision"]["layers"], index)},
        pad_frames(x, grid, 640),
        jnp.asarray(index == 1),
        _axial_rope(config.vision, coordinates),
        windows,
        lengths,
    )
    ours = np.asarray(ours)[:, : one.length].reshape(x.shape)
    assert_close(ours, expected)


def test_merger():
    config, params = make_ported()
    x = randn(96, 32)
    ours = PatchMerger(config.vision, *F32).apply({"params": params["vision"]["merger"]}, x[None])
    assert_close(ours[0], make_reference().model.visual.merger(torch.tensor(x)))


@pytest.mark.parametrize("grid", GRIDS)
def test_vision_encoder(grid):
    config, params = make_ported()
    one, coordinates, windows, restore, lengths = frames_of(config.vision, grid, 640)
    patches = randn(grid[0] * one.length, config.vision.patch_dim)
    expected = (
        make_reference()
        .model.visual(torch.tensor(patches), grid_thw=torch.tensor([grid]))
        .pooler_output
    )
    by_frame = patches.reshape(grid[0], one.length, -1)[:, one.order]
    ours = jax.jit(VisionEncoder(config.vision).apply)(
        {"params": params["vision"]},
        pad_frames(by_frame, grid, 640),
        coordinates,
        windows,
        restore,
        lengths,
    )
    ours = np.asarray(ours)[:, : one.length // 4].reshape(-1, 64)
    # Three layers deep; the block tolerance still holds end to end.
    assert_close(ours, expected)


def test_audio_block():
    config, params = make_ported()
    lengths = np.array([100, 37], np.int32)
    x = randn(2, 100, 32)
    flat = np.concatenate([x[0], x[1, :37]])
    expected = make_reference().model.audio_tower.layers[0](
        torch.tensor(flat), cu_seqlens=torch.tensor([0, 100, 137])
    )[0]
    ours, _ = jax.jit(AudioBlock(config.audio, *F32).apply)(
        {"params": layer(params["audio"]["layers"], 0)}, x, lengths
    )
    assert_close(np.concatenate([ours[0], ours[1, :37]]), expected)


@pytest.mark.parametrize("frames", [1000, 397, 201, 203, 200, 57, 3])
def test_audio_encoder(frames):
    """Whole chunks, ragged ones, a last chunk too short for a token, a single chunk."""
    config, params = make_ported()
    mel = randn(frames, 128, seed=frames)
    expected = (
        make_reference()
        .model.audio_tower(torch.tensor(mel.T), feature_lens=torch.tensor([frames]))
        .last_hidden_state
    )
    chunks, lengths = chunk_mel(config.audio, mel)
    ours = jax.jit(AudioEncoder(config.audio).apply)({"params": params["audio"]}, chunks, lengths)
    ours = np.asarray(ours).reshape(-1, 64)[: num_audio_tokens(frames)]
    assert_close(ours, expected)


@pytest.mark.parametrize("length", [5, 530])
def test_text_layer(length):
    config, params = make_ported()
    reference = make_reference().model.language_model
    positions = text_positions(0, length)[:, None].copy()
    positions[0] += np.arange(length) // 7  # three different axes
    positions[2] = np.arange(length)[::-1]
    x = randn(1, length, 64)
    cos_sin = reference.rotary_emb(torch.tensor(x), torch.tensor(positions))
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    expected = reference.layers[1](
        torch.tensor(x), attention_mask=mask, position_embeddings=cos_sin
    )
    ours, _ = jax.jit(DecoderLayer(config.text, *F32, "auto", None).apply)(
        {"params": layer(params["text"]["layers"], 1)},
        x,
        None,
        tmrope(config.text, jnp.asarray(positions)),
        0,
        None,
    )
    assert_close(ours, expected)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_scanned_and_unrolled_decoder_agree(scan_layers):
    from latentomni_jax.backbone.text import unstack

    config, params = make_ported()
    text = params["text"] if scan_layers else unstack(params["text"])
    ids = np.random.default_rng(0).integers(0, 512, (2, 40))
    positions = np.broadcast_to(np.arange(40), (3, 2, 40))
    decoder = Decoder(config.text, scan_layers=scan_layers)
    ours = jax.jit(decoder.apply)({"params": text}, ids, positions)
    expected = make_reference()(
        input_ids=torch.tensor(ids), attention_mask=torch.ones(2, 40, dtype=torch.long)
    ).logits
    assert_close(ours, expected, atol=2e-4, rtol=0)
