"""Processes of this host as the kernel shows them: who one is, whether it lives, what descends from it, how it ends.

Its law: a pid alone is never trusted. A process is its pid and its start time, and a signal goes through a pidfd
whose start time was compared while the pid could not change hands.
"""
