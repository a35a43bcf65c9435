"""The one gate to a model: which models there are, what they cost, and every call to them."""
