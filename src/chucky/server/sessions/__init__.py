"""One conversation: its turns, its tool calls, and the register of all that are open."""
