"""Objects as bytes and back."""

import json


def dump(value):
    """Bytes of a value, keys in order, so that equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def load(data):
    """The value that bytes stand for."""
    return json.loads(data.decode())
