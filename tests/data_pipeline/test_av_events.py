"""AV-Events: true, balanced, told by neither modality alone, and the same from the same seed."""

import collections
import dataclasses
import filecmp
import itertools
import json
import re

import numpy as np
import pytest

from configs.av_events import STAGES
from configs.av_events import get_config as av_events
from configs.av_events_study import get_config as av_events_study
from data_pipeline.av_events import build, captions, questions, render, samples, words
from data_pipeline.av_events.check import _WORDS, require_both, require_no_leak, single_modality
from data_pipeline.av_events.world import COLOURS, DIALS, Dial, Timeline, draw_timeline
from data_pipeline.instruct.captions import read
from data_pipeline.instruct.sources import write_av_events_captions
from data_pipeline.trajectories import PAIR, read_jsonl
from latentomni_jax.__main__ import main
from latentomni_jax.layout import InputError, MediaSpec
from latentomni_jax.media.text import load_tokenizer
from latentomni_jax.media.video import read_clip

HERTZ = {"low": 160, "middle": 500, "high": 1600}


def draw(dial="easy", kind="plain", seed=0, **kwargs):
    return draw_timeline(np.random.default_rng(seed), DIALS[dial], kind, **kwargs)


def true_options(timeline, question):
    """The options that are true of a timeline, found without the makers of questions."""
    seen = {m.thing.name: i for i, m in enumerate(timeline.moments) if m.thing and not m.is_covered}
    heard = {}
    for i, moment in enumerate(timeline.moments):
        if moment.sound:
            heard.setdefault(moment.sound.name, []).append(i)
    text, moments = question.text, timeline.moments
    named_sounds = [name for name in heard if name in text]
    if question.type == "inference":
        (covered,) = (m for m in moments if m.is_covered)
        (at,) = (i for i in heard[covered.sound.name] if not moments[i].is_covered)
        return [o for o in question.options if seen.get(o) == at]
    if question.type in ("alignment", "sequence"):
        step = question.type == "sequence"
        named_things = [name for name in seen if name in text]
        if named_things:
            at = seen[named_things[0]] + step
            return [o for o in question.options if at in heard.get(o, [])]
        at = heard[named_sounds[0]][0] + step
        return [o for o in question.options if seen.get(o) == at]
    things = {name: moments[at[0]].thing for name, at in heard.items() if len(at) == 1}
    if question.type == "context":
        thing = things[named_sounds[0]]
        return [o for o in question.options if o in (thing.place, thing.motion)]
    if question.type == "comparative":
        one, other = (things[name] for name in named_sounds)
        shape, motion = (
            "same" if getattr(one, name) == getattr(other, name) else "other"
            for name in ("shape", "motion")
        )
        return [f"{shape} shape, {motion} motion"]
    thing = things[named_sounds[0]]
    return [
        o for o in question.options
        if things.get(o) and things[o].shape == thing.shape and things[o] != thing
    ]  # fmt: skip


@pytest.mark.parametrize("dial", DIALS)
def test_exactly_one_option_is_true_and_it_is_the_answer(dial):
    asked = set()
    for seed, kind in itertools.product(range(60), ("plain", "covered")):
        timeline = draw(dial, kind, seed, novel=seed % 3 == 0)
        for question in questions.ask(np.random.default_rng(seed), timeline):
            asked.add(question.type)
            assert len(set(question.options)) == 4
            assert true_options(timeline, question) == [question.options[question.answer]], question
    assert asked == set(questions.TYPES)


@pytest.mark.parametrize(
    "dial", [pytest.param(d, marks=[pytest.mark.slow] if d != "easy" else []) for d in DIALS]
)
def test_one_modality_guesses_at_chance(dial):
    """1,800 questions are guessed: the deviation of the mean is 1 %; of a test split 1.2 %."""
    fresh, test = build.measure(samples.World.of(3000 if dial == "easy" else 100, 0, DIALS[dial]))
    require_both(fresh, 1800)
    for view in ("question", "video", "audio"):
        assert set(fresh[view]) == set(test[view]) == {*questions.TYPES, "all"}
        assert abs(fresh[view]["all"] - 0.25) < 0.04
        assert abs(test[view]["all"] - 0.25) < 0.05 or dial != "easy"


@pytest.mark.parametrize(
    "leak",
    [
        "the last sound",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("the left place", "the letter")),
    ],
)
def test_a_world_that_one_modality_gives_away_is_refused(leak):
    """Each of these must be found by the view that can see it."""
    rng, items = np.random.default_rng(0), []
    while len(items) < 3200:
        timeline = draw_timeline(rng, DIALS["easy"], "plain")
        for question in questions.ask(rng, timeline):
            right = question.options[question.answer]
            last = timeline.moments[-1].sound.name
            keep = {
                "the last sound": question.type != "reasoning" or right == last,
                "the left place": right not in ("right", "top", "bottom"),
                "the letter": question.answer != 3 or rng.random() < 0.1,
            }[leak]
            if keep:
                items.append((timeline, question))
    accuracies = single_modality(items[:1600], items[1600:])
    with pytest.raises(InputError, match="does not need both modalities"):
        require_both(accuracies, 1600)
    if leak == "the last sound":
        assert accuracies["audio"]["reasoning"] > 0.9
        assert accuracies["video"]["reasoning"] < 0.5


def test_reasoning_that_tells_before_it_cites_is_refused():
    (question,) = questions.ask(np.random.default_rng(0), draw(kind="covered"))
    require_no_leak(question)
    told = question.options[question.answer]
    leaking = dataclasses.replace(question, steps=((f"It is the {told}.", "Yes."),))
    with pytest.raises(InputError, match="before it cites"):
        require_no_leak(leaking)


def test_novel_clips_show_and_play_what_others_never_do():
    for seed, kind in itertools.product(range(40), ("plain", "covered")):
        common = draw(kind=kind, seed=seed).moments
        assert not any(m.thing.is_novel or m.sound.is_novel for m in common)
        novel = draw(kind=kind, seed=seed, novel=True).moments
        assert any(m.thing.is_novel for m in novel) and any(m.sound.is_novel for m in novel)


def test_the_dial_turns():
    easy, hard = draw("easy"), draw("hard")
    assert [m.span for m in easy.moments] == [(i / 2, (i + 1) / 2) for i in range(6)]
    assert len(hard.moments) == 10 and hard.distractors == 2
    assert sum(m.thing is None or m.sound is None for m in hard.moments) == 2
    assert any(m.heard[0] < m.start for m in hard.moments)
    assert any(m.heard[1] > m.end for m in hard.moments)
    for wrong in ({"moments": 3}, {"alone": 9}, {"jitter": 0.4, "overlap": 0.4}, {"seconds": 0.0},
        {"jitter": -0.1}, {"distractors": -1}, {"seconds": float("nan")}):  # fmt: skip
        with pytest.raises(InputError):
            Dial(**wrong)


def test_a_timeline_is_drawn_and_played_where_it_says():
    timeline = draw("easy", seed=3)
    rng = np.random.default_rng(0)
    frames, sound = list(render.pictures(timeline, rng)), render.samples(timeline, rng)[0]
    assert (
        len(frames) == timeline.seconds * render.FPS
        and len(sound) == timeline.seconds * render.RATE
    )
    for moment in timeline.moments:
        frame = frames[round(moment.start * render.FPS) + 2].astype(int)
        y, x = np.nonzero((frame == COLOURS[moment.thing.colour]).all(-1))
        centre = {"left": x, "right": x, "top": y, "bottom": y}[
            moment.thing.place
        ].mean() - render.SIDE / 2
        assert centre < -16 if moment.thing.place in ("left", "top") else centre > 16
        heard = sound[round(moment.start * render.RATE) : round(moment.end * render.RATE)]
        loudest = np.argmax(np.abs(np.fft.rfft(heard))) / (moment.end - moment.start)
        assert 0.6 < loudest / HERTZ[moment.sound.pitch] < 2.4  # of a chord any of its three
        gaps = np.mean(np.abs(heard) < 1e-6)
        assert gaps > 0.3 if moment.sound.rhythm == "pulsing" else gaps < 0.1


@pytest.fixture(scope="module")
def world():
    return samples.World.of(14, 7, DIALS["medium"])


def make_set(out, world, **options):
    """Measured on few clips: how well a world is guessed has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_MEASURED", 60)
        build.make_set(out, world, progress=False, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory, world):
    out = tmp_path_factory.mktemp("events") / "set"
    make_set(out, world)
    return out


def test_the_set_is_what_was_drawn(made, world):
    assert build.read_world(made) == world and world.clips == (10, 2, 2, 10, 10)
    assert build.check_set(made) == []
    for split, count in zip(samples.QUESTIONED, world.clips, strict=False):
        trajectories, problems = read_jsonl(made / f"{split}.jsonl", max_blocks=3)
        assert not problems and all(t.segments and t.reasoning for t in trajectories)
        found = list(build.read_records(made, split))
        assert [record["id"] for record in found] == [f"{split}-{i:05d}" for i in range(count)]
        assert len(trajectories) == sum(len(record["questions"]) for record in found)
        for number, record in enumerate(found):
            timeline, _ = world.draw(split, number)
            assert record["timeline"] == timeline
            assert record["video"] == (made / record["path"]).read_bytes()
            clip = read_clip(made / record["path"], MediaSpec())
            assert abs(clip.duration - timeline.seconds) < 0.1 and clip.audio is not None
            heard = [start for start, _, _ in record["captions"]["audio"]]
            assert heard == [m.heard[0] for m in timeline.moments if m.sound]
    everything, problems = read_jsonl(made / "base.jsonl")
    assert not problems
    base = [t for t in everything if not t.segments]
    cited, train = [t for t in everything if t.segments], read_jsonl(made / "train.jsonl")[0]
    assert cited[: len(train)] == train and len(cited) == 2 * len(train)
    for silent, telling in zip(cited[len(train) :], train, strict=True):
        assert silent.id == f"{telling.id}-silent" and silent.reasoning.endswith(PAIR)
        same = ("question", "choices", "segments", "answer", "path")
        assert all(getattr(silent, name) == getattr(telling, name) for name in same)
        assert len(silent.reasoning) < len(telling.reasoning)
        told = set(re.findall(r"\w+", silent.reasoning)) & _WORDS
        assert told <= set(re.findall(r"\w+", silent.question))
    found = collections.Counter(t.path.split("/")[1].split("-")[0] if t.path else "" for t in base)
    kinds = {"pictures": 1, "sounds": 1, "train": 6}
    assert found == {"": 40} | {
        split: kind * world.clips[samples.SPLITS.index(split)] for split, kind in kinds.items()
    }
    kinds = {
        stage: {id.split("-", 2)[2] for id in (t.id for t in everything) if re.search(only, id)}
        for stage, only in (
            *((stage, av_events(stage).data.only) for stage in STAGES),
            *((row, av_events_study(row).data.only) for row in ("text_cot", "silent_text_cot")),
        )
    }
    binding = {"by-thing", "by-sound", "after-thing", "after-sound", "twins"}
    words_ = {"chain", "recall", "compare", "tell"}
    assert kinds == {
        "senses": words_ | {"picture", "sound"},
        "base": words_ | {"picture", "by-time"} | binding,
        "order": words_ - {"chain"} | binding,
        "latentomni": {"compare", "tell"} | binding | set(questions.TYPES),
        "text_cot": set(questions.TYPES),
        "silent_text_cot": {f"{type}-silent" for type in questions.TYPES},
    }
    tokenizer = load_tokenizer(made / "tokenizer")
    text = "I listen for the tone low steady. The red disc is seen."
    assert tokenizer.decode(ids := tokenizer.encode(text)) == text and len(ids) < 18


def test_a_set_can_be_read_as_captions(made, world, tmp_path):
    count = write_av_events_captions(made, tmp_path / "rows.jsonl")
    found = list(read(tmp_path / "rows.jsonl"))
    assert [c.id for c in found] == [f"train-{i:05d}" for i in range(count)] and count == 10
    for number, caption in enumerate(found):
        assert (made / caption.video).is_file() and caption.facts == {"source": "AV-Events"}
        truth = captions.captions(world.draw("train", number)[0])
        for sense, parts in truth.items():
            told = [(t.start, t.end, t.text) for t in caption.timed if t.sense == sense]
            assert told == sorted(parts)
    before = (tmp_path / "rows.jsonl").read_bytes()
    write_av_events_captions(made, tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="incomplete or damaged"):
        write_av_events_captions(made, tmp_path / "rows.jsonl", "validation")


def test_lists_say_what_is_true():
    """Every item of every list, read back with the timeline alone."""
    for seed, kind in itertools.product(range(12), ("plain", "covered")):
        timeline = draw("medium", kind, seed)
        moments = timeline.moments

        def seen(m):
            return "curtain" if m.is_covered else m.thing.name if m.thing else "nothing"

        def heard(m):
            return m.sound.name if m.sound else "silence"

        found = captions.lists(np.random.default_rng(seed), timeline)
        assert list(found) == list(captions._LISTS)
        items = {name: text.split("; ") for name, (_, text) in found.items()}
        assert len(items["by-time"]) == len(moments)
        for moment, item in zip(moments, items["by-time"], strict=True):
            assert item.startswith(f"{moment.start:g} s {seen(moment)}")
            assert item.endswith(", " + heard(moment))
        assert sorted(items["by-thing"]) == sorted(
            f"{seen(m)}: {heard(m)}" for m in moments if m.thing
        )
        keys = [item.split(": ")[0] for item in items["by-sound"]]
        assert sorted(keys) == sorted(heard(m) for m in moments if m.sound)
        pairs = list(itertools.pairwise(moments))
        for name, key in (("after-thing", seen), ("after-sound", heard)):
            true = {f"after {key(a)}: {heard(b)}, {seen(b)}" for a, b in pairs}
            assert all(item in true for item in items[name])
        clear = [m for m in moments if m.thing and m.sound and not m.is_covered]
        true = {
            f"{seen(a)}, other {seen(b)}: {heard(b)}"
            for a, b in itertools.permutations(clear, 2)
            if a.thing.shape == b.thing.shape
        }
        assert set(items["twins"]) == true and len(true) >= 4
    orders = [captions.lists(np.random.default_rng(s), timeline)["by-thing"][1] for s in range(9)]
    assert len(set(orders)) > 1


def test_exercises_in_words_are_right():
    firsts, compared = set(), set()
    for seed in range(40):
        made = words.exercises(np.random.default_rng(seed), alike=seed % 2 == 0)
        chain, recall = made["chain"], made["recall"]
        first, _, names = chain["question"][len("Say again from the ") : -1].partition(": ")
        names, again = names.split("; "), chain["answer"][:-1].split("; ")
        begin = names.index(first)
        assert again == names[begin:] + names[:begin] and len(names) == 6
        firsts.add(begin)
        if seed % 2:
            firsts_of = {name.split()[0] for name in names}  # the colour; the voice
            assert len(firsts_of) == 6
        given = [set(p.split(", ")) for p in recall["question"][20:-1].split("; ")]
        found = [set(p.split(": ")) for p in recall["answer"][:-1].split("; ")]
        assert 2 <= len(found) == len(given) <= 4 and all(pair in given for pair in found)
        one, other = (
            t.split() for t in made["compare"]["question"][len("Compare. ") : -1].split(". ")
        )
        shape, motion = ("same" if one[k] == other[k] else "other" for k in (1, 3))
        assert made["compare"]["answer"] == f"{shape} shape, {motion} motion." and one != other
        compared.add(made["compare"]["answer"])
        ask, _, said = made["tell"]["question"].partition("? ")
        values = dict(
            zip(
                ("Where is the thing", "How does the thing move"),
                said[:-1].split()[2:],
                strict=True,
            )
        )
        assert made["tell"]["answer"] == f"{values[ask]}."
    assert len(firsts) == 6 and len(compared) == 4


def test_short_clips_are_of_one_thing_or_one_sound_never_novel():
    for seed in range(40):
        (moment,) = draw(kind="picture", seed=seed).moments
        assert moment.sound is None and not moment.thing.is_novel
        (moment,) = draw(kind="sound", seed=seed).moments
        assert moment.thing is None and not moment.sound.is_novel
        assert questions.ask(np.random.default_rng(0), draw(kind="sound", seed=seed)) == []


def test_a_timeline_survives_json(world):
    timeline, _ = world.draw("novel", 1)
    assert Timeline.from_json(json.loads(json.dumps(timeline.to_json()))) == timeline


def test_a_broken_clip_is_named_and_the_set_comes_back_the_same(made, world, tmp_path, capsys):
    again = tmp_path / "again"
    make_set(again, world, workers=2)
    names = [str(p.relative_to(made)) for p in made.rglob("*") if p.is_file()]
    records = [name for name in names if "array_record" in name]
    clips = [name for name in names if name.endswith(".mp4")]
    assert len(clips) == sum(world.clips) and len(records) == len(samples.SPLITS)
    same = [name for name in names if not name.endswith("dataset_info.json")]
    assert filecmp.cmpfiles(made, again, same, shallow=False)[0] == same

    broken = again / "clips" / "test-00001.mp4"
    broken.write_bytes(broken.read_bytes()[:-100] + bytes(100))
    (again / "clips" / "train-00003.mp4").unlink()
    assert main(["data", "av-events", "--out", str(again), "--check"]) == 2
    told = capsys.readouterr().out
    assert "test-00001.mp4: is not the clip" in told and "train-00003.mp4: is missing" in told
    broken.unlink()
    make_set(again, world)  # goes on where it was
    assert build.check_set(again) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_set_that_one_modality_gives_away_is_not_made(tmp_path, world, workers):
    out = tmp_path / "set"
    build._begin(out, world)
    told = {"video": {"alignment": 0.9, "all": 0.9}}
    (out / "alone.json").write_text(json.dumps({"fresh": told, "test": told}))
    with pytest.raises(InputError, match="video alone 90% of alignment questions"):
        make_set(out, world, workers=workers)
    assert not build.dataset_directory(out).exists()


def test_wrong_requests_say_what_to_do(made, tmp_path, capsys):
    def fails(*arguments):
        assert main(["data", "av-events", *arguments]) == 2
        return capsys.readouterr().err

    assert "holds another set" in fails("--out", str(made), "--seed", "8")
    assert "no AV-Events set" in fails("--out", str(tmp_path / "none"), "--check")
    assert "at least 10 clips" in fails("--out", str(tmp_path / "few"), "--clips", "3")
    assert "2^32" in fails("--out", str(tmp_path / "y"), "--seed", "-1")
    assert "6 to 9" in fails("--out", str(tmp_path / "x"), "--moments", "2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    assert "is not empty" in fails("--out", str(tmp_path / "full"))
