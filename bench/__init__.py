"""Measurements of gpulockd beside its peers and beside the floor of the machine. Run them with `python -m bench`.

Its law: everything that is compared runs on one private server in one run, in alternating rounds; nothing is compared
with a number from another day.
"""
