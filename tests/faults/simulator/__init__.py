"""The protocol under virtual time: programs, guards, a store and a network that fails, all from one seed.

The ledger is the plain model that the Lua scripts are held to; the guard is the product's own; clients and the daemon's
round are written small after the product's. What happens is written as the notes that the judge reads.
"""
