"""Backups: one file that has a fleet's configuration and a pool's past, and what is brought back from it.

Its law: a file is whole or refused, it is for its owner alone, and nothing here ever touches a ticket or a lease.
"""
