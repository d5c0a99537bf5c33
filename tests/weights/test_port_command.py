"""`latentomni port` and `latentomni export` as a user runs them."""

import argparse
import json

import pytest

from latentomni_jax.commands import export, port
from latentomni_jax.layout import InputError, LatentSpec, MediaSpec
from latentomni_jax.weights import checkpoint
from tests.weights.test_checkpoint import CONFIG, LATENT
from tests.weights.test_safetensors import assert_same_bits, random_params


def run(command, *argv):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(arg) for arg in argv]))


@pytest.mark.parametrize(("size", "used"), [("7b", 1346), ("3b", 1442)])
def test_check_covers_the_published_checkpoints(assets, capsys, size, used):
    folder = assets / "qwen2_5_omni" / size
    code = run(port, "--check", folder / "tensors.json", "--config", folder / "config.json")
    assert code == 0
    assert capsys.readouterr().out == (
        f"{used} of {used} thinker tensors used once, 61 parameters; "
        "1102 talker/token2wav tensors skipped by name\n"
    )


NORM = "thinker.model.norm.weight"
LAYER = "thinker.model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NORM), r"1 missing: model\.norm\.weight"),
        (lambda t: t.update({"thinker.ghost": t[NORM]}), "1 extra: ghost"),
        (lambda t: t.update({"speller.ghost": t[NORM]}), r"extra .*: speller\.ghost"),
        (lambda t: t.update({"model.norm.weight": t.pop(NORM)}), r"extra .*: model\.norm\.weight"),
        (lambda t: t[NORM].update(shape=[3585]), r"norm\.weight is \[3585\], expected \[3584\]"),
        (lambda t: t[LAYER].update(shape=[3584, 18944]), r"layers\.3\.mlp\.up_proj\.weight is "),
        (lambda t: t[NORM].update(dtype="F64"), r"norm\.weight is F64"),
        (lambda t: t[LAYER].update(dtype="F32"), r"text/layers/mlp/up_proj/kernel .*BF16.*F32"),
        (lambda t: t[NORM].pop("dtype"), r"norm\.weight is not like"),
        (lambda t: t.update({NORM: 3}), r"norm\.weight is not like"),
    ],
)
def test_check_names_any_difference(assets, tmp_path, edit, message):
    folder = assets / "qwen2_5_omni" / "7b"
    tensors = json.loads((folder / "tensors.json").read_text())
    edit(tensors)
    (tmp_path / "tensors.json").write_text(json.dumps(tensors))
    with pytest.raises(InputError, match=message) as caught:
        run(port, "--check", tmp_path / "tensors.json", "--config", folder / "config.json")
    assert "\n" not in str(caught.value)
    assert "tensors.json" in str(caught.value)


def test_check_refuses_the_config_of_the_other_size(assets):
    folder = assets / "qwen2_5_omni"
    with pytest.raises(InputError, match=r"96 extra: .* of the wrong shape: "):
        run(port, "--check", folder / "3b/tensors.json", "--config", folder / "7b/config.json")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--from", "a"],
        ["--to", "b"],
        ["--check", "t"],
        ["--check", "t", "--config", "c", "--from", "a"],
    ],
)
def test_incomplete_arguments_say_what_is_needed(argv):
    with pytest.raises(InputError, match=r"port (--check )?needs --"):
        run(port, *argv)


def test_port_and_export_by_command(tmp_path, capsys):
    params = random_params(CONFIG, seed=1)
    first, hf, ported, thinker = (tmp_path / name for name in ("first", "hf", "ported", "thinker"))
    checkpoint.save_model(params, CONFIG, LATENT, MediaSpec(), None, first)
    assert run(export, "--from", first, "--to", hf) == 0
    assert run(port, "--from", hf, "--to", ported) == 0
    out, err = capsys.readouterr()
    assert "61 parameters" in out
    assert "100%" in err  # progress goes to stderr
    assert run(export, "--from", ported, "--to", thinker, "--thinker-only") == 0
    index = json.loads((thinker / "model.safetensors.index.json").read_text())
    assert "model.norm.weight" in index["weight_map"]
    for directory in (hf, ported, thinker):
        model = checkpoint.load_model(directory)
        assert_same_bits(model.params, params)
        assert (model.config, model.latent) == (CONFIG, LATENT)

    with pytest.raises(InputError, match="is not empty"):
        run(export, "--from", ported, "--to", thinker)
    assert run(export, "--from", ported, "--to", thinker, "--overwrite") == 0
    with pytest.raises(InputError, match="is not empty"):
        run(port, "--from", hf, "--to", ported)

    (tmp_path / "spec.json").write_text('{"pad_id": 1, "trigger_id": 2, "stop_id": 3}')
    spec = tmp_path / "spec.json"
    assert run(port, "--from", hf, "--to", ported, "--overwrite", "--latent-spec", spec) == 0
    expected = LatentSpec(pad_id=1, trigger_id=2, stop_id=3)
    assert checkpoint.load_model(ported).latent == expected


@pytest.mark.parametrize("command", [port, export])
def test_help_teaches_by_example(command, capsys):
    parser = argparse.ArgumentParser(prog="latentomni")
    command.add_arguments(parser)
    text = parser.format_help()
    assert "examples:\n  " in text
    assert "latentomni " in text
