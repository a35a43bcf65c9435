"""Hears what other servers have to tell about the sessions that run here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from chucky.errors import ChuckyError
from chucky.server.sessions.archive import Archive
from chucky.server.sessions.mail import Mail

logger = logging.getLogger("chucky.server")

# How often is looked for mail.
LOOK_SECONDS = 0.2


class PostOffice:
    """Hands out the mail of this server. Each is handed out once, and then deleted."""

    def __init__(self, archive: Archive, receive: Callable[[Mail], Awaitable[None]]) -> None:
        """Prepare.

        Args:
            archive: Where the mail is.
            receive: Is told each.
        """
        self._archive = archive
        self._receive = receive
        self._handed_out: set[int] = set()

    async def run(self) -> None:
        """Look for mail until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._hand_out()
            except ChuckyError as error:
                logger.warning("the mail of other servers cannot be read: %s", error)

    async def _hand_out(self) -> None:
        found = await self._archive.mail()
        mail_ids = [mail_id for mail_id, _ in found if mail_id not in self._handed_out]
        if not mail_ids:
            return
        # Before it is done: what cannot be done must not come again and again.
        self._handed_out.update(mail_ids)
        self._archive.delete_mail(mail_ids).add_done_callback(
            lambda _deleted: self._handed_out.difference_update(mail_ids)
        )
        for mail_id, mail in found:
            if mail_id in mail_ids:
                await self._hand(mail)

    async def _hand(self, mail: Mail) -> None:
        try:
            if mail.kind != "attached" or await self._is_seated(mail):
                await self._receive(mail)
        except ChuckyError as error:
            logger.warning("session %s: %s was not done: %s", mail.session_id, mail.kind, error)
        except Exception:  # a fault of ours must not keep the other sessions from their mail
            logger.exception("session %s: %s was not done", mail.session_id, mail.kind)

    async def _is_seated(self, mail: Mail) -> bool:
        """Whether the client is still there; it may be here again."""
        session = await self._archive.session(mail.session_id)
        return session is not None and session.seat == mail.read()["seat"]
