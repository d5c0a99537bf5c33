"""Probes change latents and nothing else; measures of states are what they say."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipeline.av_events.clips import make_clip
from data_pipeline.trajectories import PAIR, Trajectory, read_jsonl
from latentomni_jax.evaluate.answers import score
from latentomni_jax.evaluate.probes import EDITS, Probe, donors, run_probes, split
from latentomni_jax.evaluate.states import _explained, measure_states
from latentomni_jax.layout import InputError, LatentSpec
from latentomni_jax.model import Generation


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    root = tmp_path_factory.mktemp("questions")
    for number, seconds in enumerate((2.0, 3.0)):
        make_clip(root / f"{number}.mp4", seconds=seconds, size=(112, 112))
    lines = [
        {
            "id": str(i), "video": f"{i % 2}.mp4", "question": "Which shape?",
            "choices": ["disc", "square"], "reasoning": f"I look.{PAIR}It is there.",
            "segments": [[i % 2, 1.0 + i % 2]], "answer": "\\boxed{A}",
        }
        for i in range(4)
    ]  # fmt: skip
    (root / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_jsonl(root / "test.jsonl")[0], root


def answer_with(states, path=None, type="context"):
    question = Trajectory(
        id="1", question="?", choices=("x", "y"), answer="\\boxed{A}", path=path,
        kind="video" if path else None, metadata={"type": type},
    )  # fmt: skip
    return score(question, Generation(np.zeros(2), "\\boxed{A}", states, None, True))


def test_edits():
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(n, 6, 8)).astype(np.float32) for n in (1, 2, 0, 1)]
    own = [answer_with(one) for one in states]
    for name, edit in EDITS.items():
        changed = edit(own, np.random.default_rng(1))
        if name == "other":  # all about one clip, or none: half of the set away
            assert [one.tolist() for one in changed] == [states[i].tolist() for i in (2, 3, 0, 1)]
            continue
        assert [one.shape for one in changed] == [one.shape for one in states]
        norms = [np.linalg.norm(np.concatenate(x), axis=-1) for x in (changed, states)]
        if name == "zeros":
            assert not norms[0].any()
        if name == "noise":
            np.testing.assert_allclose(*norms, rtol=1e-5)
            cosine = (changed[1] * states[1]).sum(-1) / norms[1][1:3].clip(1e-9) ** 2
            assert np.abs(cosine).mean() < 0.7
        if name == "permuted":
            for one, own in zip(changed, states, strict=True):
                assert (np.sort(one, axis=1) == np.sort(own, axis=1)).all()
                assert not len(own) or (one != own).any()


def test_another_clip_lends_its_states_for_the_same_question():
    one, two = np.zeros((1, 6, 8)), np.zeros((2, 6, 8))
    asked = [
        ("0.mp4", "context", one), ("0.mp4", "sequence", two), ("0.mp4", "context", one),
        ("1.mp4", "sequence", two), ("1.mp4", "context", one), ("1.mp4", "reasoning", two),
    ]  # fmt: skip
    own = [answer_with(states, path, type) for path, type, states in asked]
    # The same type and as many blocks; for "reasoning", that no other clip has, as many blocks.
    assert donors(own) == [4, 3, 4, 1, 2, 1]
    own[4] = answer_with(two, "1.mp4", "context")  # nobody else with one block: any other clip
    assert donors(own)[1] == 3 and own[donors(own)[0]].question.path == "1.mp4"


def test_slots_are_split_as_the_model_splits_its_own():
    assert split(LatentSpec(), 20) == {"num_visual": 16, "num_audio": 4}
    assert split(LatentSpec(num_visual=8, num_audio=2), 64) == {"num_visual": 51, "num_audio": 13}
    assert split(LatentSpec(num_visual=0, num_audio=4), 7) == {"num_visual": 0, "num_audio": 7}


def test_a_probe_is_compared_question_by_question():
    def answered(text):
        question = Trajectory(id="1", question="?", choices=("x", "y"), answer="\\boxed{A}")
        return score(question, Generation(np.zeros(2), text, np.zeros((2, 1, 1)), None, True))

    right, wrong = answered("\\boxed{A}"), answered("\\boxed{B}")
    own = [right] * 8 + [wrong] * 2
    probe = Probe.of("zeros", [wrong] * 8 + [right] + [wrong], own)
    assert (probe.right, probe.gained, probe.lost, probe.blocks) == (1, 1, 8, 2.0)
    assert probe.p_value == pytest.approx(2 * 10 / 2**9)  # at most 1 of 9 either way
    assert Probe.of("own", own, own).p_value == 1.0


def test_all_probes_run_and_the_first_is_the_model_itself(tiny_model, questions):
    model = tiny_model.with_latent(num_visual=4, num_audio=2)
    asked, root = questions
    options = {"latents": "force", "max_blocks": 1, "max_new_tokens": 6}
    found = dict(
        (probe.name, answers)
        for probe, answers in run_probes(
            model, asked, root, slot_counts=(0, 3, 6), batch=2, **options
        )
    )
    assert list(found) == ["own", *EDITS, "markers", "off", "K = 3"]
    own = found["own"]
    again = model.generate(
        [model.prompt("Which shape?", video=root / "0.mp4", choices=["disc", "square"])], **options
    )[0]
    np.testing.assert_array_equal(own[0].generation.token_ids, again.token_ids)
    assert not found["zeros"][0].generation.latents.any()
    np.testing.assert_allclose(
        found["other"][0].generation.latents, own[3].generation.latents, rtol=1e-6
    )
    assert [len(a.generation.latents) for a in found["off"]] == [0] * 4
    assert found["markers"][0].generation.latents.shape[1] == 0 or not len(
        found["markers"][0].generation.latents
    )
    assert found["K = 3"][0].generation.latents.shape[1] == 3
    with pytest.raises(InputError, match="at least one question"):
        next(run_probes(model, [], root))


def test_what_states_explain_of_their_anchors():
    rng = np.random.default_rng(0)
    anchor = rng.normal(size=(50, 3, 4)) + [[[5.0]], [[0.0]]] * 25  # two kinds of clips
    mask = np.ones((50, 3), bool)
    mask[::5, 2] = False
    weight = mask[..., None]
    mean = (anchor * weight).sum(0) / weight.sum(0)
    half = (anchor + mean) / 2
    for z, expected in ((anchor, 1.0), (half, 0.75), (np.broadcast_to(mean, anchor.shape), 0.0)):
        wild = np.where(weight, z, 1e3)  # where a slot has no anchor, nothing is asked of it
        assert _explained(wild, anchor, mask) == pytest.approx(expected, abs=1e-5)
    assert _explained(2 * mean - anchor, anchor, mask) == pytest.approx(-3, abs=1e-4)


def test_measures_of_states(tiny_model, questions):
    model = tiny_model.with_latent(num_visual=4, num_audio=2)
    asked, root = questions
    _, own = next(
        run_probes(model, asked, root, batch=4, latents="force", max_blocks=1, max_new_tokens=6)
    )
    found = measure_states(model, own, root, attended=1)
    assert set(found) == {
        "cosine", "rank", "explained", "retrieval", "segment retrieval", "matched", "unmatched",
        "matched, rotated", "unmatched, rotated", "to clip", "through latents",
    }  # fmt: skip
    assert 1 <= found["rank"] <= 6 and -1 <= found["cosine"] <= 1
    assert found["explained"] < 1
    assert 0 <= found["retrieval"] <= 1 and 0 <= found["segment retrieval"] <= 1
    assert 0 < found["to clip"] < 1 and 0 < found["through latents"] < 1
    # All states alike.
    same = [
        dataclasses.replace(a, generation=dataclasses.replace(
            a.generation, latents=np.ones_like(a.generation.latents)
        ))
        for a in own
    ]  # fmt: skip
    flat = measure_states(model, same, root, attended=0)
    assert flat["cosine"] == pytest.approx(1) and flat["rank"] == pytest.approx(1)
    assert flat["matched"] == pytest.approx(0, abs=1e-5)
    # Equal states, but the clock has turned those of other moments away from each other.
    assert flat["unmatched, rotated"] > flat["matched, rotated"] + 0.01
    assert flat["unmatched"] == pytest.approx(0, abs=1e-5)
    assert "to clip" not in flat
    assert measure_states(model, [], root) == {}
