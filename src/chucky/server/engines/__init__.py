"""What answers: each engine turns a user's message into messages of the agent."""
