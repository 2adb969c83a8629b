# mypy: ignore-errors
# It runs in the interpreter of the project, which may be older than the one that mypy checks for.
# ruff: noqa: BLE001 -- whatever a project raises is reported
"""Child: run one of the tasks beside this file, in the interpreter of the project.

The task's name is the argument, its parameters come as JSON on stdin. A task is a file with ``run(parameters)``,
which returns an exit code or None; an exception of it with a true ``needs_no_traceback`` is its reason to refuse.
What a task imports at its top is the tool: where that is missing, the import's error and the interpreter are the reason.
"""

import sys

# Run by path: our own folder would else be the first place where the project's imports are looked up.
HERE = __file__.replace("\\", "/").rpartition("/")[0]
sys.path[:] = [p for p in sys.path if p.replace("\\", "/").rstrip("/") != HERE]

import importlib.util  # noqa: E402
import json  # noqa: E402
import traceback  # noqa: E402


def main(name):
    parameters = json.loads(sys.stdin.read())
    sys.path[:0] = parameters["path"]
    sys.path += parameters.get("last", [])
    try:
        task = load(name)
    except ImportError as error:
        print("%s, in the interpreter %s" % (error, sys.executable), file=sys.stderr)  # noqa: UP031 -- any Python 3
        return 1
    try:
        return task.run(parameters) or 0
    except SystemExit as error:
        return error.code
    except BaseException as error:
        sys.stdout.flush()
        refusal = find_refusal(error)
        if refusal is not None:
            print(refusal, file=sys.stderr, flush=True)
        else:
            report(error)
        return 1


def load(name):
    """The task, by its path: it must not be found under a name that the project may use."""
    spec = importlib.util.spec_from_file_location("pg_harness_" + name, HERE + "/" + name + ".py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_refusal(error):
    while error is not None:
        if getattr(error, "needs_no_traceback", False):
            return error
        error = error.__cause__ or error.__context__
    return None


def report(error):
    """The traceback without our own frames and importlib's: the project's lines are what helps."""
    details = traceback.TracebackException.from_exception(error)
    seen = details
    while seen is not None:
        seen.stack = traceback.StackSummary.from_list([f for f in seen.stack if not is_ours(f.filename)])
        seen = seen.__cause__ or seen.__context__
    print("".join(details.format()), file=sys.stderr, flush=True)


def is_ours(filename):
    return filename.replace("\\", "/").rpartition("/")[0] == HERE or filename.startswith("<frozen importlib")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
