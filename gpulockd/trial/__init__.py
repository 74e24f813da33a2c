"""A trial: the same tasks under two configurations, on private daemons and stores, and what may be concluded from it.

Its law: nothing of a running system is touched, what was not exercised is not called validated, and what a trial has
started does not outlive it.
"""
