"""Data files found by name and hash; where one is missing, the message says how to come by it."""

from __future__ import annotations

from pathlib import Path

from .data import file_sha256


def find_file(
    name: str,
    *,
    sha256: str | None = None,
    source: str | None = None,
    licence: str | None = None,
    beside: str | Path | None = None,
    below: str | Path | None = None,
) -> Path:
    """The file `name`: as given, in the folder `beside`, or anywhere below the folder `below` by name or by sha256.

    Args:
        name: as in the config.
        sha256: of the wanted file; a file with another one is passed over.
        source, licence: where the file can be had and on what terms, for the message.
        beside: the folder of the config file.
        below: the folder given by the user.

    Raises:
        FileNotFoundError: nowhere, or `below` is no folder; the message says where was looked and where the file can
            be had.
        ValueError: found by name, but with another sha256 than wanted.
    """
    if below and not Path(below).is_dir():
        raise FileNotFoundError(f"the folder to look for data in does not exist: {str(below)!r}")
    near = [Path(name), *([Path(beside) / name] if beside else [])]
    wrong = []
    for path in near + (sorted(Path(below).rglob(Path(name).name)) if below else []):
        if path.is_file():
            if sha256 is None or file_sha256(path) == sha256.lower():
                return path
            wrong.append(path)
    if sha256 and below:
        for path in sorted(Path(below).rglob(f"*{Path(name).suffix}")):
            if path.is_file() and file_sha256(path) == sha256.lower():
                return path
    where = origin(source, licence, sha256)
    if wrong:
        raise ValueError(f"{wrong[0]}: not the same data: its sha256 is {file_sha256(wrong[0])}{where}")
    looked = ", ".join(str(place) for place in ("the current folder", beside, below) if place)
    raise FileNotFoundError(f"data file {name!r} was not found in {looked} (--data DIR adds a folder){where}")


def origin(source: str | None, licence: str | None, sha256: str | None) -> str:
    """The end of a message: where a file can be had, and which one is wanted; "" where nothing is known."""
    known = {"source": source, "licence": licence, "sha256 wanted": sha256}
    return "".join(f"\n    {key}: {value}" for key, value in known.items() if value)
