"""Protocol in, protocol out: no money, no model, no SQL."""
