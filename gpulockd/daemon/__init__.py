"""What runs on a GPU host: the private store, and services that keep one promise each and never import each other.

The daemon starts them in order in one anyio task group and then says READY; a crash in one ends all.
"""
