"""Connections that are open and idle."""

from .errors import RequestError


class ConnectionPool:
    """Lends connections, each to one request at a time."""

    def __init__(self, open_connection, most=8):
        self.open_connection = open_connection
        self.most = most
        self.idle = {}
        self.lent = 0

    def acquire(self, url):
        """An idle connection to the server, or a new one."""
        if self.lent >= self.most:
            raise RequestError("all connections are in use")
        self.lent += 1
        waiting = self.idle.get(url, [])
        return waiting.pop() if waiting else self.open_connection(url)

    def release(self, connection):
        """Takes a connection back."""
        self.lent -= 1
        self.idle.setdefault(connection.url, []).append(connection)

    def close(self):
        for connections in self.idle.values():
            for connection in connections:
                connection.close()
        self.idle.clear()
