"""Asking models: one client for every OpenAI-compatible server, and a store of what they replied.

A reply is stored under the hash of everything that it depends on: model, messages, schema, sampling
and seed; not the server's address. So a run that was ended goes on where it was, another run is
free where it asks the same, and a changed prompt asks again only what it changes. What was not
usable is never stored.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import openai

from data_pipeline.instruct.items import Failed, Reason
from data_pipeline.instruct.parsing import clean_text, content, parse
from data_pipeline.instruct.prompts import Request
from data_pipeline.instruct.settings import Role, Settings
from data_pipeline.instruct.store import Reply, Store
from latentomni_jax.layout import InputError

FORMAT = 1  # of what is stored
T = TypeVar("T")
COST = "cost, millionths"
_SHOWN = 4000  # characters of an unusable reply that a ledger keeps
_REMEMBERED = 1000  # things made once
_DEAD = 8  # calls in a row that no try of succeeded: the server is taken for dead
_FATAL = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class Waiting(Exception):
    """The run has stopped asking: this call has to wait for the next run."""


class Asker:
    """Asks models, many calls at a time; of one event loop.

    Attributes:
      usage: counts of calls, tries, replies from the store, tokens and cost.
      halted: why no further call is made; "" while there is no reason.
    """

    def __init__(self, settings: Settings, store: Store, api_key: str = ""):
        self.settings, self.store = settings, store
        self.usage: Counter[str] = Counter()
        self.halted = ""
        self._api_key = api_key or "none"  # servers of one's own want none; the client does
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self._running = asyncio.Semaphore(settings.concurrency)
        self._made: dict[Hashable, asyncio.Future] = {}
        self._next, self._dead = 0.0, 0

    async def __call__(
        self, request: Request, seed: int, check: Callable[[dict[str, Any]], None] | None = None
    ) -> Reply:
        """The reply to a request, from the store or from the model.

        Args:
          check: raises ValueError where data that keep to the schema are unusable all the same.

        Raises:
          Failed: no try gave a usable reply. Waiting: the run no longer asks.
        """
        role = self.settings.roles[request.role]
        key = request_key(request, role, seed)
        if (reply := self.store.get(key)) is not None:
            self.usage["stored"] += 1
            return reply
        async with self._running:
            reply = await self._ask(request, role, seed, check)
        self.store.put(key, reply)
        return reply

    async def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called in a thread, once for all who ask for the same key at about a time."""
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = asyncio.ensure_future(asyncio.to_thread(make))
            if len(self._made) > _REMEMBERED:
                del self._made[next(iter(self._made))]
        return await asyncio.shield(made)

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self.store.close()

    async def _ask(self, request: Request, role: Role, seed: int, check: Any) -> Reply:
        self.usage["calls"] += 1
        told, raw, reason = "", "", Reason.SERVER
        for number in range(self.settings.tries):
            if self.halted:
                raise Waiting(self.halted)
            if number:
                await asyncio.sleep(self._pause(number, told))
            await self._turn()
            self.usage["tries"] += 1
            try:
                body = await self._post(request, role, seed + number)
            except _FATAL as error:
                self.halted = f"{role.url or self.settings.url}: {_told(error)}"
                raise Waiting(self.halted) from None
            except openai.BadRequestError as error:
                raise Failed(Reason.SERVER, f"{request.job}: {_told(error)}") from None
            except (openai.APIError, ValueError) as error:  # ValueError: a body that is no JSON
                told, reason = error, Reason.SERVER
                continue
            self._dead = 0
            self._account(request.role, role, body)
            try:
                text, model = content(body)
                raw = text
                data = parse(text, request.schema)
                if check is not None:
                    check(data)
                return Reply(data, model or role.model)
            except ValueError as error:
                told, reason = error, Reason.REPLY
        if reason is Reason.SERVER:
            self._dead += 1
            if self._dead >= _DEAD:
                self.halted = (
                    f"{role.url or self.settings.url}: no reply to {_DEAD} calls in a row: "
                    f"{_told(told)}"
                )
        raise Failed(reason, f"{request.job}: {_told(told)}", raw[:_SHOWN])

    async def _post(self, request: Request, role: Role, seed: int) -> Any:
        url = role.url or self.settings.url
        client = self._clients.get(url)
        if client is None:
            client = self._clients[url] = make_client(url, self._api_key)
        body: dict[str, Any] = {
            "model": role.model,
            "messages": request.messages(),
            "temperature": role.temperature,
            "top_p": role.top_p,
            "max_tokens": role.max_tokens,
            "seed": seed % 2**31,
        }
        if role.structured:
            schema = {"name": request.job, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        # As plain JSON: typed replies would take the client twice as long (docs/performance.md).
        return await client.post(
            "/chat/completions",
            body=body,
            cast_to=object,
            options={"timeout": self.settings.timeout},
        )

    def _pause(self, number: int, error: Any) -> float:
        """Seconds before a further try: what the server asks for, else longer each time."""
        response = getattr(error, "response", None)
        after = response.headers.get("retry-after", "") if response is not None else ""
        if re.fullmatch(r"\d{1,4}(\.\d+)?", after):
            return min(float(after), self.settings.timeout)
        return self.settings.backoff * 2 ** (number - 1) * random.uniform(0.5, 1.0)

    async def _turn(self) -> None:
        """Waits for this call's turn where calls a minute are limited."""
        if self.settings.per_minute:
            now = time.monotonic()
            self._next = max(self._next, now) + 60 / self.settings.per_minute
            await asyncio.sleep(self._next - now - 60 / self.settings.per_minute)

    def _account(self, name: str, role: Role, body: Any) -> None:
        usage = body.get("usage") if isinstance(body, dict) else None
        usage = usage if isinstance(usage, dict) else {}
        counts = [usage.get(f"{side}_tokens") for side in ("prompt", "completion")]
        given, taken = (n if isinstance(n, int) and n >= 0 else 0 for n in counts)
        counts = {"input_tokens": given, "output_tokens": taken}
        for what, n in counts.items():
            self.usage[what] += n
            self.usage[f"{what} of {name}"] += n
        # Whole numbers, which Beam's counters are: a price per million of a token is a millionth.
        self.usage[COST] += round(given * role.input_price + taken * role.output_price)
        settings, total = self.settings, self.usage["input_tokens"] + self.usage["output_tokens"]
        if settings.token_budget and total >= settings.token_budget:
            self.halted = f"the budget of {settings.token_budget:,} tokens is spent"
        if settings.cost_budget and self.usage[COST] / 1e6 >= settings.cost_budget:
            self.halted = f"the budget of {settings.cost_budget:g} is spent"


def request_key(request: Request, role: Role, seed: int) -> str:
    """The hash of everything that a reply depends on."""
    media = request.media.digest if request.media else ""
    asked = [FORMAT, request.system, request.user, request.schema, media, seed]
    sampling = [role.model, role.temperature, role.top_p, role.max_tokens, role.structured]
    text = json.dumps([asked, sampling], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def seed_of(*names: object) -> int:
    """A seed of its own for everything that has a name of its own."""
    text = json.dumps([str(name) for name in names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def make_client(url: str, api_key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=url,
        api_key=api_key,
        max_retries=0,  # tries are counted here
        http_client=openai.DefaultAioHttpClient(),
    )


async def resolve_models(settings: Settings, api_key: str = "") -> Settings:
    """Names the server's own model for every role that has none.

    Raises:
      InputError: a server does not answer, or serves no model.
    """
    first: dict[str, str] = {}
    for role in settings.roles.values():
        url = role.url or settings.url
        if url in first:
            continue
        if not url:
            raise InputError("no model server: give its address, http://HOST:PORT/v1, as --llm")
        client = make_client(url, api_key or "none")
        try:
            listed = await client.get("/models", cast_to=object, options={"timeout": 30})
            first[url] = listed["data"][0]["id"]
        except openai.APIError as error:
            raise InputError(f"{url}: is no model server that answers: {_told(error)}") from None
        except (ValueError, LookupError, TypeError):
            if any(not role.model for role in settings.roles.values()):
                raise InputError(f"{url}: tells of no model; name one with --model") from None
            first[url] = ""
        finally:
            await client.close()
    roles = {
        name: dataclasses.replace(role, model=role.model or first[role.url or settings.url])
        for name, role in settings.roles.items()
    }
    return dataclasses.replace(settings, roles=roles)


def _told(error: Any) -> str:
    """An error in one line that is short."""
    text = clean_text(str(error)) or type(error).__name__
    return f"{text[:300]}{'...' if len(text) > 300 else ''}"
