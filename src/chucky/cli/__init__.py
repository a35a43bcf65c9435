"""The command ``chucky``: the server and what an operator needs beside it."""
