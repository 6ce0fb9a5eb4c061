"""The server side of HTTP/1.1: between uvicorn, which listens, and the ASGI application."""
