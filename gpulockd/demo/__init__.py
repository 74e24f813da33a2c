"""`make run`: the daemon, its store and a small load that contends for the GPUs, all ended together.

Its law: what it has started does not outlive it.
"""

CARDS = "GPULOCKD_DEMO_CARDS"
"""The variable that tells the load the folder of the simulated cards."""
