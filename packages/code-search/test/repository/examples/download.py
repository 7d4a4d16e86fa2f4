"""Example: download a file with a session that keeps its connections open and sends requests again that failed."""

from src.http import ConnectionPool, Session


def download(url, file):
    """Download a file over a session with open connections."""
    session = Session(ConnectionPool(open_connection))
    with open(file, "wb") as output:
        output.write(session.request("GET", url).body)
    session.close()
