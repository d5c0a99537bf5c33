"""Ported directories: bits, specs, meshes, interruptions and the memory that porting takes."""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from latentomni_jax.backbone.config import AudioConfig, TextConfig, ThinkerConfig, VisionConfig
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.weights import checkpoint, safetensors, specs
from tests.processes import environment
from tests.reference import make_reference, reference_config
from tests.weights.test_safetensors import (
    assert_same_bits,
    random_params,
    run_on_eight_devices,
)

CONFIG = ThinkerConfig.tiny(
    vocab_size=64,
    audio_token_id=50,
    audio_start_id=51,
    audio_end_id=52,
    vision_start_id=53,
    vision_end_id=54,
    image_token_id=55,
    video_token_id=56,
)
LATENT = LatentSpec(num_visual=6, num_audio=2, pad_id=60, trigger_id=61, stop_id=62)
REFERENCE_IDS = {"pad_id": 510, "trigger_id": 511, "stop_id": 509}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture
def model_dir(params, tmp_path):
    checkpoint.save_model(params, CONFIG, LATENT, MediaSpec(), None, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hf_dir(model_dir, tmp_path):
    checkpoint.export(model_dir, tmp_path / "hf")
    return tmp_path / "hf"


def save_reference(directory, dtype, *, full):
    """What the reference saves, or the same under the published names beside other models."""
    model = Qwen2_5OmniThinkerForConditionalGeneration(reference_config())
    model.load_state_dict(make_reference().state_dict())
    model.to(dtype).save_pretrained(directory)
    (directory / specs.LATENT_SPEC).write_text(json.dumps(REFERENCE_IDS))
    saved = load_file(directory / "model.safetensors")
    if full:
        (directory / "model.safetensors").unlink()
        tensors = {"thinker." + name: tensor for name, tensor in saved.items()}
        tensors["talker.model.norm.weight"] = np.zeros(3, np.float32)
        tensors["token2wav.steps"] = np.zeros(3, np.int64)
        halves = [dict(list(tensors.items())[i::2]) for i in range(2)]
        weight_map = {}
        for i, half in enumerate(halves):
            file = f"model-0000{i + 1}-of-00002.safetensors"
            save_file(half, directory / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(half, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        config = json.loads((directory / "config.json").read_text())
        config = {"model_type": "qwen2_5_omni", "thinker_config": config}
        (directory / "config.json").write_text(json.dumps(config))
    return saved


def read_all(directory):
    tensors = {}
    for path in directory.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


@pytest.mark.parametrize("full", [True, False], ids=["published names", "as saved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_reference_ports_and_exports_bit_for_bit(tmp_path, dtype, full):
    saved = save_reference(tmp_path / "hf", dtype, full=full)
    counts = checkpoint.port(tmp_path / "hf", tmp_path / "ported")
    assert counts["tensors"] == len(saved)
    assert counts["skipped"] == (2 if full else 0)
    assert counts["bytes"] == sum(tensor.nbytes for tensor in saved.values())

    names = checkpoint.export(tmp_path / "ported", tmp_path / "back", thinker_only=not full)
    prefix = "thinker." if full else ""
    written = read_all(tmp_path / "back")
    assert set(names) == set(written) == {prefix + name for name in saved}
    for name, tensor in saved.items():
        ours = written[prefix + name]
        assert (ours.dtype, ours.shape) == (tensor.dtype, tensor.shape)
        assert ours.tobytes() == tensor.tobytes(), name

    model, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "back", dtype=dtype, output_loading_info=True
    )
    assert not any(report.values())
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")  # names as it read them
    assert set(again) == set(written)
    assert all(again[name].tobytes() == written[name].tobytes() for name in written)


def test_a_tied_model_has_no_output_matrix_of_its_own(tmp_path):
    text = TextConfig(**{**vars(CONFIG.text), "tie_embeddings": True})
    config = ThinkerConfig(**{**vars(CONFIG), "text": text})
    params = random_params(config)
    checkpoint.save_model(params, config, LATENT, MediaSpec(), None, tmp_path / "model")
    assert_same_bits(checkpoint.load_model(tmp_path / "model").params, params)
    names = checkpoint.export(tmp_path / "model", tmp_path / "hf")
    assert "thinker.lm_head.weight" not in names
    model, report = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report.values())
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_a_saved_model_loads_as_it_was(model_dir, params):
    model = checkpoint.load_model(model_dir)
    assert_same_bits(model.params, params)
    assert set(model.params) == {"text", "vision", "audio"}
    assert (model.config, model.latent, model.media) == (CONFIG, LATENT, MediaSpec())
    assert model.directory == model_dir
    assert specs.read_specs(model_dir) == (CONFIG, LATENT, MediaSpec())
    assert ThinkerConfig.from_hf(json.loads((model_dir / "config.json").read_text())) == CONFIG
    manifest = json.loads((model_dir / "latentomni.json").read_text())
    assert manifest["format"] == 1
    assert manifest["parameter_dtypes"] == {"bfloat16": 61}
    assert set(manifest["versions"]) == {"latentomni_jax", "jax", "flax", "orbax-checkpoint"}


def test_an_exported_model_loads_as_it_was(model_dir, tmp_path, params):
    media = MediaSpec(fps=1.0, max_frames=8, image_max_pixels=99, num_mel_bins=128)
    checkpoint.save_model(params, CONFIG, LATENT, media, None, model_dir, overwrite=True)
    checkpoint.export(model_dir, tmp_path / "hf")
    model = checkpoint.load_model(tmp_path / "hf")
    assert_same_bits(model.params, params)
    assert (model.config, model.latent, model.media) == (CONFIG, LATENT, media)


@pytest.mark.parametrize("kind", ["model_dir", "hf_dir"])
def test_dtype_casts_on_load(kind, request, params):
    model = checkpoint.load_model(request.getfixturevalue(kind), dtype=jnp.float32)
    assert_same_bits(model.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


def test_text_files_of_the_source_travel_and_others_do_not(hf_dir, tmp_path):
    for name in ("tokenizer.json", "chat_template.json", "notes.txt", "run.py", ".secret"):
        (hf_dir / name).write_text(f'{{"name": "{name}"}}')
    checkpoint.port(hf_dir, tmp_path / "ported")
    names = {path.name for path in (tmp_path / "ported").iterdir()}
    assert names == {
        "latentomni.json",
        "params",
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "chat_template.json",
    }
    checkpoint.export(tmp_path / "ported", tmp_path / "back")
    for name in ("tokenizer.json", "chat_template.json", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (hf_dir / name).read_bytes()


def test_hf_directory_without_a_latent_spec_takes_defaults_with_its_own_rope(tmp_path):
    config = ThinkerConfig.tiny()
    params = random_params(config)
    safetensors.save(params, config, tmp_path)
    hf = config.to_hf()
    hf["text_config"]["rope_theta"] = 5e5
    (tmp_path / "config.json").write_text(json.dumps(hf))
    assert checkpoint.load_model(tmp_path).latent == LatentSpec(ospe_base=5e5)


def test_published_preprocessor_is_read(assets, hf_dir):
    published = assets / "qwen2_5_omni" / "tokenizer" / "preprocessor_config.json"
    (hf_dir / "preprocessor_config.json").write_bytes(published.read_bytes())
    assert checkpoint.load_model(hf_dir).media == MediaSpec()


# What is refused.


def test_directory_of_neither_kind_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"no model directory; expected latentomni\.json and par"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(InputError, match=r"there is no such directory; expected"):
        checkpoint.load_model(tmp_path / "absent")
    with pytest.raises(InputError, match=r"gs://.*mount or download"):
        checkpoint.load_model("gs://bucket/model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pad_id": 64}, r"ids \{'pad_id': 64\} are outside the vocabulary of 64"),
        ({"stop_id": -1}, r"ids \{'stop_id': -1\} are outside"),
        ({"trigger_id": 55}, r"\{'trigger_id': 'image_token_id'\} are special tokens"),
    ],
)
def test_latent_ids_must_fit_the_vocabulary(params, tmp_path, changes, message):
    latent = LatentSpec(**{**vars(LATENT), **changes})
    with pytest.raises(InputError, match=message):
        checkpoint.save_model(params, CONFIG, latent, MediaSpec(), None, tmp_path / "model")


def test_media_must_fit_the_encoders(params, tmp_path):
    with pytest.raises(InputError, match="patch_size is 16 for the media, 14 in the thinker"):
        checkpoint.save_model(
            params, CONFIG, LATENT, MediaSpec(patch_size=16), None, tmp_path / "model"
        )


def edit_json(path, edit):
    fields = json.loads(path.read_text())
    edit(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format=2), r"format 2, this version reads 1"),
        (lambda m: m.pop("thinker"), r"latentomni\.json: thinker: absent"),
        (lambda m: m["thinker"]["text"].update(hidden_size=32), r"output width 64 != text width"),
        (lambda m: m["thinker"]["text"].update(num_layers=3), r"is \(2, .*expected \(3, "),
        (lambda m: m["thinker"]["text"].update(num_layers="2"), r"num_layers is '2', expected"),
        (lambda m: m["thinker"].update(colour=1), r"unknown fields \['colour'\]"),
        (lambda m: m["latent"].update(pad_id=64), r"outside the vocabulary"),
        (lambda m: m["media"].update(merge_size=3), r"merge_size is 3 for the media"),
    ],
)
def test_manifest_that_contradicts_the_weights_is_refused(model_dir, edit, message):
    edit_json(model_dir / "latentomni.json", edit)
    with pytest.raises(InputError, match=message):
        checkpoint.load_model(model_dir)


@pytest.mark.parametrize("text", ["", "[]", "not json"])
@pytest.mark.parametrize("name", ["config.json", "latent_spec.json", "preprocessor_config.json"])
def test_malformed_json_is_named(hf_dir, name, text):
    (hf_dir / name).write_text(text)
    with pytest.raises(InputError, match=name):
        checkpoint.load_model(hf_dir)


def test_damaged_parameters_are_named(model_dir):
    for path in (model_dir / "params").rglob("d/*"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"params: (cannot be read|no readable Orbax)"):
        checkpoint.load_model(model_dir)
    for path in (model_dir / "params").iterdir():
        if path.is_file():
            path.unlink()
    with pytest.raises(InputError, match="params: no readable Orbax checkpoint"):
        checkpoint.load_model(model_dir)


def test_parameters_of_another_model_are_not_saved(params, tmp_path):
    other = {**params, "vision": {}}
    with pytest.raises(InputError, match=r"params: \d+ parameters do not fit.*vision/.*absent"):
        checkpoint.save_model(other, CONFIG, LATENT, MediaSpec(), None, tmp_path / "model")


# Interruptions and overwriting.


def test_interrupted_port_leaves_nothing_that_looks_complete(hf_dir, tmp_path, monkeypatch):
    load = safetensors.load

    def cut_short(*args, **kwargs):
        for i, item in enumerate(load(*args, **kwargs)):
            if i == 30:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(safetensors, "load", cut_short)
    monkeypatch.setattr(checkpoint, "_GROUP_BYTES", 1)  # so that some parameters are written
    with pytest.raises(KeyboardInterrupt):
        checkpoint.port(hf_dir, tmp_path / "ported")
    assert not (tmp_path / "ported").exists()
    assert not (tmp_path / "ported.partial").exists()


def test_killed_port_is_told_apart_and_can_be_repeated(hf_dir, tmp_path, params):
    """SIGKILL half way: the leftover has another name, the next port starts afresh."""
    target = tmp_path / "ported"
    code = f"""
import os
from latentomni_jax.weights import checkpoint
checkpoint._copy_text_files = lambda *a: os.kill(os.getpid(), 9)
checkpoint.port({str(hf_dir)!r}, {str(target)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -9
    assert not target.exists()
    with pytest.raises(InputError, match=r"an interrupted run left ported\.partial: port again"):
        checkpoint.load_model(target)
    checkpoint.port(hf_dir, target)
    assert_same_bits(checkpoint.load_model(target).params, params)
    assert not (tmp_path / "ported.partial").exists()


def test_existing_targets_are_kept_unless_told_otherwise(hf_dir, tmp_path, params):
    target = tmp_path / "ported"
    target.mkdir()
    checkpoint.port(hf_dir, target)  # empty: fine
    with pytest.raises(InputError, match="is not empty; choose another directory or --overwrite"):
        checkpoint.port(hf_dir, target)
    checkpoint.port(hf_dir, target, overwrite=True)
    assert_same_bits(checkpoint.load_model(target).params, params)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "hf", "ported"}

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        checkpoint.port(hf_dir, tmp_path / "file")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="holds no model; will not overwrite"):
        checkpoint.port(hf_dir, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()
    with pytest.raises(InputError, match="is the source itself"):
        checkpoint.port(hf_dir, hf_dir, overwrite=True)


def test_failed_overwrite_keeps_the_old_model(hf_dir, tmp_path, params):
    target = tmp_path / "ported"
    checkpoint.port(hf_dir, target)
    (hf_dir / "tokenizer.json").write_bytes(b" " * (65 << 20))
    with pytest.raises(InputError, match=r"tokenizer\.json: .* is no text file"):
        checkpoint.port(hf_dir, target, overwrite=True)
    assert_same_bits(checkpoint.load_model(target).params, params)


# Meshes.


def test_ported_and_hf_directories_load_onto_a_mesh(params, tmp_path):
    model = ThinkerConfig.tiny(vocab_size=64)
    latent = LatentSpec(pad_id=60, trigger_id=61, stop_id=62)
    checkpoint.save_model(params, model, latent, MediaSpec(), None, tmp_path / "ported")
    checkpoint.export(tmp_path / "ported", tmp_path / "hf")
    run_on_eight_devices(
        """
        for directory in sys.argv[1:]:
            whole = checkpoint.load_model(directory).params
            sharded = checkpoint.load_model(directory, shardings=shardings).params
            for a, b, s in zip(*map(jax.tree.leaves, (whole, sharded, shardings)), strict=True):
                assert b.sharding == s and b.dtype == a.dtype == "bfloat16"
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            one = NamedSharding(mesh, P())
            same = checkpoint.load_model(directory, shardings=one).params
            assert all(leaf.sharding == one for leaf in jax.tree.leaves(same))
        """,
        tmp_path / "ported",
        tmp_path / "hf",
    )


def test_a_shard_of_a_ported_parameter_reads_its_chunks_only(tmp_path, monkeypatch):
    """TensorStore's own count of file bytes: half of every matrix costs half of the file."""
    import tensorstore

    monkeypatch.setattr(checkpoint, "_CHUNK_BYTES", 1 << 16)
    config = ThinkerConfig.tiny(vocab_size=8192)
    params = random_params(config)
    latent = LatentSpec(pad_id=60, trigger_id=61, stop_id=62)
    checkpoint.save_model(params, config, latent, MediaSpec(), None, tmp_path / "model")

    def bytes_read():
        name = "/tensorstore/kvstore/file/bytes_read"
        metrics = tensorstore.experimental_collect_matching_metrics(name)
        return sum(value["value"] for metric in metrics for value in metric["values"])

    before = bytes_read()
    stored = checkpoint.load_model(tmp_path / "model").params["text"]["embed_tokens"]
    whole = bytes_read() - before
    assert whole >= sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    driver = {
        "driver": "zarr3",
        "kvstore": {
            "driver": "ocdbt",
            "base": f"file://{tmp_path}/model/params/state/",
            "path": "text.embed_tokens/",
        },
    }
    before = bytes_read()
    opened = tensorstore.open(driver).result()
    half = opened[: stored.shape[0] // 2].read().result()
    np.testing.assert_array_equal(half, np.asarray(stored)[: stored.shape[0] // 2])
    assert bytes_read() - before < 0.6 * stored.nbytes


# Memory: 7B has to port on a machine of 24 GB.


def synthetic_config(num_layers):
    """The proportions of 7B in small: the largest parameter is a fifth of the model."""
    width = 1792
    return ThinkerConfig(
        text=TextConfig(
            vocab_size=2716 * num_layers,
            hidden_size=width,
            intermediate_size=9472,
            num_layers=num_layers,
            num_heads=14,
            num_kv_heads=2,
        ),
        vision=VisionConfig(
            depth=num_layers,
            hidden_size=640,
            intermediate_size=1710,
            num_heads=8,
            out_hidden_size=width,
            full_attention_layers=(1,),
        ),
        audio=AudioConfig(
            num_layers=num_layers,
            hidden_size=640,
            intermediate_size=2560,
            num_heads=10,
            out_hidden_size=width,
        ),
    )


def write_synthetic(directory: pathlib.Path, num_layers: int) -> int:
    """A checkpoint of random bf16 in shards of 800 MB; its bytes."""
    config = synthetic_config(num_layers)
    rng = np.random.default_rng(0)
    directory.mkdir()
    weight_map, shard, total = {}, {}, 0

    def flush():
        file = f"model-{len(set(weight_map.values()))}.safetensors"
        save_file(shard, directory / file)
        weight_map.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, shape in safetensors._expected(config).items():
        bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16) & 0xBFFF  # all finite
        shard["thinker." + name] = bits.view(ml_dtypes.bfloat16)
        total += bits.nbytes
        if sum(tensor.nbytes for tensor in shard.values()) > 800 << 20:
            flush()
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    ids = {"pad_id": 1, "trigger_id": 2, "stop_id": 3}
    (directory / specs.LATENT_SPEC).write_text(json.dumps(ids))
    return total


def peak_bytes(code: str) -> int:
    """Peak resident memory of a Python process of its own that runs `code`."""
    code += "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    done = subprocess.run(
        [sys.executable, "-c", "from latentomni_jax.weights import checkpoint\n" + code],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize(
    "num_layers", [2, pytest.param(28, marks=pytest.mark.slow)], ids=["0.3 GB", "4 GB"]
)
def test_porting_takes_less_memory_than_the_model(tmp_path, num_layers):
    total = write_synthetic(tmp_path / "hf", num_layers)
    # Beside the model there is JAX itself: nothing at 4 GB, more than the model at 0.3 GB.
    baseline = 0
    if num_layers == 2:
        baseline = peak_bytes("import jax; jax.numpy.zeros(8).block_until_ready()")
    source, target = str(tmp_path / "hf"), str(tmp_path / "ported")
    peak = peak_bytes(f"checkpoint.port({source!r}, {target!r})") - baseline
    assert peak <= (1.3 if num_layers == 2 else 0.9) * total, f"{peak / total:.2f} x the model"
    if num_layers > 2:
        peak = peak_bytes(f"checkpoint.load_model({target!r})")
        assert peak <= 1.3 * total, f"load: {peak / total:.2f} x the model"
