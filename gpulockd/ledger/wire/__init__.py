"""The transport under the ledger: own connections to one server, and redis-py's where there are many.

`connection` speaks, `opening` dials, `commands` asks again when a connection has broken, `by_redis_py` does the same
through redis-py for Sentinel and Cluster, and `trouble` names what can go wrong.
"""
