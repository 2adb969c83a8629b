# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
"""Task of a child: call one function of the project's; see migrations/tools/python.py."""

import asyncio
import importlib
import inspect


def run(parameters):
    module_name, _, attribute = parameters["callable"].partition(":")
    function = importlib.import_module(module_name)
    for name in attribute.split("."):
        function = getattr(function, name)
    result = call(function, parameters["url"])
    if inspect.isawaitable(result):
        asyncio.run(waited(result))


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
