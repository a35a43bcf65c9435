"""The self-hosted service: everything behind the WebSocket."""
