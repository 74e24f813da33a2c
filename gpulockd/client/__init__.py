"""What a program uses: sessions that keep it alive, leases that it holds, and the waiting in between.

Its law: nothing connects, starts a thread or a loop before the first request; it imports words and ledger only.
"""
