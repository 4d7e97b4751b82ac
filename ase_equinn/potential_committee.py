"""Committee: several potentials and what their spread tells, as an object and as one file.

The file is a potential file (see potential_file.py) of version 3. Its header has, instead of a potential's fields, the
headers of the members under "members" and the calibration under "spread" (see uncertainty_spread.py); tensor NAME of
member k is called "k.NAME". So one hash covers all, and members and calibration cannot be parted or mixed up.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

import ase_equinn

from .potential import ARCHITECTURES, Potential
from .potential_build import build_potential
from .potential_common import check_same_species
from .potential_file import MAX_MEMBERS, PotentialFileError, decode, encode, write_atomic
from .potential_find import file_of, find_potential
from .uncertainty_spread import Spread

LEAST_MEMBERS = 3


class Committee:
    """Members that know the same elements, and by how much the mean of their forces is off where they disagree.

    Args:
        members: LEAST_MEMBERS to MAX_MEMBERS; architectures, cutoffs and dtypes may differ.
        spread: calibrated for these members, see calibrate_committee.calibrate_committee.

    Attributes:
        species: atomic numbers, ascending.

    Raises:
        ValueError: another number of members, members with different species, one twice; a spread for other species.
    """

    def __init__(self, members: Sequence[Potential], spread: Spread):
        check_members(members)
        self.members, self.spread, self.species = tuple(members), spread, members[0].species
        if spread.species != self.species:
            raise ValueError(f"the spread is for the species {spread.species}, the members for {self.species}")

    def save(self, path: str | os.PathLike) -> Path:
        """Write all in one file and return its path; an existing file stays as it is if that fails.

        Args:
            path: see Potential.save.

        Raises:
            ValueError: see Potential.save, with the number of the member.
        """
        path, tensors = file_of(path), {}
        header = {"format_version": 3, "code_version": ase_equinn.__version__, "members": []}
        for k, member in enumerate(self.members):
            try:
                entry, own = member.to_file()
            except ValueError as error:
                raise ValueError(f"{path} is not written: member {k}: {error}") from error
            header["members"].append(entry)
            tensors |= {f"{k}.{name}": tensor for name, tensor in own.items()}
        write_atomic(path, encode(header | {"spread": self.spread.to_file()}, tensors))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Committee":
        """The committee that a file or a folder holds; nothing in it is executed.

        Raises:
            PotentialFileError: no such file, it is not intact, or it holds a single potential.
        """
        members, spread = read_potentials(path)
        if spread is None:
            raise PotentialFileError(f"{path} holds a single potential, no committee: Potential.load")
        return cls(members, spread)


def check_members(members: Sequence[Potential]) -> None:
    """Raises ValueError unless these can be a committee."""
    if not LEAST_MEMBERS <= len(members) <= MAX_MEMBERS:
        raise ValueError(f"a committee has {LEAST_MEMBERS} to {MAX_MEMBERS} potentials, got {len(members)}")
    check_same_species([member.species for member in members])
    for k, member in enumerate(members):
        for j, other in enumerate(members[:k]):
            if _same_weights(member, other):
                raise ValueError(f"members {j} and {k} have the same weights: equal members never disagree")


def _same_weights(one: Potential, other: Potential) -> bool:
    mine, theirs = one.models.state_dict(), other.models.state_dict()
    if (one.scale, one.cutoffs, mine.keys()) != (other.scale, other.cutoffs, theirs.keys()):
        return False
    return all(_equal(mine[name], theirs[name]) for name in mine)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device) and torch.equal(one, other)


def read_potentials(path: str | os.PathLike) -> tuple[list[Potential], Spread | None]:
    """The potential that a file, a folder or a shipped name holds; or all members of a committee, and its spread.

    Raises:
        PotentialFileError: see Potential.load.
    """
    path = find_potential(path)
    header, tensors = decode(path)
    try:
        if "members" not in header:
            return [build_potential(Potential, ARCHITECTURES, header, tensors)], None
        members = [
            _member(k, entry, {name[len(f"{k}.") :]: tensors[name] for name in tensors if name.startswith(f"{k}.")})
            for k, entry in enumerate(header["members"])
        ]
        strangers = [name for name in tensors if name.partition(".")[0] not in map(str, range(len(members)))]
        if strangers:
            raise PotentialFileError(f"tensors that no member has: {str(strangers)[:500]}")
        return members, _spread(header, members)
    except PotentialFileError as error:
        raise PotentialFileError(f"{path}: {error}") from error


def _member(k: int, header: dict, tensors: dict[str, torch.Tensor]) -> Potential:
    try:
        return build_potential(Potential, ARCHITECTURES, header, tensors)
    except PotentialFileError as error:
        raise PotentialFileError(f"member {k}: {error}") from error


def _spread(header: dict, members: list[Potential]) -> Spread:
    try:
        check_members(members)
        return Spread.from_file(header["spread"], members[0].species)
    except ValueError as error:
        raise PotentialFileError(f"its content is no committee: {error}") from error
