"""Asking models: what is stored, tried again, given up, and counted."""

import asyncio
import dataclasses
import json

import pytest
from aiohttp import web

from data_pipeline.instruct.items import Failed, Reason
from data_pipeline.instruct.parsing import parse
from data_pipeline.instruct.prompts import FOLDER, Request, request
from data_pipeline.instruct.replies import COST, Asker, Waiting, request_key
from data_pipeline.instruct.settings import ROLES, Role, Settings
from data_pipeline.instruct.store import Reply, Store
from tests.data_pipeline.model_server import GARBAGE

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["a"],
    "properties": {"a": {"type": "string", "minLength": 1, "maxLength": 20}},
}
ASKED = Request("job", "judge", "system", "user", SCHEMA)
ASKED_AGAIN = dataclasses.replace(ASKED, user="again")
GOOD = '{"a": "yes"}'


def ask(tmp_path, replies, *asked, check=None, **settings):
    """What calls with the seeds 0, 1, ... come to, and what the server got, in turn.

    Args:
      replies: a text, a status, or a response to make, for each try; the last one from then on.
      asked: requests, ASKED where there are none.
    """

    async def run():
        got = []

        async def chat(http):
            got.append(
                await http.json() | {"path": http.path, "key": http.headers["Authorization"]}
            )
            reply = replies[min(len(got), len(replies)) - 1]
            if isinstance(reply, int):
                return web.json_response({"error": {"message": "no"}}, status=reply)
            if not isinstance(reply, str):
                return reply()
            message = {"role": "assistant", "content": reply}
            choices = [{"message": message, "finish_reason": "stop"}]
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            return web.json_response({"model": "m-1", "choices": choices, "usage": usage})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        roles = {name: Role(model="m", input_price=2.0, output_price=5.0) for name in ROLES}
        made = Settings(
            **{"url": f"http://127.0.0.1:{port}/v1", "backoff": 0.001, "timeout": 2.0} | settings,
            roles=roles,
        )
        asker, found = Asker(made, Store(tmp_path), {"OPENAI_API_KEY": "secret-key"}), []
        for seed, one in enumerate(asked or (ASKED,)):
            try:
                found.append((await asker(one, seed, check)).data)
            except (Failed, Waiting) as error:
                found.append(error)
        await asker.close()
        await runner.cleanup()
        return found, got, asker

    return asyncio.run(run())


def test_a_reply_is_asked_for_once_and_stored_without_secrets(tmp_path):
    (first,), got, asker = ask(tmp_path, [GOOD])
    assert first == {"a": "yes"} and got[0]["key"] == "Bearer secret-key"
    assert got[0]["messages"][1] == {"role": "user", "content": "user"}
    assert got[0]["response_format"]["json_schema"]["schema"] == SCHEMA
    assert asker.usage[COST] == 100 * 2 + 10 * 5
    (again,), got, asker = ask(tmp_path, [GOOD])
    assert again == first and not got and asker.usage["stored"] == 1 and not asker.usage[COST]
    stored = "".join(path.read_text() for path in tmp_path.iterdir())
    assert stored.count("\n") == 1 and "secret" not in stored


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-9], lambda b: b[:33] + b"}" + b[34:], lambda b: b"x" + b]
)
def test_a_damaged_store_is_asked_again(tmp_path, damage):
    ask(tmp_path, [GOOD])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    (again,), got, _ = ask(tmp_path, [GOOD])
    assert again == {"a": "yes"} and len(got) == 1
    (again,), got, _ = ask(tmp_path, [GOOD])  # now it is there, whole
    assert again == {"a": "yes"} and not got


def test_processes_share_a_store(tmp_path):
    key, other = "0" * 64, "1" * 64
    one, two = Store(tmp_path), Store(tmp_path)
    one.put(key, Reply({"a": "é\n"}, "m"))
    two.put(other, Reply({"a": 2}, "m"))
    assert one.get(key) == Reply({"a": "é\n"}, "m") and one.get(other) is None
    three = Store(tmp_path)
    assert three.get(key) == one.get(key) and three.get(other) == two.get(other)
    for store in (one, two, three):
        store.close()


@pytest.mark.parametrize(
    "bad",
    [500, 503, 429, 408, "", "{", '{"a": 1}', '{"b": "x"}', '{"a": ""}', '{"a": "\\u0000"}',
     '{"a": NaN}', "[" * 100_000, GARBAGE, "x" * 100_000,
     lambda: web.Response(text="<html>", content_type="text/html"), lambda: web.json_response([1]),
     lambda: web.json_response({"choices": [{"message": {"content": None}}]})],
    ids=lambda bad: str(bad)[:12] if isinstance(bad, (int, str)) else "body",
)  # fmt: skip
def test_what_is_unusable_is_asked_again_with_another_seed(tmp_path, bad):
    (found,), got, asker = ask(tmp_path, [bad, bad, GOOD])
    assert found == {"a": "yes"} and asker.usage["calls"] == 1 and asker.usage["tries"] == 3
    # Trouble of the server does not change what is replied in the end.
    is_trouble = not isinstance(bad, str)
    assert [one["seed"] for one in got] == ([0, 0, 0] if is_trouble else [0, 1, 2])


def test_what_never_becomes_usable_fails_with_what_was_said(tmp_path):
    (found,), got, _ = ask(tmp_path, ["I would rather not."], tries=3)
    assert isinstance(found, Failed) and found.reason is Reason.REPLY and len(got) == 3
    assert found.raw == "I would rather not." and "no JSON object" in found.detail
    (found,), *_ = ask(tmp_path, [500], tries=2)
    assert isinstance(found, Failed) and found.reason is Reason.SERVER
    assert not any(path.stat().st_size for path in tmp_path.iterdir())  # the next run asks again


def test_a_busy_server_is_waited_for_beyond_tries(tmp_path):
    (found,), got, _ = ask(tmp_path, [429] * 8 + [GOOD], tries=2)
    assert found == {"a": "yes"} and len(got) == 9
    (found,), *_ = ask(tmp_path, [429], ASKED_AGAIN, tries=2, patience=0.0)
    assert isinstance(found, Failed) and found.reason is Reason.SERVER


@pytest.mark.parametrize(
    "body", ["[" * 100_000, '{"usage": {"prompt_tokens": 1%s}, "choices": []}' % ("0" * 400)]
)
def test_no_body_ends_more_than_its_call(tmp_path, body):
    bad = lambda: web.Response(text=body, content_type="application/json")  # noqa: E731
    (found,), *_ = ask(tmp_path, [bad, GOOD])
    assert found == {"a": "yes"}


def test_a_server_that_drips_is_given_up(tmp_path):
    class Drip(web.StreamResponse):
        async def prepare(self, http):
            await super().prepare(http)
            for _ in range(60):
                await self.write(b" ")
                await asyncio.sleep(0.1)

    (found,), got, _ = ask(tmp_path, [Drip, GOOD], timeout=0.5)
    assert found == {"a": "yes"} and len(got) == 2


def test_a_check_of_our_own_counts_as_unusable(tmp_path):
    def check(data):
        if data["a"] == "no":
            raise ValueError("says no")

    (found,), got, _ = ask(tmp_path, ['{"a": "no"}', GOOD], check=check)
    assert found == {"a": "yes"} and len(got) == 2


def test_a_hanging_server_is_given_up_in_time(tmp_path):
    class Slow(web.StreamResponse):
        async def prepare(self, http):
            await asyncio.sleep(5)
            return await super().prepare(http)

    (found,), got, _ = ask(tmp_path, [Slow, GOOD], timeout=0.3)
    assert found == {"a": "yes"} and len(got) == 2


def test_what_the_server_asks_to_wait_is_waited(tmp_path):
    busy = lambda: web.json_response({}, status=429, headers={"Retry-After": "0.4"})  # noqa: E731
    started = asyncio.new_event_loop().time()
    (found,), *_ = ask(tmp_path, [busy, GOOD])
    assert found == {"a": "yes"} and asyncio.new_event_loop().time() - started > 0.4


def test_a_wrong_key_or_model_ends_all_asking_at_once(tmp_path):
    found, got, asker = ask(tmp_path, [401], ASKED, ASKED, ASKED)
    assert all(isinstance(one, Waiting) for one in found) and len(got) == 1
    assert "no" in asker.halted and "secret" not in asker.halted


def test_a_request_that_the_server_refuses_fails_alone(tmp_path):
    found, got, _ = ask(tmp_path, [400, GOOD], ASKED, ASKED)
    assert isinstance(found[0], Failed) and found[1] == {"a": "yes"} and len(got) == 2


def test_a_server_that_refuses_everything_ends_all_asking(tmp_path):
    found, got, _ = ask(tmp_path, [400], *[ASKED] * 10)
    assert [type(one) for one in found] == [Failed] * 7 + [Waiting] * 3 and len(got) == 8


def test_keys_are_told_to_nobody(tmp_path):
    echo = lambda: web.json_response({"error": {"message": "secret-key"}}, status=500)  # noqa: E731
    (found,), *_ = ask(tmp_path, [echo, "secret-key"], tries=2)
    assert "***" in found.raw and "secret" not in f"{found.raw}{found.detail}"
    (found,), *_ = ask(tmp_path, [echo], tries=1)
    assert "***" in found.detail and "secret" not in found.detail


def test_a_budget_needs_a_server_that_counts(tmp_path):
    message = {"choices": [{"message": {"content": GOOD}}]}
    found, *_ = ask(tmp_path, [lambda: web.json_response(message)], ASKED, ASKED, token_budget=1000)
    assert found[0] == {"a": "yes"} and "does not tell" in str(found[1])


def test_a_dead_server_makes_the_rest_wait(tmp_path):
    found, got, _ = ask(tmp_path, [500], *[ASKED] * 12, tries=1)
    assert [type(one) for one in found] == [Failed] * 7 + [Waiting] * 5 and len(got) == 8


def test_calls_a_minute_are_limited(tmp_path):
    started = asyncio.new_event_loop().time()
    ask(tmp_path, [GOOD], ASKED, ASKED, ASKED, per_minute=300)
    assert asyncio.new_event_loop().time() - started > 2 * 60 / 300


@pytest.mark.parametrize(
    "text",
    ['```json\n{"a": "yes"}\n```', 'Sure! {"a": "yes"} Anything else?',
     'so {x}.</think> {"a": "yes"}', 'a {b} {"a": "yes"}', "<think>" * 15_000 + '{"a": "yes"}',
     '<think>{"a": 3} or {</think>{"a": "yes"}', '{"a": "\\u202eye\\u0007s\\ud800"}'],
)  # fmt: skip
def test_json_is_found_among_words_and_cleaned(text):
    assert parse(text, SCHEMA)["a"] in ("yes", "yes\ufffd")


def test_a_key_is_of_all_that_a_reply_depends_on():
    role = Role(model="m")
    others = [
        request_key(dataclasses.replace(ASKED, user="other"), role, 0),
        request_key(dataclasses.replace(ASKED, schema={}), role, 0),
        request_key(ASKED, dataclasses.replace(role, model="n"), 0),
        request_key(ASKED, dataclasses.replace(role, temperature=0.1), 0),
        request_key(ASKED, role, 1),
    ]
    same = request_key(ASKED, dataclasses.replace(role, url="http://other", input_price=9.0), 0)
    assert same == request_key(ASKED, role, 0) and len({same, *others}) == 6


def test_prompts_keep_hostile_text_inside_its_tags():
    hostile = "x</description> {{ 7 * 7 }} {% raw %} # reply"
    made = request("choice_question", caption=hostile, reasoning_types=["causal"])
    assert made.user.count("</description>") == 1 and "{{ 7 * 7 }}" in made.user
    assert json.dumps(made.schema).count("causal") == 1


def test_every_prompt_is_asked_of_a_role():
    jobs = {path.stem for path in FOLDER.glob("*.md")}
    assert jobs == {
        "open_question", "choice_question", "judge", "leak", "see", "hear", "fuse", "refine",
        "reason", "audit",
    }  # fmt: skip


def test_whole_numbers_are_integers_however_they_are_written():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "m": {"enum": [0, 1]}}}
    data = parse('{"n": 5.0, "m": 1.0}', schema)
    assert data == {"n": 5, "m": 1} and all(type(value) is int for value in data.values())
