"""Secrets at rest: encrypted where the operator gives a master key.

The only module that imports ``cryptography``. AES-256-GCM; each secret is bound to its place, so
that a sealed text moved to another row cannot be opened there.
"""

from __future__ import annotations

import base64
import secrets

from chucky.errors import ChuckyError

_SEALED = "aes256gcm:"
_NONCE_BYTES = 12


class Cipher:
    """Seals and opens secrets with a master key, or leaves them as they are without one."""

    def __init__(self, master_key: str | None) -> None:
        """Take the master key: 64 hexadecimal digits."""
        self._key = None if master_key is None else bytes.fromhex(master_key)

    def seal(self, secret: str, place: str) -> str:
        """The text to be stored for a secret.

        Args:
            secret: The secret; ASCII, not beginning like a sealed text.
            place: Where it is stored: table and key of its row.
        """
        if self._key is None:
            return secret
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = AESGCM(self._key).encrypt(nonce, secret.encode(), place.encode())
        return _SEALED + base64.b64encode(nonce + sealed).decode()

    def open(self, stored: str, place: str) -> str:
        """The secret that :meth:`seal` made a stored text of.

        Raises:
            ChuckyError: It is sealed, and there is no master key or another one.
        """
        if not stored.startswith(_SEALED):
            return stored
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        sealed = base64.b64decode(stored.removeprefix(_SEALED))
        try:
            if self._key is None:
                raise InvalidTag
            nonce, sealed = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return AESGCM(self._key).decrypt(nonce, sealed, place.encode()).decode()
        except InvalidTag:
            raise ChuckyError(
                f"The secret of {place} was sealed with a master key that was not given: set "
                "master_key (CHUCKY_MASTER_KEY) to the one it was stored with.",
                code="STORE_ERROR",
            ) from None
