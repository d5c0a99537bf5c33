"""From mp4 files to a model that has learned them: media, cache, records, loop, decoding."""

import json
import time

import pytest

from data_pipeline.trajectories import PAIR, read_jsonl
from latentomni_jax.model import LatentOmni
from latentomni_jax.train.config import load
from latentomni_jax.train.loop import Trainer
from tests.train.conftest import ROOT


@pytest.mark.slow
def test_sixteen_clips_are_learned_and_told_back(tmp_path):
    started = time.monotonic()
    result = Trainer(load(str(ROOT / "configs" / "tiny.py")), tmp_path).train()
    print(f"\n{result.step} steps, {time.monotonic() - started:.0f} s in all")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    print({name: (first[name], last[name]) for name in first if "/" in name})
    assert last["loss/total"] < 0.1 and last["loss/text"] < 0.02
    assert last["loss/latent"] < first["loss/latent"] / 3
    assert last["loss/sync"] < first["loss/sync"] / 30
    assert last["latent/retrieval"] > first["latent/retrieval"]
    assert list((tmp_path / "tensorboard").iterdir())

    model = LatentOmni.from_pretrained(result.model)
    trajectories, problems = read_jsonl(tmp_path / "clips" / "trajectories.jsonl")
    assert len(trajectories) == 16 and not problems
    right = well_formed = 0
    for trajectory in trajectories:
        media = {trajectory.kind: tmp_path / "clips" / trajectory.path} if trajectory.kind else {}
        answer = model.answer(
            trajectory.question, choices=trajectory.choices, max_new_tokens=96, **media
        )
        pieces = [piece.strip() for piece in trajectory.reasoning.split(PAIR)]
        wanted = "".join(pieces) + "\n" + trajectory.answer
        right += answer.text.replace(" ", "").strip() == wanted.replace(" ", "").strip()
        well_formed += (
            answer.generation.finished
            and answer.latent_blocks == len(trajectory.segments)
            and answer.latent_steps == 10 * answer.latent_blocks
            and answer.answer is not None
        )
    print(f"well-formed {well_formed}, word for word {right} of 16")
    assert well_formed == 16 and right >= 14
