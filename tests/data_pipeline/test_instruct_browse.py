"""The page plays what is clicked, finds what is asked for, and no text on it does anything."""

import dataclasses
import json
import re

import pytest

from data_pipeline.av_events.clips import make_clip
from data_pipeline.instruct import browse
from data_pipeline.instruct.browse import LONGEST, write_page
from data_pipeline.instruct.dataset import write_dataset
from data_pipeline.instruct.items import Step, Timed
from latentomni_jax.layout import InputError
from tests.browser import browser, needs_chromium
from tests.data_pipeline.instruct_items import (
    CAPTION,
    CHAIN,
    QUESTION,
    SCORES,
    SEGMENTS,
    make_entry,
    make_item,
    make_open,
)

HOSTILE = "</script><script>taken = 1</script><img src=x onerror='taken = 1'>\ud800\u2028<!--"
VIDEO = "a folder/50% #1?.mp4"


def hostile_item(id):
    """Hostile in every text that a model or a caption gives."""
    return make_item(
        id,
        caption=dataclasses.replace(
            CAPTION, video=VIDEO, text=HOSTILE, facts={HOSTILE: HOSTILE},
            timed=(Timed(start=0.0, end=1.0, text=HOSTILE, sense="audio"),),
        ),
        question=dataclasses.replace(
            QUESTION, text=HOSTILE, options=(HOSTILE,) * 4, reasoning_type=HOSTILE
        ),
        scores=dataclasses.replace(SCORES, reason=HOSTILE, category="counting and quantification"),
        segments=tuple(
            dataclasses.replace(one, seen=(HOSTILE,), heard=(HOSTILE,), fused=(HOSTILE,),
                                text=HOSTILE, captioner="text") for one in SEGMENTS
        ),
        chain=dataclasses.replace(CHAIN, steps=(Step(text=HOSTILE, segment=1),)),
        audit=None,
        models={HOSTILE: HOSTILE},
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A set of 121 samples, more than one page of them, and of what ended otherwise."""
    root = tmp_path_factory.mktemp("set")
    videos = root / "clips"
    (videos / "a folder").mkdir(parents=True)
    make_clip(videos / VIDEO, seconds=4.0, size=(64, 48))
    caption = dataclasses.replace(CAPTION, video=VIDEO)
    items = [make_item(f"{i:03d}", caption=caption) for i in range(119)]
    items += [make_open("119", caption=caption, answer="zebra"), hostile_item("120")]
    ends = [make_entry("e0", "dropped"), make_entry("e1", "failed", raw=HOSTILE, detail=HOSTILE)]
    write_dataset(root / "out", items, [*(make_entry(item.id) for item in items), *ends])
    return write_page(root / "out", videos)


@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        tab.open(page.as_uri())
        yield tab


def test_the_same_set_makes_the_same_page_without_markup_of_others(page):
    text = page.read_text()
    assert text.count("<script") == 2 and "<img" not in text and "<!--" not in text
    assert not re.findall(r"https?:|src=\"", text)
    assert write_page(page.parent, page.parents[1] / "clips").read_text() == text
    embedded = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    data = json.loads(embedded)
    assert len(data["samples"]) == 121
    assert data["samples"][0]["url"] == "../clips/a%20folder/50%25%20%231%3F.mp4"


def test_much_and_long_is_cut_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(browse, "LIMIT", 2)
    long = dataclasses.replace(CAPTION, text="x" * (LONGEST + 7))
    items = [make_item(str(i), caption=long) for i in range(3)]
    entries = [*(make_entry(item.id) for item in items), make_entry("e", "failed")]
    write_dataset(tmp_path, items, entries)
    text = write_page(tmp_path, tmp_path).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [sample["id"] for sample in data["samples"]] == ["0", "1"] and len(data["ended"]) == 1
    assert data["counts"] == {"kept": 3, "dropped": 0, "failed": 1}
    assert data["samples"][0]["caption"]["text"] == "x" * LONGEST + "… (7 more characters)"
    monkeypatch.setattr(browse, "SIZE", len(json.dumps(data["samples"][0])) + 10)
    text = write_page(tmp_path, tmp_path).read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [sample["id"] for sample in data["samples"]] == ["0"]


def test_numbers_that_browsers_do_not_know(tmp_path):
    scores = dataclasses.replace(SCORES, confidence=float("nan"))
    write_dataset(tmp_path, [make_item("a", scores=scores)], [make_entry("a")])
    assert "NaN" not in re.search(r'id="data">(.*)', write_page(tmp_path, tmp_path).read_text())[1]


def test_a_folder_without_a_set_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no complete data set; expected counts\.json"):
        write_page(tmp_path, tmp_path)


@needs_chromium
def test_the_page_tells_that_it_is_not_all(tmp_path, monkeypatch):
    monkeypatch.setattr(browse, "LIMIT", 1)
    write_dataset(tmp_path, [make_item("a"), make_item("b")], map(make_entry, "ab"))
    with browser(tmp_path) as tab:
        tab.open(write_page(tmp_path, tmp_path).as_uri())
        assert tab.ask("byId('tab-samples').textContent") == "Kept (first 1 of 2)"
        assert "beginning of the set" in tab.ask("byId('told').textContent")
        tab.wait("!document.querySelector('#sample .failed').hidden")  # there is no such clip


def rows(tab):
    return int(tab.ask("document.querySelector('#sample-pager .note').textContent").split()[0])


def choose(tab, name, value, kind="sample", event="change"):
    tab.ask(
        f"(() => {{ const one = document.querySelector('#{kind}-filters [name=\"{name}\"]');"
        f"one.value = {json.dumps(value)}; one.dispatchEvent(new Event('{event}')); }})()"
    )


@needs_chromium
def test_a_segment_or_citation_that_is_clicked_is_played_to_its_end(tab):
    tab.wait("video.readyState >= 2")
    assert tab.ask("[video.paused, video.videoWidth]") == [True, 64]
    tab.ask("seeks = []; video.addEventListener('seeking', () => seeks.push(video.currentTime))")
    tab.click(".timeline button", 1)  # of 2 to 3.5 s
    tab.wait("seeks.length == 1 && !video.paused && video.currentTime > 2.2")
    tab.wait("video.paused")
    assert 3.5 <= tab.ask("video.currentTime") < 4.0
    tab.click("#reasoning .chip")
    tab.wait("seeks.length == 2 && !video.paused")
    assert tab.ask("seeks") == [2.0, 2.0]
    assert tab.ask("video.getBoundingClientRect().top") >= 0  # it is seen, too
    bar = "document.querySelectorAll('.timeline button')[1].style"
    left, width = tab.ask(f"[{bar}.left, {bar}.width]")
    assert abs(float(left[:-1]) - 50) < 2 and abs(float(width[:-1]) - 37.5) < 2
    assert not tab.errors


@needs_chromium
def test_the_audit_is_seen(tab):
    draft = "#draft li:nth-child"
    assert (
        tab.ask(f"document.querySelector('{draft}(2) del').textContent") == "The weather is nice. "
    )
    moved = tab.ask(f"document.querySelector('{draft}(1)').textContent")
    assert "Segment 1, 0.0–2.0 s → ▶ Segment 2, 2.0–3.5 s" in moved
    assert "Segment 1" in tab.ask(f"document.querySelector('{draft}(1) del').textContent")
    assert tab.ask(f"document.querySelector('{draft}(3)').textContent").endswith("→ (no citation)")
    style = f"getComputedStyle(document.querySelector('{draft}(1) del .chip')).textDecorationLine"
    assert tab.ask(style) == "line-through"
    assert tab.ask("document.querySelector('#why').textContent").startswith("The higher tone")


@needs_chromium
def test_filters_and_search_reduce_the_list(tab):
    assert rows(tab) == 121 and tab.ask("document.querySelectorAll('.row').length") == 50
    for name, value, left in [
        ("category", "counting and quantification", 1),
        ("kind", "open", 1),
        ("captioner", "text", 1),
        ("audit", "not audited", 1),
        ("audit", "audited", 120),
        ("modality", "AV-Strong", 121),
    ]:
        choose(tab, name, value)
        assert rows(tab) == left, name
        choose(tab, name, "")
    choose(tab, "search", "SQUARE zebra", event="input")
    assert rows(tab) == 1 and tab.ask("shown.id") == "119"
    choose(tab, "search", "no such word", event="input")
    assert rows(tab) == 0 and "Nothing" in tab.ask("byId('sample').textContent")
    choose(tab, "search", "", event="input")
    assert rows(tab) == 121 and tab.ask("shown.id") == "000"


@needs_chromium
def test_keys_go_through_the_list_over_its_pages(tab):
    tab.ask("document.activeElement.blur(); choose(found[49]); undefined")
    tab.press("j")
    assert tab.ask("shown.id") == "050"
    assert tab.ask("document.querySelector('.row[aria-current=true]').sample.id") == "050"
    tab.press("ArrowRight")
    tab.press("k")
    tab.press("ArrowLeft")
    assert tab.ask("shown.id") == "049"
    tab.click("#sample-pager button", 1)
    assert tab.ask("document.querySelector('.row').sample.id") == "050"
    tab.ask("document.querySelector('#sample-filters input').focus()")
    tab.press("j")
    assert tab.ask("document.querySelector('#sample-filters input').value") == "j"
    choose(tab, "search", "", event="input")


@needs_chromium
def test_hostile_texts_are_shown_and_do_nothing(tab):
    choose(tab, "captioner", "text")
    assert tab.ask("shown.id") == "120"
    assert tab.ask("document.querySelector('#question').textContent").startswith(HOSTILE[:40])
    tab.wait("video.readyState >= 2")
    choose(tab, "captioner", "")
    tab.click("#tab-ended")
    assert tab.ask("document.querySelectorAll('.entry').length") == 2
    choose(tab, "fate", "failed", kind="ended")
    assert tab.ask("document.querySelectorAll('.entry').length") == 1
    assert tab.ask("document.querySelector('.entry pre').textContent").startswith(HOSTILE[:40])
    assert (
        tab.ask("document.querySelectorAll('#entries img, #sample img, main script').length") == 0
    )
    assert tab.ask("typeof taken") == "undefined" and not tab.errors
    tab.click("#tab-samples")


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(tab, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.call("Emulation.setEmulatedMedia", features=[feature])
    tab.resize(390, 800)
    tab.ask("choose(found[0]); undefined")
    for _ in range(2):
        assert tab.ask("document.documentElement.scrollWidth") <= 390
        tab.ask("choose(found[120]); undefined")
    light = tab.ask("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light == (scheme == "light")
    tab.resize(1200, 900)


@needs_chromium
def test_errors_of_a_page_are_heard(tab):
    """What the other tests rely on."""
    tab.ask("new Image().src = 'http://example.org/x.png'; console.error('told')")
    tab.ask("setTimeout(() => { waited = true; throw new Error('thrown') }); undefined")
    tab.wait("window.waited")
    heard = " ".join(tab.errors)
    tab.errors.clear()
    assert "thrown" in heard and "told" in heard and "Content Security Policy" in heard
