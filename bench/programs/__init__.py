"""What runs in processes of its own: peers, clients, a provider.

Workers read a JSON object from each line of their standard input, do it, and print a JSON object.
"""
