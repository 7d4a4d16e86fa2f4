"""Answers that were received before."""

from ..http.errors import RequestError


class ResponseCache:
    """Keeps the answers of requests for as long as the server allows."""

    def __init__(self, clock, most=1000):
        self.clock = clock
        self.most = most
        self.entries = {}

    def lookup(self, url):
        """The stored answer for an address, unless it has expired."""
        entry = self.entries.get(url)
        if entry is None or entry.expires < self.clock():
            return None
        return entry.answer

    def store(self, url, answer, lifetime_s):
        """Keeps an answer; the oldest one makes room."""
        while len(self.entries) >= self.most:
            self.evict_oldest()
        self.entries[url] = Entry(answer, self.clock() + lifetime_s)

    def evict_oldest(self):
        oldest = min(self.entries, key=lambda url: self.entries[url].expires)
        del self.entries[oldest]


class Entry:
    def __init__(self, answer, expires):
        self.answer = answer
        self.expires = expires
