"""Docstring and function pairs from Python's standard library, as JSON lines: {"name", "query", "code"}.

The query is a docstring's first paragraph, the code the function's own source without that docstring. Which pairs come
out depends on the Python version alone.

usage: python3 pairs.py <number of pairs>
"""

import ast
import json
import sys
import sysconfig
from pathlib import Path

# Tests, and copies of other code.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip", "turtledemo"}
# Shorter docstrings say "Internal." or "See above.", shorter functions have nothing to find.
MIN_QUERY_WORDS = 4
MIN_CODE_LINES = 4


def functions(tree: ast.Module):
    for node in ast.walk(tree):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        # A docstring on the line of its `def` cannot be cut out by lines.
        if is_function and ast.get_docstring(node) and node.body[0].lineno > node.lineno:
            yield node


def without_docstring(lines: list[str], function) -> str:
    docstring = function.body[0]
    kept = lines[function.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : function.end_lineno]
    indent = len(kept[0]) - len(kept[0].lstrip())
    return "\n".join(line[indent:] if not line[:indent].strip() else line for line in kept)


def pairs(library: Path):
    seen = set()
    for path in sorted(library.rglob("*.py")):
        if SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue  # Files that are there to be wrong.
        lines = source.split("\n")
        for function in functions(tree):
            query = " ".join(ast.get_docstring(function).split("\n\n")[0].split())
            code = without_docstring(lines, function)
            is_telling = len(query.split()) >= MIN_QUERY_WORDS and code.count("\n") + 1 >= MIN_CODE_LINES
            # One docstring on two functions would make one of two right answers wrong.
            if is_telling and query not in seen and code not in seen:
                seen.update((query, code))
                yield {"name": f"{path.relative_to(library)}:{function.name}", "query": query, "code": code}


def main() -> None:
    wanted = int(sys.argv[1])
    found = list(pairs(Path(sysconfig.get_path("stdlib"))))
    count = min(wanted, len(found))
    # Evenly from the whole library.
    for index in range(count):
        print(json.dumps(found[index * len(found) // count]))


if __name__ == "__main__":
    main()
