"""What every Python driver shares; see `protocol.mjs`, of which this is the same."""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

#: Texts to vectors, a list or array of rows.
Embed = Callable[[list[str]], object]


def seconds(embed: Embed, texts: list[str]) -> dict[str, float]:
    """One call with all texts; seconds of the clock and of all processors together."""
    start, cpu_start = time.perf_counter(), time.process_time()
    embed(texts)
    return {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu_start}


def latencies(embed: Embed, texts: list[str]) -> list[float]:
    """Seconds of each text, one after the other."""
    return [seconds(embed, [text])["wall"] for text in texts]


def vectors(embed: Embed, texts: list[str]) -> list[list[float]]:
    return [[float(value) for value in row] for row in embed(texts)]


WANTED = {"seconds": seconds, "latencies": latencies, "vectors": vectors}


def serve(load: Callable[[dict], tuple]) -> None:
    """Runs a driver until its input ends. `load` returns its name with versions, "cpu" or "gpu", how it embeds, and if it
    has any, work on the texts of a request that is not measured.
    """
    setup = json.loads(sys.argv[1])
    lists = json.loads(Path(setup["texts"]).read_text())
    # Libraries print to standard output now and then; answers go where it pointed at the start.
    answers, sys.stdout = sys.stdout, sys.stderr

    def say(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        name, device, embed, *preparations = load(setup)
        # The first vector belongs to a cold start.
        embed([lists["first"]])
    except Exception as error:  # whatever it is, the peer is left out and the reason reported
        say({"refused": str(error).split("\n")[0]})
        return
    say({"name": f"{name}, Python {platform.python_version()}", "device": device})
    for line in sys.stdin:
        request = json.loads(line)
        texts = lists[request["texts"]][request.get("from", 0) : request.get("to")]
        try:
            for prepare in preparations:
                prepare(texts)
            say(WANTED[request["want"]](embed, texts))
        except KeyError as error:
            say({"failed": f"a Python driver does not know {error}"})
