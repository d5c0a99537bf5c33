"""The run: it learns, stops, continues exactly, survives damage, and says what it left out."""

import json
import logging
import shutil

import numpy as np
import pytest

from latentomni_jax.layout import InputError
from latentomni_jax.train.loop import Trainer


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    return [{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines]


class Killed(BaseException):
    """The process is gone: nothing after it runs, nothing is saved."""


def kill_at(trainer, step, monkeypatch):
    """Lets a run die right after a step, before anything else is written."""
    real = trainer.checkpoints.save

    def save(state, taken, loss, *, force=False):
        real(state, taken, loss, force=force)
        if taken == step:
            trainer.checkpoints.wait()
            raise Killed

    monkeypatch.setattr(trainer.checkpoints, "save", save)


@pytest.mark.parametrize(
    "deaths",
    [
        pytest.param((5,), id="between checkpoints"),
        pytest.param((1, 5), id="and before the first", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_continues_bit_for_bit(small_config, tmp_path, monkeypatch, caplog, deaths):
    whole = Trainer(small_config(), tmp_path / "whole").train()
    assert whole.step == 6 and (whole.model / "latentomni.json").is_file()

    workdir = tmp_path / "killed"
    with caplog.at_level(logging.WARNING):
        for death in deaths:
            trainer = Trainer(small_config(), workdir)
            kill_at(trainer, death, monkeypatch)
            with pytest.raises(Killed):
                trainer.train()
        last = Trainer(small_config(), workdir).train()
    assert "continuing from step 4" in caplog.text
    assert last.step == 6
    assert losses(workdir) == losses(tmp_path / "whole")

    # Latest checkpoint cut short: the one before it is taken, and said so; the result is the same.
    found = sorted((workdir / "checkpoints").iterdir(), key=lambda p: p.name)
    assert [p.name for p in found if p.name.isdigit()][-2:] == ["4", "6"]
    for file in (workdir / "checkpoints" / "6").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = Trainer(small_config(), workdir).train()
    assert "6 cannot be read" in caplog.text and "continuing from step 4" in caplog.text
    assert again.step == 6
    assert losses(workdir) == losses(tmp_path / "whole")
    another_run_is_refused_by_name(small_config, tmp_path / "whole")


def another_run_is_refused_by_name(small_config, workdir):
    for setting, named in (
        ("optimizer.learning_rate=0.1", "learning_rate"),
        ("latent.num_visual=4", "num_visual"),
        ("seed=1", "seed"),
    ):
        with pytest.raises(InputError, match=named):
            Trainer(small_config(setting), workdir).train()


def test_what_cannot_be_used_is_counted_and_named(small_config, tiny_cache, tmp_path):
    tight = small_config("optimizer.steps=1")
    shape = dict(tight.shapes[0]) | {"tokens": 300}
    tight.shapes = (shape,)
    trainer = Trainer(tight, tmp_path / "skip")
    assert trainer.feed.counts()["over-long"] == 4
    assert "tokens 308 > 300" in trainer.feed.summary()
    assert trainer.train().step == 1
    tight.data.on_misfit = "fail"
    with pytest.raises(InputError, match="over-long"):
        Trainer(tight, tmp_path / "fail")


def test_a_damaged_record_becomes_an_empty_row(small_config, tiny_cache, tmp_path, caplog):
    cache = tmp_path / "cache"
    shutil.copytree(tiny_cache, cache)
    config = small_config("optimizer.steps=2")
    config.data.cache = str(cache)
    trainer = Trainer(config, tmp_path / "run")
    real = trainer.records.read

    def read(i, **kwargs):
        if i == 3:
            raise InputError("record 3 is damaged")
        return real(i, **kwargs)

    object.__setattr__(trainer.records, "read", read)
    with caplog.at_level(logging.WARNING):
        assert trainer.train().step == 2
    assert trainer.feed.counts()["unreadable"] == 1 and "record 3 is damaged" in caplog.text


def test_gradients_that_are_not_finite_skip_the_step(small_config, tmp_path):
    """An absurd loss weight overflows: parameters stay, the step is counted, the run goes on."""
    trainer = Trainer(small_config("optimizer.steps=2", "objective.weight_latent=1e38"), tmp_path)
    assert trainer.train().step == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [1, 2]
    same = [lines[0]["loss/text"], lines[1]["loss/text"]]
    assert np.isfinite(same).all()


@pytest.mark.parametrize(
    "settings",
    [
        (
            "objective.mode=mixed",
            "accumulate=2",
            "model.dtype=bfloat16",
            "model.remat=full",
            "model.frozen=()",
        ),
        pytest.param(("objective.mode=mixed", "accumulate=2"), marks=pytest.mark.slow),
        pytest.param(
            ("objective.mode=jacobi", "latent.flow=bottleneck", "latent.ospe_apply=both"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("objective.mode=rollout", "objective.sync_negatives=global"), marks=pytest.mark.slow
        ),
        pytest.param(("data.reasoning=text",), marks=pytest.mark.slow),
        pytest.param(("data.reasoning=none",), marks=pytest.mark.slow),
        pytest.param(("latent.num_audio=0",), marks=pytest.mark.slow),
        pytest.param(
            ("latent.num_visual=0", "objective.anchor_source=prompt"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("objective.sync_features=encoder", "objective.latent_reduction=mean"),
            marks=pytest.mark.slow,
        ),
        pytest.param(("model.lora_rank=4",), marks=pytest.mark.slow),  # test_notebooks.py has it
        pytest.param(("optimizer.name=muon",), marks=pytest.mark.slow),  # the demo's test has it
        pytest.param(
            ("model.dtype=bfloat16", "model.remat=full", "model.frozen=()"), marks=pytest.mark.slow
        ),
    ],
    ids=",".join,
)
def test_every_choice_trains(small_config, tmp_path, settings):
    """Two steps of each option: finite losses, and a model that loads."""
    from latentomni_jax.weights.checkpoint import load_model

    result = Trainer(small_config("optimizer.steps=2", *settings), tmp_path).train()
    values = [value for line in losses(tmp_path) for value in line.values()]
    assert np.isfinite(values).all()
    assert load_model(result.model).latent.num_latents == 10 - 2 * (
        "latent.num_audio=0" in settings
    ) - 8 * ("latent.num_visual=0" in settings)
