"""Says which SDK this is."""

import json
from importlib.metadata import version

import chucky

print(json.dumps({"version": version("chucky-sdk"), "file": chucky.__file__}))
