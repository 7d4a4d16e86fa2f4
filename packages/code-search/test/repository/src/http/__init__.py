"""Requests over connections that stay open: sessions, a connection pool, retries."""

from .errors import RequestError, StatusError, TimeoutError
from .pool import ConnectionPool
from .retry import retry_delays
from .session import Session

__all__ = ["ConnectionPool", "RequestError", "Session", "StatusError", "TimeoutError", "retry_delays"]
