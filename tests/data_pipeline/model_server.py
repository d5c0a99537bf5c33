"""A scripted OpenAI-compatible server: what it replies depends on what it is asked alone.

    python -m tests.data_pipeline.model_server --latency 0.2 --faults 0.3

Prints its address. With faults, a share of first and second tries of a call goes wrong in one of
the ways in `FAULTS`; a call's third try never does, so a run under fire ends as one without.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from typing import Any

from aiohttp import web

FAULTS = (
    "429", "500", "hang", "cut", "malformed", "schema", "empty", "long", "garbage", "no choices",
)  # fmt: skip
WORDS = ("moss", "lamp", "river", "glass", "anvil", "crow", "bell")
GARBAGE = "\ud800\u202e\x00\x07 {\ufffe \U0001f9ff" * 20


def fill(schema: dict[str, Any], rng: random.Random) -> Any:
    """Something that keeps to a schema."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    kind = schema["type"]
    if kind == "object":
        return {name: fill(one, rng) for name, one in schema["properties"].items()}
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", 4)
        return [fill(schema["items"], rng) for _ in range(rng.randint(least, min(most, least + 2)))]
    if kind == "boolean":
        return rng.random() < 0.5
    if kind == "number":
        return rng.random()
    if kind == "integer":
        return rng.randint(schema["minimum"], schema["maximum"])
    return " ".join(rng.choice(WORDS) for _ in range(6))


def reply(job: str, schema: dict[str, Any], user: str) -> dict[str, Any]:
    """A good reply; a tenth of all judgements, drafts and audits ends its item."""
    rng = random.Random(f"{job}{user}")
    data = fill(schema, rng)
    goes_on = rng.random() < 0.9
    if job == "open_question":
        data["answer"] = "moss behind the lamp"
    elif job == "choice_question":
        data["right"] = f"right {data['right']}"
        data["wrong"] = [f"wrong {i} {text}" for i, text in enumerate(data["wrong"])]
    elif job == "leak":
        data["found_by_sight"] = data["found_by_sound"] = not goes_on
    elif job == "judge":
        names = ("context_utilization", "question_difficulty", "deductive_requirement")
        data |= dict.fromkeys(names, 5 if goes_on else 4)
        # Not all alike, so that balancing has something to do.
        data["category"] = schema["properties"]["category"]["enum"][min(rng.randrange(12), 9)]
    elif job == "reason":
        numbers = schema["properties"]["steps"]["items"]["properties"]["segment"]["enum"]
        looks = rng.sample(numbers[1:], min(2, len(numbers) - 1))
        data["steps"] = [
            {"text": f"I look again. {fill({'type': 'string'}, rng)}.", "segment": number}
            for number in [*looks, 0]
        ]
        letters = dict(re.findall(r"^([A-D])\. (right|wrong)", user, re.MULTILINE))
        wanted = "right" if goes_on else "wrong"
        named = [letter for letter, kind in letters.items() if kind == wanted]
        data["answer"] = named[0] if named else "moss behind the lamp"
    elif job == "audit":
        data |= {"moved": [], "removed": [], "same_answer": True}
        data["verdict"] = "keep" if goes_on else "discard"
        if rng.random() < 0.3:
            data["removed"] = [3]
    return data


class Server:
    """Attributes: asked: the hash of every good reply's request, how often. most: at one time."""

    def __init__(self, latency: float = 0.0, faults: float = 0.0):
        self.latency, self.faults = latency, faults
        self.asked: Counter[str] = Counter()
        self.tries: Counter[str] = Counter()
        self.under_way = self.most = 0
        self.bodies: list[dict[str, Any]] = []
        self.app = web.Application(client_max_size=2**26)
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_get("/v1/asked", self.told)
        self.app.router.add_post("/v1/chat/completions", self.chat)

    async def models(self, _) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted"}]})

    async def told(self, _) -> web.Response:
        told = {"calls": sum(self.asked.values()), "tries": sum(self.tries.values())}
        return web.json_response(told | {"different": len(self.asked), "most": self.most})

    async def chat(self, http: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._chat(http, await http.json())
        finally:
            self.under_way -= 1

    async def _chat(self, http: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        self.bodies = [*self.bodies[-20:], body]
        form = body["response_format"]["json_schema"]
        job, schema, user = form["name"], form["schema"], body["messages"][-1]["content"]
        if isinstance(user, list):
            user = "".join(part.get("text", str(len(str(part)))) for part in user)
        name = hashlib.sha256(f"{job}{user}".encode("utf-8", "replace")).hexdigest()
        self.tries[name] += 1
        rng = random.Random(f"{name}{self.tries[name]}")
        fault = ""
        if self.tries[name] < 3 and rng.random() < self.faults:
            fault = rng.choice(FAULTS)
        if fault == "429":
            return web.Response(status=429, headers={"Retry-After": "0"}, text="{}")
        if fault == "500":
            return web.Response(status=500, text="<html>oh</html>")
        await asyncio.sleep(self.latency)
        if fault == "hang":
            await asyncio.sleep(30)
        if fault == "cut":
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(http)
            await response.write(b'{"id"')
            assert http.transport is not None
            http.transport.abort()
            return response
        text = json.dumps(reply(job, schema, user))
        text = {
            "malformed": text[:-3],
            "schema": '{"steps": 5, "sentences": null}',
            "empty": " ",
            "long": "moss " * 20_000,
            "garbage": GARBAGE,
        }.get(fault, text)
        if not fault:
            self.asked[name] += 1
        completion = {
            "id": "1", "object": "chat.completion", "created": 1, "model": "scripted-1",
            "choices": [] if fault == "no choices" else [
                {"index": 0, "finish_reason": "stop",
                 "message": {"role": "assistant", "content": text}}
            ],
            "usage": {"prompt_tokens": len(user) // 4, "completion_tokens": len(text) // 4},
        }  # fmt: skip
        return web.json_response(completion)


async def serve(server: Server, port: int = 0) -> str:
    """Starts it in the running loop; its address."""
    runner = web.AppRunner(server.app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    assert site._server is not None
    return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()

    async def run():
        print(await serve(Server(args.latency, args.faults), args.port), flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


if __name__ == "__main__":
    main()
