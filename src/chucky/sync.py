"""The client for scripts and notebooks: the same methods, which wait instead of being awaited.

Nothing is implemented a second time. Each client here has an asynchronous twin and an event loop
in a thread of its own, on which every call runs; that is also where tools run that are coroutine
functions. ::

    from chucky.sync import Chucky

    with Chucky() as client:
        print(client.prompt("What is the capital of France?").result)
        for event in client.stream("Write a poem about coding"):
            ...
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import wait
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

import chucky.client
import chucky.session
from chucky.loopthread import LoopThread
from chucky.options import ChuckyOptions

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Twin = TypeVar("Twin")

_EXIT_SECONDS = 5.0


class _Stream(Protocol[T_co]):
    """What can be iterated asynchronously, and left early."""

    def __anext__(self) -> Coroutine[Any, Any, T_co]:
        """Wait for the next item."""

    def aclose(self) -> Coroutine[Any, Any, None]:
        """Leave it."""


class _Blocking(ABC, Generic[Twin]):
    """Something with an asynchronous twin, and the thread on whose loop the twin lives."""

    _thread: LoopThread
    _twin: Twin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End what the twin does."""


def _waiting(
    method: Callable[Concatenate[Twin, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Blocking[Twin], P], T]:
    """The method of the twin, as one that returns when it is done."""

    @functools.wraps(method)
    def call(self: _Blocking[Twin], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._twin, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[Twin, P], _Stream[T]],
) -> Callable[Concatenate[_Blocking[Twin], P], Generator[T, None, None]]:
    """The method of the twin, as one that returns a plain iterator."""

    @functools.wraps(method)
    def call(
        self: _Blocking[Twin], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T, None, None]:
        return _each(self, method(self._twin, *args, **kwargs))

    return call


def _each(owner: _Blocking[Any], stream: _Stream[T]) -> Generator[T, None, None]:
    end = object()
    stepping: asyncio.Task[Any] | None = None

    async def step() -> Any:
        nonlocal stepping
        stepping = asyncio.current_task()
        return await anext(stream, end)

    async def leave() -> None:
        # Ctrl-C may come in the moment in which a step has begun and nobody waits for it yet.
        if stepping is not None and not stepping.done():
            stepping.cancel()
            await asyncio.wait([stepping])
        await stream.aclose()

    thread = owner._thread
    try:
        while (item := thread.run(step())) is not end:
            yield item
    finally:
        # Whoever leaves early waits for nothing: this may also be the garbage collector.
        thread.submit_if_running(leave)


def _opening(
    method: Callable[Concatenate[chucky.client.Chucky, P], chucky.session.Session],
) -> Callable[Concatenate[Chucky, P], Session]:
    """The method of the twin, with a session that has a twin as well."""

    @functools.wraps(method)
    def call(self: Chucky, /, *args: P.args, **kwargs: P.kwargs) -> Session:
        return Session(self, method(self._twin, *args, **kwargs))

    return call


def _constructed_like(
    init: Callable[Concatenate[Any, P], None],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give a constructor that passes everything on the signature of another one."""
    return functools.wraps(init)


class Session(_Blocking[chucky.session.Session]):
    """A conversation: :meth:`send` a message, then iterate :meth:`stream` for the answer.

    Made by ``client.create_session()``; see :class:`chucky.Session`. May be used from several
    threads.
    """

    def __init__(self, client: Chucky, twin: chucky.session.Session) -> None:
        """Wrap a session of a client's twin."""
        self._client = client  # which closes its sessions when nobody holds it any more
        self._thread = client._thread
        self._twin = twin

    @property
    def session_id(self) -> str:
        """The session's id, as the server gave it; ``''`` before the first connection."""
        return self._twin.session_id

    send = _waiting(chucky.session.Session.send)
    stream = _iterating(chucky.session.Session.stream)
    receive = _iterating(chucky.session.Session.receive)
    history = _waiting(chucky.session.Session.history)
    interrupt = _waiting(chucky.session.Session.interrupt)
    close = _waiting(chucky.session.Session.close)


class Chucky(_Blocking[chucky.client.Chucky]):
    """A client of a Chucky server whose methods wait; see :class:`chucky.Chucky`.

    May be used from several threads. As a context manager it closes itself, and so it does when
    it is dropped and when the program ends.
    """

    @_constructed_like(chucky.client.Chucky.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._thread = LoopThread()
        self._twin = chucky.client.Chucky(*args, **kwargs)
        _open_clients.add(self)
        dropped = weakref.finalize(self, _close_soon, self._twin, self._thread)
        dropped.atexit = False  # then there is time to wait for it

    @property
    def options(self) -> ChuckyOptions:
        """What the client was made with."""
        return self._twin.options

    prompt = _waiting(chucky.client.Chucky.prompt)
    stream = _iterating(chucky.client.Chucky.stream)
    list_sessions = _waiting(chucky.client.Chucky.list_sessions)

    create_session = _opening(chucky.client.Chucky.create_session)
    resume_session = _opening(chucky.client.Chucky.resume_session)

    def close(self) -> None:
        """Close every session that is still open. May be called more than once."""
        if self._thread.is_running:
            self._thread.run(self._twin.close())
            self._thread.stop()


_open_clients: weakref.WeakSet[Chucky] = weakref.WeakSet()


def _close_soon(twin: chucky.client.Chucky, thread: LoopThread) -> None:
    """Close what nobody holds any more, without waiting: any thread may collect garbage."""
    if closing := thread.submit_if_running(twin.close):
        closing.add_done_callback(lambda _closing: thread.stop(wait=False))


@atexit.register
def _close_all() -> None:
    """Say goodbye to the servers before the threads end with the program."""
    closings = [client._thread.submit_if_running(client._twin.close) for client in _open_clients]
    wait([closing for closing in closings if closing], _EXIT_SECONDS)
