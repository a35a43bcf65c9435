# fmt: off
# mypy: ignore-errors
# ruff: noqa

await client.close()
