"""State files: JSON that one process of ours leaves for another, replaced in one act, and read with distrust.

Most are hints: one that is lost, foreign or of another version costs time, never the truth. So reading has three
outcomes: the content, no file (FileNotFoundError), or :class:`Unreadable` with why; the caller decides what that means.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.config import own_folder, processes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Made = TypeVar("Made", bound=DataclassInstance)
else:
    Made = TypeVar("Made")


class Unreadable(ValueError):
    """The file is there, and says nothing that can be used. Its text is why, to follow the file's path."""


@dataclass(frozen=True)
class StateFile:
    """One file.

    Attributes:
        path: its folder is made where it is missing.
        format: which form the content has, written with it: a file of another form is unreadable. None: none is
            written, for files whose readers must understand every form.
        compact: write no blanks: for files of many numbers.
        folder_mode: of its folder, where that has to be made; None: it must be there. Caches are open: the server's
            own user copies from them.
    """

    path: Path
    format: int | None = None
    compact: bool = False
    folder_mode: int | None = 0o700

    def read(self) -> dict[str, Any]:
        """The content.

        Raises:
            FileNotFoundError: there is no such file.
            Unreadable: it cannot be read, is no JSON object, or has another format.
        """
        try:
            content = json.loads(self.path.read_text("utf-8"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise Unreadable(f"cannot be read ({type(error).__name__})") from None
        if not isinstance(content, dict):
            raise Unreadable("has an unknown form")
        if self.format is not None and content.pop("format", None) != self.format:
            raise Unreadable("cannot be used: another version of pg-harness wrote it")
        return content

    def read_as(self, kind: type[Made], *, ignore_unknown: bool = False) -> Made:
        """The content as a value of a dataclass.

        Args:
            ignore_unknown: leave out what the dataclass has no field for; else it makes the file unreadable.

        Raises:
            FileNotFoundError, Unreadable: as :meth:`read`; also where a field is missing or of another type.
        """
        content = self.read()
        try:
            return decode(kind, content, ignore_unknown=ignore_unknown)
        except (TypeError, ValueError) as error:
            raise Unreadable(f"has an unknown form ({error})") from None

    def write(self, content: Mapping[str, Any] | DataclassInstance) -> None:
        """Replace the file in one act. Only its owner may read it: some hold passwords.

        Raises:
            OSError: it cannot be written; the old one stays.
        """
        fields_ = content if isinstance(content, Mapping) else asdict(content)
        numbered = {} if self.format is None else {"format": self.format}
        text = json.dumps(
            {**numbered, **fields_}, default=os.fspath, separators=(",", ":") if self.compact else None
        )
        replace_file(self.path, text, folder_mode=self.folder_mode)

    def note(self, content: Mapping[str, Any] | DataclassInstance) -> bool:
        """:meth:`write` a hint; False where it cannot be written: the next start is slower, and right."""
        try:
            self.write(content)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Remove the file, if it is there."""
        self.path.unlink(missing_ok=True)


def replace_file(
    path: Path, content: str | bytes, *, mode: int = 0o600, folder_mode: int | None = 0o700
) -> None:
    """Write a file in one act: whoever reads meanwhile gets the old one or the new.

    Args:
        mode: who may read it; without it, its owner only.
        folder_mode: of its folder, where it has to be made; None: it must be there.

    Raises:
        OSError: it cannot be written; the old one stays, and nothing beside it.
    """
    import tempfile  # lazy: it costs 3 ms, and a warm start only reads

    if folder_mode is not None:
        own_folder.make(path.parent, folder_mode)
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.{os.getpid()}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        if mode != 0o600:
            os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


_ASIDE = re.compile(r"\..+\.(\d+)\.[a-z0-9_]{8}")
"""What a file is called that does not have its name yet: whose it will be, and the process that writes it."""


def sweep(folder: Path) -> list[str]:
    """Remove what processes that were killed have left beside the state files of a folder; return the paths."""
    gone = []
    for path in sorted(folder.glob(".*")):
        if (match := _ASIDE.fullmatch(path.name)) and not processes.alive(int(match[1])):
            with suppress(OSError):
                path.unlink()
                gone.append(str(path))
    return gone


def decode(kind: type[Made], content: object, *, ignore_unknown: bool = False) -> Made:
    """A dataclass from what ``asdict`` and JSON have made of it: paths and tuples come back, types are checked.

    Raises:
        ValueError: a field is missing, unknown, or of another type.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{kind.__name__} is no object")
    hints = _hints(kind)
    wanted = {f.name: f for f in fields(kind)}
    if not ignore_unknown and (foreign := content.keys() - wanted.keys()):
        raise ValueError(f"{kind.__name__} has no {min(foreign)}")
    for name, field in wanted.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(
        **{name: _value(hints[name], value, name) for name, value in content.items() if name in wanted}
    )


_hints = cache(get_type_hints)


def _value(hint: Any, value: object, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (UnionType, Union):
        if value is None and NoneType in get_args(hint):
            return None
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
        return _value(hint, value, name)
    if is_dataclass(hint):
        return decode(hint, value)  # type: ignore[arg-type]  # is_dataclass narrows to instances too
    if hint is Any:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], item, name) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {key: _value(get_args(hint)[1], item, name) for key, item in value.items()}
    if hint is Path and isinstance(value, str):
        return Path(value)
    # JSON knows one kind of number, and a bool is an int to Python.
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if type(value) is hint:
        return value
    raise ValueError(f"{name} is of another type")
