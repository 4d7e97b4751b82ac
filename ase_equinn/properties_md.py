"""Does a crystal or liquid survive molecular dynamics at a temperature, and in which state; with any ASE calculator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.io import read
from ase.neighborlist import neighbor_list

from .md import MDSettings, md
from .plot_md import radial_distribution, read_log
from .properties_crystal import check_crystal, neighbor_distance, repeats
from .runfiles import RunError

MELT = 1.75  # a liquid is made at so many times its temperature
CLOSE = 0.6  # distances below so many nearest-neighbour distances of the crystal: atoms fall into one another
ALONE = 1.6  # atoms without a neighbour within so many: gas
SIGMAS = 6.0  # of the canonical temperature: never in a run of a million steps
RDF_RANGE = 7.0  # A


class Stability(NamedTuple):
    """What became of a run at constant volume. Where `stable` is false, `reason` says why, and a number may be None.

    `state`: "solid" (atoms stay at their places), "liquid" (they leave them), "lost" (the run broke off, or atoms flew
    apart or into one another). `time` ps was asked for, `survived` ps reached. What follows leaves out the first fifth
    of the run (0.5 ps at least, but no more than half): mean temperature; its largest deviation from the target in K
    and in standard deviations of the canonical ensemble, T sqrt(2 / (3N - 3)); mean pressure GPa; shortest distance A;
    first peak of g(r), its place in A and height; mean-square displacement A^2 of the last fifth of the frames from
    the first; slope of the potential energy meV/atom/ps.
    `nve_drift` is the slope of the total energy, meV/atom/ps, of a run at constant energy that follows.
    """

    state: str
    stable: bool
    reason: str
    temperature: float
    n_atoms: int
    timestep: float
    time: float
    survived: float
    mean_temperature: float | None = None
    max_deviation: float | None = None
    deviation_sigmas: float | None = None
    pressure: float | None = None
    min_distance: float | None = None
    peak: tuple[float, float] | None = None
    displacement: float | None = None
    energy_slope: float | None = None
    nve_drift: float | None = None
    rdf: tuple[np.ndarray, np.ndarray] | None = None


def stability(
    atoms: Atoms, calculator, temperature: float, *, liquid: bool = False, time: float = 10.0, n_atoms: int = 100,
    timestep: float | None = None, output: str | Path | None = None, seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Stability:  # fmt: skip
    """Langevin dynamics of a crystal, or of what it melts to, at the volume of the crystal; then constant energy.

    A liquid is melted at 1.75 times the temperature, for 5 ps, or `time` if that is less. The state is judged by the
    mean-square displacement, centre of mass at rest: a liquid's grows beyond a quarter of the squared distance of
    nearest neighbours, a solid's stays below. A superheated crystal may need longer than `time` to melt, an
    undercooled liquid longer to freeze.

    Args:
        atoms: cell of a crystal of one element (left unchanged).
        calculator: any ASE calculator.
        temperature: K.
        liquid: melt first.
        time: ps at the temperature; a tenth of it, at most 2 ps, is added at constant energy.
        n_atoms: about; the cell is repeated to a near cube.
        timestep: fs; None takes 1.5 sqrt(M / 28 amu), between 0.25 and 3.
        output: folder for the runs `melt`, `nvt`, `nve`, overwritten; None keeps nothing.
        progress: called with steps done and in all.
    Raises:
        ValueError: bad structure or a number out of range. A run that breaks off is a result, no error.
    """
    check_crystal(atoms)
    for name, value in (("temperature", temperature), ("time", time), ("n_atoms", n_atoms), ("timestep", timestep)):
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name} must be a positive number; received {value!r}")
    cell = atoms.repeat(repeats(atoms, (n_atoms * atoms.get_volume() / len(atoms)) ** (1 / 3)))
    if len(cell) < 8:
        raise ValueError(f"n_atoms must be such that the cell has 8 atoms at least; received {n_atoms}: {len(cell)}")
    step = timestep or float(np.clip(1.5 * (atoms.get_masses()[0] / 28.0) ** 0.5, 0.25, 3.0))
    lengths = {"melt": min(5.0, time) if liquid else 0.0, "nvt": time, "nve": min(2.0, time / 10)}
    steps = {name: max(20, round(1000 * length / step)) if length else 0 for name, length in lengths.items()}
    run = Stability("lost", False, "", float(temperature), len(cell), step, float(time), 0.0)
    with ExitStack() as stack:
        folder = Path(output or stack.enter_context(TemporaryDirectory(prefix="equinn-md-")))
        for name in ("melt", "nvt", "nve"):
            if not steps[name]:
                continue
            target = MELT * temperature if name == "melt" else temperature
            settings = _settings("nve" if name == "nve" else "nvt", target, step, seed, first=cell.calc is None)
            report = _progress(progress, steps, name)
            try:
                cell = md(
                    cell, calculator, settings, steps[name], output=folder / name, existing="overwrite", progress=report
                ).atoms
            except RunError as error:
                return _broken(run, name, folder, str(error))
            if name == "nvt":
                run = _judge(run, folder / "nvt", neighbor_distance(atoms), liquid)
        log = read_log(folder / "nve" / "md.csv")
    return run._replace(nve_drift=_slope(log["time_fs"], log["total_energy"], len(cell)))


def _settings(ensemble: str, temperature: float, step: float, seed: int, first: bool) -> MDSettings:
    """A crystal starts at twice the temperature, half of which goes into its springs; what follows keeps momenta."""
    frames = max(1, round(100 / step))
    if ensemble == "nve":
        return MDSettings("nve", None, step, seed=seed, log_every=5, frame_every=frames, restart_every=10**9)
    start = 2 * temperature if first else None
    return MDSettings(
        "nvt", temperature, step, initial_temperature=start, seed=seed, log_every=10, frame_every=frames,
        restart_every=10**9,
    )  # fmt: skip


def _progress(report, steps: dict[str, int], name: str) -> Callable[[int], None] | None:
    if report is None:
        return None
    names = list(steps)
    before, total = sum(steps[key] for key in names[: names.index(name)]), sum(steps.values())
    return lambda step: report(before + step, total)


def _slope(time_fs: np.ndarray, energy: np.ndarray, n_atoms: int) -> float:
    """meV/atom/ps."""
    return float(np.polyfit(time_fs / 1000, energy * 1000 / n_atoms, 1)[0])


def _broken(run: Stability, name: str, folder: Path, message: str) -> Stability:
    """The result of a run that stopped; what was found of its parts before is kept."""
    survived = run.survived
    if name == "nvt":
        survived = float(read_log(folder / "nvt" / "md.csv")["time_fs"][-1]) / 1000
    stage = {"melt": "while melting: ", "nvt": "", "nve": "at constant energy: "}[name]
    reason = stage + message.rsplit(" (", 1)[0]  # without the restart file, which md names in brackets at the end
    return run._replace(state="lost", stable=False, reason=reason, survived=survived)


def _judge(run: Stability, folder: Path, distance: float, liquid: bool) -> Stability:
    """Numbers of a whole run at constant temperature, and whether it is what it should be."""
    log, frames = read_log(folder / "md.csv"), read(folder / "md.xyz", ":")
    settled = max(0.2, min(0.5, 0.5 / run.time))  # a fifth of the run, or 0.5 ps, but no more than half of a short one
    late = slice(int(settled * len(log["step"])), None)
    temperature, target = log["temperature"][late], run.temperature
    deviation = float(abs(temperature - target).max())
    sigmas = deviation / (target * (2 / (3 * run.n_atoms - 3)) ** 0.5)
    frames = frames[int(settled * len(frames)) :]
    closest, alone = np.inf, 0
    for frame in frames:
        i, d = neighbor_list("id", frame, ALONE * distance)
        closest = min(closest, d.min(initial=np.inf))
        alone = max(alone, len(frame) - len(np.unique(i)))
    r, g = radial_distribution(frames, RDF_RANGE)
    moved = _displacement(frames)
    state = "liquid" if moved > 0.25 * distance**2 else "solid"
    reasons = []
    if alone:
        reasons.append(f"atoms fly apart: {alone} without a neighbour within {ALONE * distance:.2f} A")
    if closest < CLOSE * distance:
        reasons.append(f"atoms fall into one another: {closest:.2f} A")
    if sigmas > SIGMAS:
        reasons.append(f"the temperature was off by {deviation:.0f} K, {sigmas:.1f} standard deviations")
    state = "lost" if alone or closest < CLOSE * distance else state
    if state == "liquid" and not liquid:
        reasons.append("the crystal melted")
    if state == "solid" and liquid:
        reasons.append("no liquid: the atoms stay at their places")
    pressure = log["pressure_GPa"][late]
    return run._replace(
        state=state, stable=not reasons, reason="; ".join(reasons), survived=float(log["time_fs"][-1]) / 1000,
        mean_temperature=float(temperature.mean()), max_deviation=deviation, deviation_sigmas=float(sigmas),
        pressure=float(pressure.mean()) if np.isfinite(pressure).all() else None, min_distance=float(closest),
        peak=_first_peak(r, g), displacement=moved,
        energy_slope=_slope(log["time_fs"][late], log["potential_energy"][late], run.n_atoms), rdf=(r, g),
    )  # fmt: skip


def _displacement(frames: list[Atoms]) -> float:
    """Mean-square displacement in A^2 of the last fifth of the frames from the first one, centre of mass at rest."""
    positions = np.array([frame.positions - frame.get_center_of_mass() for frame in frames])
    last = positions[-max(1, len(frames) // 5) :] - positions[0]
    return float((last**2).sum(-1).mean())


def _first_peak(r: np.ndarray, g: np.ndarray) -> tuple[float, float]:
    """Place in A and height of the first peak of g(r): the largest value before a running mean falls below 1 again."""
    smooth = np.convolve(g, np.full(7, 1 / 7), mode="same")  # 0.25 A: a few frames are noisy
    above = np.flatnonzero(smooth > 1)
    if not len(above):
        return float(r[g.argmax()]), float(g.max())
    after = np.flatnonzero(smooth[above[0] :] < 1)
    end = above[0] + after[0] if len(after) else len(g)
    k = above[0] + int(g[above[0] : end].argmax())
    return float(r[k]), float(g[k])
