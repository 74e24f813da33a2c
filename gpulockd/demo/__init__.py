"""`make run`: the daemon, its store and a small load that contends for the GPUs, all ended together.

Its law: what it has started does not outlive it.
"""
