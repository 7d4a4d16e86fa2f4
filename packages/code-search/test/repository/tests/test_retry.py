"""Retry delays of failed requests: how long to wait before an attempt."""

from src.http.retry import retry_delays


def test_each_delay_is_twice_as_long_as_the_one_before():
    """Waits twice as long before each attempt, with some jitter."""
    delays = list(retry_delays(attempts=5, base_s=1))
    assert all(later > earlier / 2 for earlier, later in zip(delays, delays[1:]))


def test_delays_have_a_limit():
    """No attempt waits longer than the limit."""
    assert max(retry_delays(attempts=20, limit_s=3)) <= 3
