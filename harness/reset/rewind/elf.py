"""What a shared object says of itself: machine, whole or cut off, what it wants from others.

The System V ABI's format (elf.h), 64 bits, little-endian: all that a module of ours can be.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MACHINES = {62: "x86_64", 183: "aarch64", 243: "riscv64"}
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_SHT_DYNAMIC, _SHT_DYNSYM = 6, 11
_DT_NEEDED, _DT_VERNEED = 1, 0x6FFFFFFE


class NotElf(ValueError):
    """It is no shared object of this kind, or not a whole one; the text says what is wrong."""


@dataclass(frozen=True)
class SharedObject:
    """One shared object.

    Attributes:
        machine: as ``uname -m`` says; a number for one that is not known.
        needed: libraries that the loader must find.
        versioned: whether it wants particular versions of symbols: then it works with one C library only.
        wanted: symbols that others have to define.
        defined: symbols that it shows to others.
    """

    machine: str
    needed: tuple[str, ...]
    versioned: bool
    wanted: frozenset[str]
    defined: frozenset[str]


def read(content: bytes) -> SharedObject:
    """What a shared object says of itself.

    Raises:
        NotElf: it is none, or cut off: a process that loads such a file is ended by SIGBUS.
    """
    try:
        return _read(content)
    except (struct.error, IndexError, ValueError) as error:
        raise NotElf(str(error) if isinstance(error, NotElf) else "it is cut off") from None


def _read(content: bytes) -> SharedObject:
    if content[:4] != b"\x7fELF":
        raise NotElf("it is no shared object")
    if content[4:6] != b"\x02\x01":
        raise NotElf("it is not for a little-endian machine of 64 bits")
    header = _HEADER.unpack_from(content)
    kind, machine, offset, size, count = header[1], header[2], header[6], header[11], header[12]
    if kind != 3:
        raise NotElf("it is no shared object")
    # The table of sections is the last thing in the file.
    if not offset or len(content) < offset + size * count:
        raise NotElf("it is cut off")
    sections = [_SECTION.unpack_from(content, offset + number * size) for number in range(count)]

    def part(section: tuple[int, ...]) -> bytes:
        return content[section[4] : section[4] + section[5]]

    def text(section: tuple[int, ...], at: int) -> str:
        strings = part(sections[section[6]])
        return strings[at : strings.index(b"\0", at)].decode("ascii", "replace")

    needed, versioned = list[str](), False
    wanted, defined = set[str](), set[str]()
    for section in sections:
        if section[1] == _SHT_DYNAMIC:
            for tag, value in _DYNAMIC.iter_unpack(part(section)):
                if tag == _DT_NEEDED:
                    needed.append(text(section, value))
                versioned |= tag == _DT_VERNEED
        elif section[1] == _SHT_DYNSYM:
            for name, _, _, index, _, _ in _SYMBOL.iter_unpack(part(section)):
                if name:
                    (defined if index else wanted).add(text(section, name))
    return SharedObject(
        _MACHINES.get(machine, str(machine)),
        tuple(needed),
        versioned,
        frozenset(wanted),
        frozenset(defined),
    )
