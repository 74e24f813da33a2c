"""The real client against the real Lua under a simulated network, in virtual time; a seed plays the same again.

Real: all of `gpulockd.client` and `gpulockd.ledger` (locks, sessions, tables, the keepalive thread's code, doorbells,
the portal of threads, the wire, redis-py), asyncio's event loop and tasks, and a Valkey with the library of functions.
In its place: threads are greenlets, of which one runs until it waits; a selector's wait, `Event.wait` and a blocking
`recv` wait in virtual time; sockets end in the harness; the clocks of the processes and of the server are the world's.

What is not here: threads that are interrupted between two bytecodes (they change places only where they wait), a
daemon and its guard, Sentinel and Cluster, TLS, and forks. The model in `tests/faults/simulator` has the guard.
"""
