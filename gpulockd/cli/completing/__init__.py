"""Completion in shells: the files that `gpulockd completion` prints, and the code that makes them of the parsers."""
