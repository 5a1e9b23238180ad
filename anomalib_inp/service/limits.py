# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""What a service refuses: uploads that are too large or slow, more work than waits, changes by strangers."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
T = TypeVar("T")

LOCAL = {"127.0.0.1", "::1", "localhost"}
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers by which a proxy on this computer says that somebody else asks."""


class RefusedError(Exception):
    """A request that is refused.

    Attributes:
        status: HTTP status.
        reason: One word for what was refused, for counting.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class LimitUploads:
    """Refuses request bodies that are too large, before they are read, or that come too slowly.

    Args:
        app: The application.
        most: Bytes.
        seconds: How long a body may take to come in.
        refused: Told of each that is refused, by the reason.
    """

    def __init__(self, app: App, most: int, seconds: float, refused: Callable[[str], None]) -> None:
        self.app = app
        self.most = most
        self.seconds = seconds
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count its bytes as they come."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name == b"content-length"}
        announced = headers.get(b"content-length", b"0")
        too_large = RefusedError(413, "upload", f"A request may have {self.most} bytes.")
        if announced.isdigit() and int(announced) > self.most:
            await self._refuse(too_large, send)
            return
        loop, count, started, refused = asyncio.get_running_loop(), 0, False, list[RefusedError]()
        ends, complete, gone = loop.time() + self.seconds, False, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal count, complete, gone
            if complete:  # what comes behind the body is the client going away, whenever that is
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, ends - loop.time()))
            except asyncio.TimeoutError:
                refused.append(RefusedError(408, "slow", f"The request did not come in within {self.seconds:g} s."))
                raise refused[0] from None
            gone = message["type"] == "http.disconnect"
            complete = gone or not message.get("more_body", False)
            count += len(message.get("body", b""))
            if count > self.most:
                refused.append(too_large)
                raise too_large
            return message

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if refused and not started:  # whatever the application makes of the error
                return
            started = True
            await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if not refused and not gone:  # whoever left in the middle of an upload is told nothing
                raise
        if refused and not started:
            await self._refuse(refused[0], send)

    async def _refuse(self, refused: RefusedError, send: Send) -> None:
        self.refused(refused.reason)
        body = f'{{"detail":"{refused}"}}'.encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class BoundedQueue:
    """Threads that work on images, and a bound to how many may wait.

    Args:
        threads: Images that are worked on at a time.
        most: Images that wait or are worked on.
        seconds: How long an answer may take.
    """

    def __init__(self, threads: int, most: int, seconds: float) -> None:
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="inspector")
        self.most = most
        self.seconds = seconds
        self.length = 0

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken."""
        return self.length >= self.most

    async def run(self, tasks: list[Callable[[], T]]) -> list[T]:
        """Run tasks; all of a request are taken, or none.

        Raises:
            RefusedError: There is no room for them, or they took too long; what has not begun is not done then.
        """
        if len(tasks) > self.most:
            raise RefusedError(413, "upload", f"At most {self.most} images are taken in one request.")
        if self.length + len(tasks) > self.most:
            raise RefusedError(429, "queue", "Too many images are waiting: ask again in a second.")
        loop = asyncio.get_running_loop()
        futures = []
        for task in tasks:
            self.length += 1
            future: Future[T] = self.pool.submit(task)
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._done))
            futures.append(future)
        waiting = asyncio.gather(*map(asyncio.wrap_future, futures))
        try:
            return list(await asyncio.wait_for(waiting, self.seconds))
        except asyncio.TimeoutError:
            for future in futures:
                future.cancel()
            raise RefusedError(504, "timeout", f"No answer within {self.seconds:g} s.") from None

    def _done(self) -> None:
        self.length -= 1


def check_allowed(token: str, given: str | None, client: str | None, headers: MutableMapping[str, str] | Any) -> None:
    """Refuse a change of somebody who may not make it.

    Args:
        token: What changes need; empty: they come from this computer.
        given: The ``Authorization`` header, or the token itself.
        client: Address of who asks.
        headers: Headers of the request.

    Raises:
        RefusedError: The token is another one; or there is none, and the request comes from elsewhere, through a proxy,
            or from a page of another host in a browser on this computer.
    """
    if token:
        sent = (given or "").removeprefix("Bearer ").strip()
        if not secrets.compare_digest(sent.encode(), token.encode()):
            raise RefusedError(401, "token", "Changes need the token of this service: Authorization: Bearer TOKEN.")
        return
    host = str(headers.get("host", "")).rpartition("]")[0].lstrip("[") or str(headers.get("host", "")).partition(":")[0]
    local = client in LOCAL and host in LOCAL and not any(headers.get(name) for name in FORWARDED)
    origin = str(headers.get("origin") or "")
    own = not origin or origin.partition("://")[2] == str(headers.get("host", ""))
    if not (local and own):
        msg = "Without a token, changes are made on the service's own computer alone: start it with --token."
        raise RefusedError(403, "stranger", msg)
