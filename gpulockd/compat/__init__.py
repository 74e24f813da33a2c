"""Names of other systems' locks, on top of this one: for programs that change an import and nothing else.

Its law: the words and forms are theirs, the facts are the ledger's.
"""
