"""Generated LLVM IR becomes functions of this process, compiled once per machine and kept on disk.

The cache holds object code behind its SHA-256, in a folder of the user's own (mode 0700). An entry that is damaged, or that
somebody else could have written, is rebuilt; where nothing can be written, kernels are compiled anew in each process.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import re
import stat
import tempfile
import threading
from functools import lru_cache
from pathlib import Path
from typing import Callable

import llvmlite
from llvmlite import binding as llvm

Source = str | Callable[[], str]
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_engines: list = []  # an engine owns its code: it lives as long as the process


@lru_cache(maxsize=None)
def _host() -> tuple[str, str]:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def vector_bytes() -> int:
    """Bytes of this CPU's widest vector."""
    features = _host()[1].split(",")
    return 64 if "+avx512f" in features else 32 if "+avx2" in features else 16


def compile_function(name: str, source: Source, n_pointers: int, n_integers: int, key: tuple | None = None):
    """The function `name` of an IR module, callable with addresses and integers; it runs without Python's lock.

    Args:
        name: of the function in the module.
        source: LLVM IR, or what gives it.
        n_pointers, n_integers: its arguments, in this order.
        key: numbers and names that determine the source, given the package's code: what the cache finds it by without
            having to write the source anew. None: the source itself.
    """
    arguments = [ctypes.c_void_p] * n_pointers + [ctypes.c_int64] * n_integers
    return ctypes.CFUNCTYPE(None, *arguments)(_address(name, source, name, key))


def compile_packed(name: str, source: Source, n_pointers: int, n_integers: int, key: tuple | None = None) -> int:
    """The address of a function (arguments, first, last) that calls the kernel `name`.

    `arguments` points to the kernel's pointers and then its integers but for the first two, which are `first` and `last`.
    Args as in `compile_function`.
    """

    def packed() -> str:
        return (source() if callable(source) else source) + _packing(name, n_pointers, n_integers)

    return _address(name, packed, "packed", key and ("packed", *key))


def _packing(name: str, n_pointers: int, n_integers: int) -> str:
    n = n_pointers + n_integers - 2
    loads = [
        f"  %q{k} = getelementptr i64, ptr %arguments, i64 {k}\n"
        f"  %a{k} = load {'ptr' if k < n_pointers else 'i64'}, ptr %q{k}\n"
        for k in range(n)
    ]
    passed = [f"ptr %a{k}" for k in range(n_pointers)] + ["i64 %first", "i64 %last"]
    passed += [f"i64 %a{k}" for k in range(n_pointers, n)]
    head = "\ndefine void @packed(ptr %arguments, i64 %first, i64 %last) {\n"
    return f'{head}{"".join(loads)}  call void @"{name}"({", ".join(passed)})\n  ret void\n}}\n'


@lru_cache(maxsize=None)
def _generators() -> str | None:
    """A hash of the files that write kernels; None where they cannot be read."""
    folder = Path(__file__).parent
    try:
        files = [*sorted(folder.glob("*.py")), folder.parent / "irreps.py"]
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest() if len(files) > 1 else None
    except OSError:
        return None


def _address(name: str, source: Source, entry: str, key: tuple | None) -> int:
    """Of the function `entry` of a module whose kernel is `name`; from the cache, if it was compiled before."""
    with _lock:
        cpu, features = _host()
        if key is None or _generators() is None:
            source = source() if callable(source) else source
            told = source
        else:
            told = f"{_generators()}\0{name}\0{key!r}"
        key = hashlib.sha256("\0".join([told, cpu, features, llvmlite.__version__]).encode()).hexdigest()
        code = _read(key)
        target = llvm.Target.from_default_triple().create_target_machine(cpu=cpu, features=features, opt=2, jit=True)
        if code is None:
            code = _object_code(name, source() if callable(source) else source, target)
            _write(key, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _engines.append(engine)
        return engine.get_function_address(entry)


def _object_code(name: str, source: str, target) -> bytes:
    # Without this LLVM splits 512-bit vectors on CPUs that it thinks prefer 256.
    source = re.sub(rf'(define void @"?{name}"?\([^)]*\))', r"\1 #0", source)
    source += '\nattributes #0 = { nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512" }\n'
    module = llvm.parse_assembly(source)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return target.emit_object(module)


def cache_folder() -> Path:
    """Where compiled kernels are kept: $ASE_EQUINN_CACHE, else ase_equinn in the user's cache folder."""
    chosen = os.environ.get("ASE_EQUINN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ase_equinn"


def _private(path: Path) -> bool:
    """Whether nobody else could have written it."""
    info = path.stat()
    return info.st_uid == os.getuid() and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(key: str) -> bytes | None:
    try:
        folder = cache_folder()
        path = folder / f"{key}.o"
        if not (_private(folder) and _private(path)):
            return None
        content = path.read_bytes()
    except (OSError, RuntimeError):
        return None
    digest, code = content[:32], content[32:]
    if hashlib.sha256(code).digest() != digest:
        _log.warning("the compiled kernel %s is damaged: it is built anew", path)
        return None
    return code


def _write(key: str, code: bytes) -> None:
    try:
        folder = cache_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _private(folder):
            return
        handle, temporary = tempfile.mkstemp(dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary, folder / f"{key}.o")
    except (OSError, RuntimeError) as error:
        _log.info("compiled kernels are not kept: %s", error)
