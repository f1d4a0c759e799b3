"""The child of `tools.tasks.code_scorer`: runs an answer's program and calls its functions when it is told to.

Run as a file, with no package of ours in reach. The first line of stdin is the program, each further one a call; all
are python literals. Each is answered by a line ("value", text of a literal) or ("raised", name of the exception). This
process knows no expected value: what it says is compared elsewhere, so there is nothing here worth forging.
"""

import os
import sys


def main() -> None:
    """Serve until stdin closes."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what the program prints goes nowhere, and `input()` ends
        os.dup2(nothing, descriptor)
    names: dict[str, object] = {"__name__": "answer"}
    evaluate, text_of, run, type_of = eval, ascii, exec, type
    for line in requests:
        request = evaluate(line)
        try:
            if isinstance(request, str):
                result = run(compile(request, "answer.py", "exec"), names)
            else:
                name, args, kwargs = request
                result = names[name](*args, **kwargs)  # type: ignore[operator]
            reply = ("value", text_of(result))
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: they are the program's answer
            reply = ("raised", type_of(error).__name__)
        replies.write(text_of(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    sys.setrecursionlimit(5_000)
    main()
