"""Where a potential lies, or is put: a file, a folder, or a name that comes with the package."""

import difflib
import os
from pathlib import Path

import ase_equinn

from .potential_file import PotentialFileError

FILE_NAME = "model.safetensors"


def shipped_potentials() -> dict[str, Path]:
    """{name: folder} of the potentials that come with the package, in the order of their names."""
    package = Path(ase_equinn.__file__).parent
    found = {}
    for home in (package.parent / "potentials", package / "potentials"):
        found |= {file.parent.name: file.parent for file in home.glob(f"*/{FILE_NAME}")}
    return dict(sorted(found.items()))


def find_potential(path: str | os.PathLike) -> Path:
    """The file that `path` means: a file, a folder that holds `model.safetensors`, or the name of a shipped potential.

    A name can mean both a shipped potential and a file or folder of the current directory. A folder without
    `model.safetensors` does not count, and if both hold the same bytes it does not matter. Otherwise the name is refused:
    neither the directory one happens to stand in nor an update of the package shall decide which physics runs.
    "./NAME" always means the directory's own.

    Raises:
        PotentialFileError: nothing there, or two candidates; the message lists the shipped names.
    """
    here = Path(path)
    try:
        local = here / FILE_NAME if here.is_dir() else here
        if not (isinstance(path, str) and path in shipped_potentials()):
            if local.is_file():
                return local
            raise PotentialFileError(_nothing_at(path))
        shipped = shipped_potentials()[path] / FILE_NAME
        if local.is_file() and local.read_bytes() != shipped.read_bytes():
            raise PotentialFileError(
                f"{path!r} is a shipped potential, and another one lies in {str(local.absolute())!r}: write './{path}' "
                f"for the latter, {str(shipped.parent)!r} for the shipped one"
            )
        return shipped
    except OSError as error:
        raise PotentialFileError(f"{str(path)[:200]!r}: {error.strerror}") from error


def file_of(path: str | os.PathLike) -> Path:
    """The file that is written for `path`: itself if it ends in ".safetensors", otherwise FILE_NAME in that folder."""
    path = Path(path)
    return path if path.suffix == ".safetensors" and not path.is_dir() else path / FILE_NAME


def _nothing_at(path: str | os.PathLike) -> str:
    here, names = Path(path), list(shipped_potentials())
    if here.is_dir():
        problem = f"is a folder without {FILE_NAME}"
    elif here.exists():
        problem = "is neither a file nor a folder"
    else:
        problem = "is no file, no folder and no shipped potential"
    close = [repr(name) for name in difflib.get_close_matches(here.name, names)]
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{str(path)[:200]!r} {problem}{hint} (shipped: {', '.join(names) or 'none'})"
