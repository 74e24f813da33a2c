"""Alerts, decided: conditions, rules, what is true now, and what must be said. Pure; the daemon obeys.

No clock, no I/O and no settings: all that a decision needs is handed to it.
"""
