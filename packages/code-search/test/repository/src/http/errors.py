"""What can go wrong with a request."""


class RequestError(Exception):
    """A request failed."""


class TimeoutError(RequestError):
    """The server did not answer in time."""


class StatusError(RequestError):
    """The server answered with a status of 400 or more."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status
