"""The server put together: every part is made here, once, and handed what it needs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from chucky import wire
from chucky.errors import AuthenticationError, ChuckyError, SessionError, ValidationError
from chucky.listener import MAX_CLOSING_SECONDS, Listener, bind
from chucky.server import auth
from chucky.server.admission import Grant, Policy, admit, turn_limits, user_limits
from chucky.server.auth import Identity
from chucky.server.certificate import check_certificate
from chucky.server.edge.doorkeeper import Doorkeeper
from chucky.server.edge.outlet import OutletProtocol
from chucky.server.edge.rest import RestEdge
from chucky.server.edge.websocket import WebSocketEdge
from chucky.server.engines.messages import MessagesEngine
from chucky.server.ledger import payer
from chucky.server.ledger.accounts import Holder
from chucky.server.ledger.ledger import Ledger
from chucky.server.ledger.operations import Look, Seen
from chucky.server.ledger.reports import usage_report
from chucky.server.ledger.windows import milliseconds
from chucky.server.model.allowance import Allowance
from chucky.server.model.catalog import Catalog
from chucky.server.model.gate import Gate, Provider
from chucky.server.model.providers import Providers
from chucky.server.policy import ProjectPolicy
from chucky.server.projects import Project, ProjectDirectory
from chucky.server.provider import OFFLINE_NOTICE, opening_provider
from chucky.server.reloading import Reloading
from chucky.server.sessions import inquiries
from chucky.server.sessions.archive import Archive
from chucky.server.sessions.capacity import TurnSlots
from chucky.server.sessions.elsewhere import Elsewhere
from chucky.server.sessions.host import Host
from chucky.server.sessions.limits import Limits
from chucky.server.sessions.log import Past
from chucky.server.sessions.mailbox import Outbox
from chucky.server.sessions.past import Resumption
from chucky.server.sessions.postoffice import PostOffice
from chucky.server.sessions.registry import Registry
from chucky.server.sessions.retention import Retention
from chucky.server.sessions.session import Session
from chucky.server.sessions.turn import TurnPayer
from chucky.server.settings import Settings
from chucky.server.store import ServeLock, open_ledger, open_sessions, open_store

logger = logging.getLogger("chucky.server")


class Announce(Protocol):
    """Told once, when the server is ready."""

    def __call__(self, url: str, project_id: str, model_notice: str | None) -> None:
        """Say where the server listens, its default project, and if the offline model answers."""
        ...


def _utc_now() -> datetime:
    return datetime.now(UTC)


async def serve(
    settings: Settings,
    announce: Announce,
    *,
    clock: Callable[[], datetime] = _utc_now,
    reloading: Reloading | None = None,
) -> None:
    """Run the server until it is cancelled; running turns may then end, for a while.

    Args:
        settings: How; see :class:`~chucky.server.settings.Settings`.
        announce: Called once, when connections are accepted.
        clock: Tells the time: for tokens, prices and retired models.
        reloading: Tells when the settings have changed.

    Raises:
        ValidationError: A setting cannot work: the address is in use or may not be bound, the
            database cannot be opened, the model or price table is wrong.
    """
    await asyncio.to_thread(check_certificate, settings)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(await _listen(settings))
        # Files and price tables are read in a thread: a loop that is part of another program
        # must not stand still meanwhile.
        directory, project = await asyncio.to_thread(_open_projects, settings, stack)
        catalog = await asyncio.to_thread(Catalog.load, settings.models)
        providers = Providers.load(
            settings.providers,
            catalog,
            api_key=settings.anthropic_api_key,
            base_url=settings.upstream_url,
        )
        notice = OFFLINE_NOTICE if providers.is_offline else None
        find_key = functools.partial(_provider_key, directory)
        ledger = await _open_ledger(settings, clock, stack)
        archive = await _open_archive(settings, ledger, stack)
        async with opening_provider(settings, providers, catalog, find_key) as provider:
            service = Service(
                settings, directory, catalog, providers, provider, ledger, archive, clock
            )
            await service.run(
                listener, lambda url: announce(url, project.project_id, notice), reloading
            )


async def _open_ledger(
    settings: Settings, clock: Callable[[], datetime], stack: contextlib.ExitStack
) -> Ledger | None:
    """Open the ledger, and end what a server that died left open in it."""
    if not settings.ledger:
        logger.warning("the ledger is off: budgets are not kept and nothing is booked")
    if not settings.ledger and not settings.session_log:
        return None

    def clock_ms() -> int:
        return milliseconds(clock())

    rows = await asyncio.to_thread(open_ledger, settings, clock_ms)
    stack.callback(rows.close)
    ledger = Ledger(rows, is_shared=not isinstance(settings.db, Path))
    if ended := await ledger.recover():
        logger.warning("%d reservations of a server that died were booked as estimates", ended)
    return ledger


async def _open_archive(
    settings: Settings, ledger: Ledger | None, stack: contextlib.ExitStack
) -> Archive | None:
    """Open the sessions that are kept, and end the turns of a server that died."""
    if not settings.session_log or ledger is None:
        return None
    kept = await asyncio.to_thread(open_sessions, settings)
    stack.callback(kept.close)
    archive = Archive(kept, ledger)
    if ended := await archive.recover():
        logger.warning("%d turns of a server that died were ended", ended)
    return archive


def _provider_key(directory: ProjectDirectory, project_id: str, provider: str) -> str | None:
    project = directory.lookup(project_id)
    return None if project is None else project.provider_key(provider)


def _open_projects(
    settings: Settings, stack: contextlib.ExitStack
) -> tuple[ProjectDirectory, Project]:
    """Open the database and return its projects, and the default one among them."""
    if isinstance(settings.db, Path):
        stack.enter_context(ServeLock.acquire(settings.db))
    store = stack.enter_context(contextlib.closing(open_store(settings)))
    project = store.ensure_default_project()
    return ProjectDirectory(store), project


class Service:
    """All parts of a running server."""

    def __init__(
        self,
        settings: Settings,
        directory: ProjectDirectory,
        catalog: Catalog,
        providers: Providers,
        provider: asyncio.Task[Provider],
        ledger: Ledger | None,
        archive: Archive | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._ledger = ledger
        self._archive = archive
        self._retention: Retention | None = None
        if archive is not None:
            self._retention = Retention(
                archive.kept, self._retention_days, lambda: milliseconds(clock())
            )
        self._directory = directory
        self._providers = providers
        self._provider = provider
        self._clock = clock
        self._catalog = catalog
        self._engine = MessagesEngine(Gate(provider, clock), attempts=settings.model_attempts)
        self._registry = Registry(
            most=settings.max_sessions,
            sessions_per_user=settings.max_sessions_per_user,
            policy_of=self._policy_of,
        )
        self._turn_slots = TurnSlots(settings.max_running_turns)
        self._host = Host(self._registry, grace_seconds=settings.reconnect_grace_seconds)
        self._logged_notices: set[str] = set()
        self._is_stopping = False
        self._edge = WebSocketEdge(
            self._doorkeeper(),
            self._registry,
            self._host,
            idle_timeout_seconds=settings.idle_timeout_seconds,
        )
        self._apply(settings)
        directory.on_change(self._stop_revoked)

    def _apply(self, settings: Settings) -> None:
        """Go by settings from now on; sessions that are open keep their own limits."""
        self._settings = settings
        self._limits = Limits(
            turn_timeout_seconds=settings.turn_timeout_seconds,
            tool_timeout_seconds=settings.tool_timeout_seconds,
            queued_inputs=settings.max_queued_inputs,
            frame_bytes=settings.max_frame_bytes,
            stall_timeout_seconds=settings.stall_timeout_seconds,
            tail_seconds=settings.reconnect_grace_seconds,
            evict_after_seconds=settings.evict_after_seconds,
        )
        self._policy = Policy(
            self._catalog,
            allowed_betas=frozenset(settings.allowed_betas),
            succession=settings.succession,
        )
        self._registry.most = settings.max_sessions
        self._registry.sessions_per_user = settings.max_sessions_per_user
        self._turn_slots.most = settings.max_running_turns
        self._host.grace_seconds = settings.reconnect_grace_seconds
        self._edge.idle_timeout_seconds = settings.idle_timeout_seconds

    async def _keep_reloading(self, reloading: Reloading) -> None:
        while True:
            self._apply(await reloading.next(self._settings))
            await self._directory.refresh()

    async def run(
        self,
        listener: socket.socket,
        ready: Callable[[str], None],
        reloading: Reloading | None = None,
    ) -> None:
        """Serve connections of ``listener`` until told to stop."""
        server = Listener(
            self._app(),
            lambda: ready(_url(self._settings, listener)),
            ws=OutletProtocol,
            # Deflate costs 65 KB of memory per socket and most of the speed.
            ws_per_message_deflate=False,
            ws_max_size=self._settings.max_frame_bytes,
            ssl_certfile=self._settings.tls_cert,
            ssl_keyfile=self._settings.tls_key,
        )

        serving = asyncio.create_task(server.serve(sockets=[listener]))
        keeping = [asyncio.create_task(self._directory.run())]
        if self._retention is not None:
            keeping.append(asyncio.create_task(self._retention.run()))
        if reloading is not None:
            keeping.append(asyncio.create_task(self._keep_reloading(reloading)))
        if self._ledger is not None:
            keeping.append(asyncio.create_task(self._ledger.run()))
        if self._archive is not None and self._archive.is_shared:
            post_office = PostOffice(self._archive, self._host.receive)
            keeping += [asyncio.create_task(each.run()) for each in (self._archive, post_office)]
        needed = {serving, *keeping}
        running: set[asyncio.Task[Any]] = {*needed, self._provider}
        try:
            while needed <= running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    each.result()  # a part that failed ends the server
        finally:
            await self._stop_all()
            await self._host.close()
            server.should_exit = True
            for each in keeping:
                each.cancel()
            await asyncio.wait(needed)

    def _doorkeeper(self) -> Doorkeeper:
        return Doorkeeper(
            authenticate=self._authenticate,
            open_session=self._open_session,
            admit=self._admit,
            recall=self._recall,
            holds=self._holds,
            inquire=functools.partial(inquiries.answer, self._archive),
        )

    def _app(self) -> Starlette:
        rest = RestEdge(authenticate=self._authenticate, usage=self._usage)
        return Starlette(
            routes=[
                Route("/healthz", self._health),
                *rest.routes,
                Route("/ws", _not_a_websocket),
                WebSocketRoute("/ws", self._edge.endpoint),
                WebSocketRoute("/{path:path}", _wrong_path),
            ]
        )

    async def _authenticate(self, token: str) -> Identity:
        try:
            return auth.authenticate(token, self._directory.lookup, self._clock().timestamp())
        except AuthenticationError as error:
            # The key may be younger than the last look at the store: `chucky projects create`
            # and `chucky token` work while the server runs, and their token is used at once.
            if error.reason != "token_signature":
                raise
            await self._directory.refresh()
        return auth.authenticate(token, self._directory.lookup, self._clock().timestamp())

    def _open_session(self, identity: Identity, outbox: Outbox) -> Session:
        return Session(
            identity=identity,
            outbox=outbox,
            engine=self._engine,
            limits=self._limits,
            recheck=self._recheck,
            open_payer=self._open_payer,
            turn_slots=self._turn_slots,
            keeper=self._archive,
            follow=self._follow,
        )

    def _follow(self, past: Past, grant: Grant) -> Elsewhere:
        assert self._archive is not None
        return Elsewhere(self._archive, past, grant.tools)

    async def _holds(self, session_id: str) -> bool:
        return self._archive is None or await self._archive.holds(session_id)

    async def _recall(self, session: Session, asked: Resumption, *, follows: bool) -> Past:
        if self._archive is None:
            raise inquiries.session_log_off()

        async def take_over(session_id: str) -> None:
            await self._registry.take_over(session.identity, session_id)
            session.session_id = session_id  # whoever resumes it next finds it here

        return await self._archive.recall(session.identity, asked, take_over, follows=follows)

    def _open_payer(
        self, session: Session, turn_id: str, end_turn: Callable[[ChuckyError], None]
    ) -> TurnPayer:
        if self._ledger is None or not self._settings.ledger:
            calls = None if session.grant is None else session.grant.max_turns
            return payer.FreePayer(self._ledger, session.session_id, Allowance(calls))
        identity = session.identity
        return payer.TurnPayer(
            self._ledger,
            Holder(identity.project_id, identity.user_id, session.session_id, turn_id),
            turn_limits(identity, self._policy_of(identity), session.grant),
            min_output_tokens=self._settings.min_output_tokens,
            end_turn=end_turn,
        )

    def _policy_of(self, identity: Identity) -> ProjectPolicy:
        # Without its project nothing is allowed, whatever the token said when it was judged.
        project = self._directory.lookup(identity.project_id)
        return ProjectPolicy(is_damaged=True) if project is None else project.policy

    def _retention_days(self) -> dict[str, int]:
        return {
            project.project_id: project.policy.retention_days
            for project in self._directory
            if project.policy.retention_days is not None
        }

    async def _usage(self, identity: Identity) -> dict[str, Any]:
        if self._ledger is None or not self._settings.ledger:
            raise ChuckyError(
                "This server keeps no budgets (its setting 'ledger' is off).",
                code="VALIDATION_ERROR",
                reason="ledger_off",
            )
        holder = Holder(identity.project_id, identity.user_id)
        [seen] = await self._ledger.ask(Look(holder, user_limits(identity)))
        assert isinstance(seen, Seen)
        return usage_report(seen.standings)

    def _admit(self, identity: Identity, options: Mapping[str, Any]) -> Grant | ChuckyError:
        grant = admit(
            identity, self._policy_of(identity), options, self._policy, self._clock().date()
        )
        if isinstance(grant, Grant):
            grant = self._with_provider(grant, identity.project_id)
        for notice in grant.notices if isinstance(grant, Grant) else ():
            if notice not in self._logged_notices:
                self._logged_notices.add(notice)
                logger.warning("%s", notice)
        return grant

    def _with_provider(self, grant: Grant, project_id: str) -> Grant | ChuckyError:
        """Refuse models nobody serves, and say so if the offline model answers for them."""
        is_offline = False
        try:
            for model in filter(None, (grant.model, grant.fallback_model)):
                key = _provider_key(self._directory, project_id, model.provider)
                is_offline |= self._providers.serves_offline(model, key)
        except ChuckyError as error:
            return error
        return replace(grant, notices=(*grant.notices, OFFLINE_NOTICE)) if is_offline else grant

    async def _health(self, _request: Request) -> Response:
        """Whether sessions can begin; the reason why not is for the log."""
        if self._is_stopping:
            return JSONResponse({"status": "stopping"}, status_code=503)
        if self._directory.failure is not None:
            return JSONResponse({"status": "the database cannot be read"}, status_code=503)
        return JSONResponse({"status": "ok"})

    def _recheck(self, identity: Identity) -> None:
        auth.check_again(identity, self._directory.lookup, self._clock().timestamp())

    def _stop_revoked(self) -> None:
        """Stop the sessions whose key or project is no longer good."""
        for attached in self._registry:
            try:
                auth.check_key(attached.identity, self._directory.lookup)
            except ChuckyError as error:
                attached.stop(error)

    async def _stop_all(self) -> None:
        """Let every running turn end with a result before the connections are closed."""
        self._is_stopping = True
        stopping = SessionError(
            "The server is stopping; try again in a moment.", reason="server_stopping"
        )
        self._registry.close(stopping)
        patience_seconds = self._settings.drain_seconds
        if busy := sum(attached.is_busy for attached in self._registry):
            logger.warning(
                "stopping: %d turns may end within %g s; the next signal ends them at once",
                busy,
                patience_seconds,
            )
        for attached in self._registry:
            attached.stop(stopping, patience_seconds=patience_seconds)
        try:
            async with asyncio.timeout(patience_seconds + MAX_CLOSING_SECONDS):
                await self._registry.wait_empty()
        except TimeoutError:
            logger.warning("%d sessions did not end in time", len(self._registry))


async def _listen(settings: Settings) -> socket.socket:
    try:
        return await bind(settings.host, settings.port)
    except OSError as error:
        raise ValidationError(
            f"Cannot listen on {settings.host}:{settings.port} ({_reason(error)}). Choose "
            "another --host or --port; port 0 takes a free one."
        ) from error


def _reason(error: OSError) -> str:
    # The event loop adds its own words to those of the system; look-ups have numbers of their own.
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno)


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "wss" if settings.tls_cert else "ws"
    return f"{scheme}://{host}:{listener.getsockname()[1]}/ws"


async def _wrong_path(websocket: WebSocket) -> None:
    # A refused upgrade would be HTTP 403, which reads as if the token were bad.
    await websocket.accept()
    sentence = "There is nothing at this path; connect to /ws."
    await websocket.send_text(
        wire.error_frame(sentence, code="VALIDATION_ERROR", reason="wrong_path")
    )
    await websocket.close(1008, "wrong_path")


async def _not_a_websocket(_request: Request) -> Response:
    return PlainTextResponse(
        "This address speaks WebSocket: connect with the Chucky SDK.\n",
        status_code=426,
        headers={"Upgrade": "websocket"},
    )
