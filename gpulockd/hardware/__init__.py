"""The GPUs of this host: real ones through NVML, or simulated ones, behind one door (`cards.open_cards`).

This room imports words only, and everything that can block runs in a thread with a deadline.
"""
