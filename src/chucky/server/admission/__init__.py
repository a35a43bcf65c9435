"""What a session may do: its token, its project, what the client asks for, what the server has.

A pure decision: nothing here does I/O or looks at a clock. Precedence: the token's ``sdkConfig``
replaces the client's options; then the token's ``permissions`` and the project's policy limit
what is left.
"""

from chucky.server.admission.budgets import turn_limits, user_limits
from chucky.server.admission.decision import admit
from chucky.server.admission.grant import Grant, Policy

__all__ = ["Grant", "Policy", "admit", "turn_limits", "user_limits"]
