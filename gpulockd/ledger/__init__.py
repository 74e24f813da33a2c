"""The only door to lock state: keys, one Lua script per verb, and the connections they travel on.

Its law: nothing outside this room writes a key of a pool, and inside it only Lua does.
"""
