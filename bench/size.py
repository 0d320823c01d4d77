"""How large the house is: per folder its files, code lines, docstring lines and longest function.

    python bench/size.py [FOLDER ...]

Code lines are those with a token on them that is neither comment nor docstring.
"""

import ast
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
NOT_CODE |= {tokenize.ENCODING, tokenize.ENDMARKER}


def measure(path: Path) -> tuple[int, int, int, str]:
    """Code lines, docstring lines, and length and name of the longest function."""
    documented = [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)
    ]
    docstrings = {
        line
        for node in documented
        if ast.get_docstring(node, clean=False) is not None
        for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)
    }
    with path.open("rb") as handle:
        code = {
            line
            for token in tokenize.tokenize(handle.readline)
            if token.type not in NOT_CODE
            for line in range(token.start[0], token.end[0] + 1)
        } - docstrings
    functions = [node for node in documented if isinstance(node, ast.FunctionDef)]
    lengths = [(len(code & set(range(f.lineno, f.end_lineno + 1))), f.name) for f in functions]
    longest, name = max(lengths, default=(0, ""))
    return len(code), len(docstrings), longest, f"{path.name}: {name}"


def main(roots: list[str]) -> None:
    """Print a line for each folder, and one for all."""
    folders = defaultdict(list)
    for root in roots:
        for path in sorted(Path(root).rglob("*.py")):
            folders[path.parent.as_posix()].append(measure(path))
    folders["all"] = [each for found in list(folders.values()) for each in found]
    print(f"{'folder':22} {'files':>5} {'code':>6} {'docs':>6}  longest function")
    for folder, found in folders.items():
        code, docs = (sum(each[i] for each in found) for i in (0, 1))
        _, _, longest, name = max(found, key=lambda each: each[2])
        print(f"{folder:22} {len(found):5} {code:6} {docs:6}  {longest:3} {name}")


main(sys.argv[1:] or ["pipeline", "stages"])
