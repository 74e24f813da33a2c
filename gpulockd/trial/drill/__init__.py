"""A recovery exercise: faults that are really done to a private daemon, each measured against what is promised.

Its law: nothing of a running system is touched, two holders at once would be seen by the kernel, and nothing that the
exercise has started outlives it.
"""
