"""Reading safetensors directories: bits, byte ranges, and what damaged ones are refused with."""

import json
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentomni_jax.backbone.config import ThinkerConfig
from latentomni_jax.backbone.thinker import abstract_params
from latentomni_jax.layout import InputError
from latentomni_jax.weights import safetensors
from tests.processes import environment

CONFIG = ThinkerConfig.tiny(vocab_size=64)
INDEX = "model.safetensors.index.json"


def random_params(config, dtype=jnp.bfloat16, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32), dtype),
        abstract_params(config),
    )


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture
def directory(params, tmp_path):
    """A good checkpoint of several shards, to be damaged."""
    safetensors.save(params, CONFIG, tmp_path, max_shard_bytes=100_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def load(directory, **kwargs):
    return safetensors.unflatten(dict(safetensors.load(directory, CONFIG, **kwargs)))


def first_shard(directory):
    return min(directory.glob("*.safetensors"))


def edit_shard(directory, edit):
    path = first_shard(directory)
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def edit_index(directory, edit):
    path = directory / INDEX
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def assert_same_bits(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))


def test_save_and_load_keep_every_bit(directory, params):
    assert_same_bits(load(directory), params)


def test_shards_are_found_without_an_index(directory, params):
    (directory / INDEX).unlink()
    assert_same_bits(load(directory), params)


def test_dtype_casts_on_the_way_in(directory, params):
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert_same_bits(load(directory, dtype=jnp.float32), expected)


def test_read_takes_slices(directory):
    reader = safetensors.CheckpointReader(directory)
    whole = np.asarray(reader.read("model.embed_tokens.weight"))
    part = np.asarray(reader.read("model.embed_tokens.weight", (slice(3, 9), slice(2, 60, 2))))
    np.testing.assert_array_equal(part, whole[3:9, 2:60:2])


def test_donated_parameters_are_safe_though_they_share_the_buffer_read_into(directory, params):
    loaded = load(directory)
    before = np.array(loaded["text"]["embed_tokens"])
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(loaded["text"]["embed_tokens"])
    np.testing.assert_array_equal(np.asarray(doubled), before * 2)


# Damage. Every message names the culprit.


def drop(tensors):
    del tensors["thinker.audio_tower.conv1.weight"]


def add(tensors):
    tensors["thinker.model.spare.weight"] = np.zeros(3, np.float32)


def misshape(tensors):
    tensors["thinker.audio_tower.conv1.weight"] = np.zeros((2, 3), jnp.bfloat16)


def retype(tensors):
    tensors["thinker.audio_tower.conv1.weight"] = np.zeros((32, 128, 3), np.int64)


def mix(tensors):
    name = next(name for name in tensors if "layers.0" in name)
    tensors[name] = tensors[name].astype(np.float32)


def foreign(tensors):
    tensors["speller.weight"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop, r"1 missing: audio_tower\.conv1\.weight"),
        (add, r"1 extra: model\.spare\.weight"),
        (misshape, r"wrong shape: audio_tower\.conv1\.weight is \[2, 3\], expected \[32, 128, 3\]"),
        (retype, r"dtype other than BF16/F32/F16: audio_tower\.conv1\.weight is I64"),
        (mix, r"of several dtypes: \w+/layers/.* \['BF16', 'F32'\]"),
        (foreign, r"extra tensors outside .*: speller\.weight"),
    ],
)
def test_wrong_tensors_are_named(params, tmp_path, edit, message):
    safetensors.save(params, CONFIG, tmp_path)
    (tmp_path / INDEX).unlink()  # the damage is in the file, whatever an index would say
    edit_shard(tmp_path, edit)
    with pytest.raises(InputError, match=message):
        load(tmp_path)


def test_missing_shard_is_named(directory):
    path = first_shard(directory)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: the index names this shard"):
        load(directory)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_shard_is_named(directory, kept):
    path = first_shard(directory)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=f"{path.name}: not a readable safetensors file"):
        load(directory)


@pytest.mark.parametrize("start", [b"\xff" * 16, b"\x08\0\0\0\0\0\0\0not json", b"<html>"])
def test_corrupt_shard_is_named(directory, start):
    path = first_shard(directory)
    path.write_bytes(start + path.read_bytes()[len(start) :])
    with pytest.raises(InputError, match=f"{path.name}: not a readable safetensors file"):
        load(directory)


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "..",
        "passwd",
        "..\\model.safetensors",
        7,
        None,
    ],
)
def test_index_may_not_reach_elsewhere(directory, file):
    edit_index(directory, lambda listed: listed.update({"thinker.lm_head.weight": file}))
    with pytest.raises(InputError, match="plain file names"):
        load(directory)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": [[1]]}'])
def test_malformed_index_is_named(directory, text):
    (directory / INDEX).write_text(text)
    with pytest.raises(InputError, match=f"{INDEX}: not a safetensors index"):
        load(directory)


def test_tensor_of_the_index_that_no_shard_holds_is_named(directory):
    file = first_shard(directory).name
    edit_index(directory, lambda listed: listed.update({"thinker.ghost.weight": file}))
    with pytest.raises(InputError, match=r"in the index but in no file: thinker\.ghost\.weight"):
        load(directory)


def test_tensor_in_two_shards_is_named(directory):
    (directory / INDEX).unlink()
    (directory / "copy.safetensors").write_bytes(first_shard(directory).read_bytes())
    with pytest.raises(InputError, match=r"tensor thinker\..* is also in"):
        load(directory)


def test_directory_without_weights_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no \*\.safetensors file here"):
        load(tmp_path)


def test_interrupted_save_leaves_no_shard(params, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        safetensors.save(params, CONFIG, tmp_path)
    assert not list(tmp_path.glob("*.safetensors*"))


# Meshes, in a process of their own: the number of devices is fixed when JAX starts.

MESH = """
    import sys
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from latentomni_jax.backbone.config import ThinkerConfig
    from latentomni_jax.backbone.thinker import abstract_params
    from latentomni_jax.weights import checkpoint, safetensors

    config = ThinkerConfig.tiny(vocab_size=64)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))

    def sharding(leaf):
        axes = [None] * len(leaf.shape)
        if len(axes) > 1:  # the last two dimensions, where they divide
            axes[-1] = "y" if leaf.shape[-1] % 2 == 0 else None
            axes[-2] = "x" if leaf.shape[-2] % 4 == 0 else None
        return NamedSharding(mesh, P(*axes))

    shardings = jax.tree.map(sharding, abstract_params(config))
"""


def run_on_eight_devices(code, *args):
    """Runs `code` after MESH; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MESH) + textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        env=environment(8),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mesh_gets_the_same_values_and_reads_each_byte_once(directory):
    out = run_on_eight_devices(
        """
        requested = 0
        read = safetensors.CheckpointReader.read

        def counted(self, name, index=()):
            global requested
            part = read(self, name, index)
            if "patch_embed" not in name:  # 3 MB in the real model, read whole by every shard
                requested += part.nbytes
            return part

        whole = dict(safetensors.load(sys.argv[1], config))
        safetensors.CheckpointReader.read = counted
        sharded = dict(safetensors.load(sys.argv[1], config, shardings))
        for path, leaf in whole.items():
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(sharded[path]))
            assert sharded[path].sharding == safetensors.flatten(shardings)[path]
        print(requested)
        print(sum(leaf.nbytes for path, leaf in whole.items() if "patch_embed" not in path))
        """,
        directory,
    )
    requested, total = map(int, out.split())
    assert total <= requested <= 1.05 * total  # vectors may be read once per device


def test_one_shard_asks_for_its_part_only(directory, monkeypatch):
    """What one process of a pod reads: its own quarter of every matrix."""
    requested = []
    read = safetensors.CheckpointReader.read

    def counted(self, name, index=()):
        part = read(self, name, index)
        if "patch_embed" not in name:
            requested.append(part.nbytes)
        return part

    def half_of_each_of_two(shape, sharding, callback):
        index = [slice(0, n) for n in shape]
        index[-2:] = [slice(0, n // 2) for n in shape[-2:]]
        return callback(tuple(index))

    monkeypatch.setattr(safetensors.CheckpointReader, "read", counted)
    monkeypatch.setattr(safetensors.jax, "make_array_from_callback", half_of_each_of_two)
    parts = dict(safetensors.load(directory, CONFIG))
    parts = {path: part for path, part in parts.items() if "patch_embed" not in path}
    assert sum(requested) == sum(part.nbytes for part in parts.values())
    whole = safetensors.flatten(abstract_params(CONFIG))
    assert sum(requested) < 0.26 * sum(whole[path].size * 2 for path in parts)
