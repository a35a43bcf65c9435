"""Money and compute: who may spend how much, what was spent, and what is being spent now.

``docs/ledger.md`` has the rules and the invariants.
"""
