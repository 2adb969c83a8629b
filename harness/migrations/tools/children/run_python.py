# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
# ruff: noqa: BLE001 -- whatever a project raises is reported; % runs on any Python 3
"""Child: call one function of the project's. Parameters come as JSON on stdin; see migrations/tools/python.py."""

import sys

# Run by path: our own folder would else be the first place where the project's imports are looked up.
sys.path[:] = [
    p for p in sys.path if p.replace("\\", "/").rstrip("/") != __file__.replace("\\", "/").rpartition("/")[0]
]

import asyncio  # noqa: E402
import importlib  # noqa: E402
import inspect  # noqa: E402
import json  # noqa: E402
import traceback  # noqa: E402


def main():
    parameters = json.loads(sys.stdin.read())
    sys.path[:0] = parameters["path"]
    try:
        module_name, _, attribute = parameters["callable"].partition(":")
        function = importlib.import_module(module_name)
        for name in attribute.split("."):
            function = getattr(function, name)
        result = call(function, parameters["url"])
        if inspect.isawaitable(result):
            asyncio.run(waited(result))
    except SystemExit as error:
        return error.code
    except BaseException as error:
        sys.stdout.flush()
        report(error)
        return 1
    return 0


def call(function, url):
    """With the URL where the function takes it: as its first required parameter, or one named for it."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(url)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if required or any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return function(url)
    for parameter in parameters:
        if parameter.name.lower().replace("_", "") in (
            "url",
            "dsn",
            "uri",
            "databaseurl",
            "dburl",
            "conninfo",
        ):
            return function(**{parameter.name: url})
    return function()


async def waited(result):
    return await result


def report(error):
    """The traceback without our own frames and importlib's: the project's lines are what helps."""
    details = traceback.TracebackException.from_exception(error)
    seen = details
    while seen is not None:
        seen.stack = traceback.StackSummary.from_list(
            [
                f
                for f in seen.stack
                if f.filename != __file__ and not f.filename.startswith("<frozen importlib")
            ]
        )
        seen = seen.__cause__ or seen.__context__
    print("".join(details.format()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
