"""Sessions keep connections to a server open between requests."""

from .retry import retry_delays
from .errors import RequestError


class Session:
    """Sends requests over connections that it keeps open."""

    def __init__(self, pool, timeout_s=30):
        self.pool = pool
        self.timeout_s = timeout_s

    def request(self, method, url, body=None):
        """Sends one request and waits for its answer."""
        connection = self.pool.acquire(url)
        try:
            return connection.send(method, url, body, self.timeout_s)
        finally:
            self.pool.release(connection)

    def close(self):
        """Closes all connections that are open."""
        self.pool.close()
