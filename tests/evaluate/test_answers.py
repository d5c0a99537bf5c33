"""Answers are compared, counted and tested against chance; a view hides what it should."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from data_pipeline.av_events.clips import make_clip
from data_pipeline.trajectories import Trajectory
from latentomni_jax.evaluate.answers import answer_all, by_type, score, see_through
from latentomni_jax.layout import AudioPart, InputError, VisionPart
from latentomni_jax.model import Generation


def question(number=0, type="sequence", **changes):
    return Trajectory(
        id=str(number), question="Which?", choices=("one", "two", "three", "four"),
        answer="\\boxed{B}", metadata={"type": type}, **changes,
    )  # fmt: skip


def generation(text, finished=True):
    return Generation(np.zeros(3, np.int32), text, np.zeros((0, 6, 8)), None, finished)


def test_right_wrong_and_unparsed_answers():
    texts = ["It is \\boxed{B}", "\\boxed{C}", "no idea", "B.", "\\boxed{two}"]
    scored = [score(question(), generation(text)) for text in texts]
    assert [one.is_right for one in scored] == [True, False, False, True, True]
    assert [one.given for one in scored] == ["B", "C", None, "B", "B"]
    assert [one.well_formed for one in scored] == [True, True, False, True, True]
    assert not score(question(), generation("\\boxed{B}", finished=False)).well_formed


def test_scores_by_type_with_the_chance_of_guessing():
    scored = [
        score(question(i, type), generation("\\boxed{B}" if i < right else "\\boxed{A}"))
        for type, right in (("sequence", 9), ("context", 4))
        for i in range(12)
    ]
    found = by_type(scored)
    assert list(found) == ["context", "sequence", "all"]
    assert found["sequence"].right == 9 and found["sequence"].accuracy == 0.75
    assert found["all"].right == 13 and found["all"].asked == 24
    expected = scipy.stats.binomtest(9, 12, 0.25, alternative="greater").pvalue
    assert found["sequence"].p_value == pytest.approx(expected)
    assert found["context"].p_value > 0.2


def test_views():
    mel = np.zeros((200, 128), np.float32)
    clip = VisionPart(np.zeros((32, 4), np.float32), (2, 4, 4), np.arange(2.0), mel)
    assert see_through(clip, "both") == [clip] and see_through(clip, "question") == []
    (video,), (audio,) = see_through(clip, "video"), see_through(clip, "audio")
    assert video.mel is None and video.patches is clip.patches
    assert isinstance(audio, AudioPart) and audio.mel is mel
    assert see_through(dataclasses.replace(clip, mel=None), "audio") == []
    assert see_through(AudioPart(mel), "video") == []


@pytest.mark.slow
def test_questions_are_answered_in_order_whatever_the_batch(tiny_model, tmp_path):
    make_clip(tmp_path / "a.mp4", 2.0, size=(112, 112))
    make_clip(tmp_path / "b.mp4", 3.0, size=(112, 112), sound=False)
    questions = [
        question(0, kind="video", path="a.mp4"),
        question(1, kind="video", path="b.mp4"),
        question(2),
    ]
    options = {"max_new_tokens": 6, "latents": "off"}
    alone = list(answer_all(tiny_model, questions, tmp_path, batch=1, **options))
    together = list(answer_all(tiny_model, questions, tmp_path, batch=2, **options))
    assert [one.question.id for one in together] == ["0", "1", "2"]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.generation.token_ids, other.generation.token_ids)
        assert one.expected == "B"
    with pytest.raises(InputError, match="view must be"):
        next(answer_all(tiny_model, questions, tmp_path, view="smell"))
    with pytest.raises(InputError, match=r"gone\.mp4"):
        next(answer_all(tiny_model, [question(kind="video", path="gone.mp4")], tmp_path))
