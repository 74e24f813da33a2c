"""The HTTP API on TCP and on the unix socket, and the page.

Routes stand in one table (`routes.py`); what they need of the daemon is in `backend.py`.
"""
