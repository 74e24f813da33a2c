"""The ways of telling people: each takes a whole message and says whether it has arrived."""
