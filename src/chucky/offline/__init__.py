"""The built-in offline model: Anthropic's Messages API, answered by rules and by scripts.

It needs no key and no network. ``chucky serve`` uses it, and says so, when there is no key;
tests, demos and benchmarks use its scripts. It is no language model and never pretends to be one.

The parts, from the outside in: ``app`` (HTTP), ``delivery`` (one answer as bytes, with delays and
dropped connections), ``model`` (what to answer), ``script`` and ``rules`` (the two ways to find
an answer), ``reply`` and ``events`` (an answer as a message and as a stream). Only ``app``,
``delivery`` and ``listener`` do I/O.
"""
