"""The engine and its scheduler: from the body of a request to sequences that run."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from dsv2_compile.errors import ResourceError, UsageError
from dsv2_compile.runtime import Engine
from dsv2_compile.runtime.generate import encode
from dsv2_compile.runtime.requests import Limits, Request
from dsv2_compile.serve import chat, fields
from dsv2_compile.serve.answers import Words
from dsv2_compile.serve.errors import ApiError, invalid, queue_full, refused, shutting_down
from dsv2_compile.serve.fields import Asked
from dsv2_compile.serve.metrics import Metrics
from dsv2_compile.serve.options import Options
from dsv2_compile.serve.reply import Reply
from dsv2_compile.serve.running import Running

_WORKERS = 2


class Service:
    """``draining``: no new requests are taken. ``active``: requests being answered. ``fault``: what ended the
    scheduler; `ended` is set then."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self.metrics, self.created = Metrics(), int(time.time())
        self.max_tokens = engine.max_seq_len if options.max_tokens is None else options.max_tokens
        self.draining, self.active = False, 0
        self.fault: BaseException | None = None
        self.ended = threading.Event()
        # few and always the same: the tokenizer keeps a cache for every thread that uses it
        self.workers = ThreadPoolExecutor(_WORKERS, "dsv2-requests")
        self._template = chat.find(engine.path) if engine.has_text else None
        self._limits = Limits.of(engine, self.max_tokens)
        self.scheduler = engine.scheduler(
            options.max_batch, options.max_tokens, options.chunk_tokens, options.max_waiting
        )

    @property
    def healthy(self) -> bool:
        return not self.draining and self.fault is None

    def fail(self, fault: BaseException) -> None:
        self.fault = fault
        self.ended.set()

    def begin(self, data: bytes, is_chat: bool, began: float, loop: asyncio.AbstractEventLoop) -> Reply:
        """Queue what the body ``data`` asks for; ApiError for what cannot be. For `workers`: a long prompt takes long.

        ``began``: when the request came, by `time.perf_counter`. ``loop``: where the reply will run.
        """
        body = fields.parse(data, self.options.max_body)
        prompts, asked = self._chat(body) if is_chat else self._completion(body)
        requests = [self._request(ids, asked, is_chat) for ids in prompts]
        running = Running(asked, sum(map(len, prompts)), self.metrics, began, loop, self.fail)
        count = len(requests) * asked.n
        try:
            for index in range(count):
                self._submit(requests[index // asked.n], index, running)
        except ApiError:
            running.cancel()
            raise
        words = Words(self.options.name, is_chat, asked.token_ids, asked.include_usage)
        return Reply(running, words, count)

    def _completion(self, body: dict[str, object]) -> tuple[list[list[int]], Asked]:
        prompts, asked = fields.completion(body)
        self._require(asked)
        try:
            return [encode(self.engine, p) for p in prompts], asked
        except UsageError as e:
            raise refused(e, "prompt") from e

    def _chat(self, body: dict[str, object]) -> tuple[list[list[int]], Asked]:
        messages, asked = fields.chat(body)
        self._require(asked)
        if self._template is None:
            raise invalid("The model of this engine has no chat template: use /v1/completions.", "messages")
        text = self._template.prompt(messages)
        # what a template writes has its special tokens already
        return [self.engine.text.tokenizer.encode(text, add_special_tokens=False).ids], asked

    def _require(self, asked: Asked) -> None:
        if asked.model not in (None, self.options.name):
            message = f"There is no model {asked.model[:200]!r} here, only {self.options.name!r}."
            raise ApiError(404, message, "model", "model_not_found")
        if not self.engine.has_text and (asked.stops or not asked.token_ids):
            raise invalid("The engine has no tokenizer: ask with return_token_ids and without stop.")

    def _request(self, ids: list[int], asked: Asked, is_chat: bool) -> Request:
        longest = self.max_tokens if asked.max_new_tokens is None else asked.max_new_tokens
        request = Request(ids, longest, asked.sampling, 0, asked.stop_token_ids)
        try:
            self._limits.check(request)
        except (UsageError, ResourceError) as e:
            too_long = isinstance(e, ResourceError) or len(ids) > self.max_tokens
            error = refused(e, "messages" if is_chat else "prompt")
            error.code = "context_length_exceeded" if too_long else None
            raise error from e
        return request

    def _submit(self, request: Request, index: int, running: Running) -> None:
        """``index`` counts the answers to a request; each draws its own random numbers."""
        if not self.healthy:
            raise shutting_down()
        try:
            running.add(
                self.scheduler.submit(
                    request.prompt,
                    request.max_new_tokens,
                    request.sampling,
                    request.stop,
                    index,
                    running.on_token(index),
                )
            )
        except ResourceError as e:
            raise queue_full(e) from e
        except UsageError as e:  # not the request, which has been checked: the scheduler has ended
            if not self.draining:
                self.fail(e)
            raise shutting_down() from e
