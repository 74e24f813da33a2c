"""Faults on real processes, and the judge of what happened: `make faults`."""
