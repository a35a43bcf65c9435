# fmt: off
# mypy: ignore-errors
# ruff: noqa

result = await client.prompt('What is the capital of France?')
print(result.result)  # "The capital of France is Paris."
print(result.total_cost_usd)  # 0.0012
