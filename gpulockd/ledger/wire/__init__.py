"""The transport under the ledger: own connections to one server or a cluster, redis-py where a Sentinel is asked.

`connection` speaks, `opening` dials, `commands` asks again when a connection has broken, `slots` knows who in a cluster
has which keys, `cluster` and `blocking` go there, `by_redis_py` asks a Sentinel, and `trouble` names what can go wrong.
"""
