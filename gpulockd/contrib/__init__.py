"""What ties gpulockd to other libraries, one module each: Celery, ASGI (FastAPI, Starlette), torch, pytest.

Its law: each imports its library, and nothing else of ours imports these.
"""
