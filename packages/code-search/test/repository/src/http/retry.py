"""When a failed request is sent again."""

import random


def retry_delays(attempts, base_s=0.5, limit_s=30):
    """Yields how long to wait before each attempt: twice as long each time, with some jitter."""
    for attempt in range(attempts):
        yield min(limit_s, base_s * 2**attempt) * random.uniform(0.5, 1)
