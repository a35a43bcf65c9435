"""What servers that share a database tell each other about the sessions they run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["attached", "detached", "left", "taken_over", "interrupt", "answer"]


@dataclass(frozen=True, slots=True)
class Mail:
    """What the server that runs a session is told by another.

    ``attached``    its client follows the turn there now, on the connection ``seat``
    ``detached``    the connection ``seat`` was lost; the client may come back
    ``left``        the client on ``seat`` has closed the session
    ``taken_over``  another client goes on with the session that was opened as ``epoch``
    ``interrupt``   the client wants the turn ``turnId`` to end
    ``answer``      what the client's tool returned as ``result`` of the call ``callId``

    Attributes:
        session_id: The session.
        kind: What it is about.
        body: The rest, as JSON text, and whose session it is.
    """

    session_id: str
    kind: Kind
    body: str

    @classmethod
    def write(cls, session_id: str, kind: Kind, **more: Any) -> Mail:
        """Make one."""
        return cls(session_id, kind, json.dumps(more, separators=(",", ":")))

    def read(self) -> dict[str, Any]:
        """What it says."""
        said = json.loads(self.body)
        assert isinstance(said, dict)
        return said
