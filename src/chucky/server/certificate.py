"""The certificate a server speaks TLS with."""

from __future__ import annotations

import ssl

from chucky.errors import ValidationError
from chucky.server.settings import Settings


def check_certificate(settings: Settings) -> None:
    """Refuse a certificate that cannot be used, before anything is opened.

    Raises:
        ValidationError: It cannot be read, is none, or its key does not fit or has a password.
    """
    if settings.tls_cert is None:
        return

    def refuse_password() -> str:
        raise ValidationError("The tls_key has a password; give a key without one.")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=refuse_password
        )
    except OSError as error:  # SSLError is one
        raise ValidationError(
            f"The certificate tls_cert {str(settings.tls_cert)!r} cannot be used with tls_key "
            f"{str(settings.tls_key)!r} ({error.strerror or error}); both must be PEM and belong "
            "together."
        ) from error
