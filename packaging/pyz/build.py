"""Write vsockfwd.pyz: the agent, and relay, in one file for guests. `make pyz`.

It is for the Python and the platform that make it, since msgspec and xxhash are machine code, and it says so to others
(main.py). In it is what `serve` and `relay` import, compiled, and nothing else: no typer, no rich, no tests.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib.util
import io
import marshal
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).parent
OURS = {"vsockfwd": "vsockfwd", "vsockfwd-copy": "vsockfwd_copy", "vsockfwd-relay": "vsockfwd_relay",
        "vsockfwd-dgram": "vsockfwd_dgram"}  # fmt: skip
OTHERS = ("attr", "attrs", "h11", "idna", "msgspec", "outcome", "sniffio", "sortedcontainers", "tqdm", "trio", "xxhash")
"""Packages; those of OURS' dependencies that the agent imports."""

COMMANDS = ("serve", "relay", "plugins")

LEFT_OUT = (
    "*/_tests/*", "*/tests/*", "trio/testing/*", "trio/_tools/*", "trio/_windows*", "*_windows.py", "*_kqueue.py",
    "tqdm/contrib/*", "tqdm/gui.py", "tqdm/keras.py", "tqdm/dask.py", "tqdm/notebook.py", "tqdm/rich.py", "tqdm/tk.py",
    "tqdm/cli.py", "tqdm/auto*.py", "tqdm/asyncio.py", "tqdm/_*_pandas.py", "tqdm/_tqdm*.py", "tqdm/_main.py",
    "idna/cli.py", "idna/__main__.py",
    "vsockfwd/demo.py", "vsockfwd/doctor/*", "vsockfwd/cli/up.py", "vsockfwd/cli/doctor.py",
    "vsockfwd/cli/keygen.py", "vsockfwd/cli/policy.py", "vsockfwd/cli/guests.py",
    "vsockfwd/cli/ssh_config.py", "vsockfwd/cli/bootstrap.py", "vsockfwd/bootstrap/*",
    "vsockfwd/modes/*_command.py", "vsockfwd/modes/ping.py",
    "vsockfwd/report/metrics.py", "vsockfwd_copy/command.py", "vsockfwd_copy/fs.py", "vsockfwd_dgram/command.py",
)  # fmt: skip


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    return Path(spec.origin).parent


def sources() -> Iterator[tuple[str, Path]]:
    """(the name in the archive, the file) of every module."""
    for package in (*OURS.values(), *OTHERS):
        folder = folder_of(package)
        for file in sorted(folder.rglob("*")):
            name = f"{package}/{file.relative_to(folder)}"
            if file.suffix in (".py", ".so") and not any(fnmatch.fnmatch(name, left) for left in LEFT_OUT):
                yield name, file


def compiled(file: Path, name: str) -> bytes:
    """The module's code as a .pyc holds it, without docstrings, which nobody reads here but that of `serve --help`."""
    source = file.read_bytes()
    tree = ast.parse(source)
    if name != "vsockfwd/cli/serve.py":
        for node in ast.walk(tree):
            if isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
            ) and ast.get_docstring(node, clean=False):
                node.body[0] = ast.copy_location(ast.Expr(ast.Constant("")), node.body[0])
    code = compile(ast.fix_missing_locations(tree), name, "exec", dont_inherit=True, optimize=0)
    # PEP 552: flags 1, "unchecked", and a hash that is not looked at.
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8) + marshal.dumps(code)


def stripped(file: Path) -> bytes:
    """An extension without its symbols, where binutils are there to take them."""
    if shutil.which("strip") is None:
        return file.read_bytes()
    with tempfile.NamedTemporaryFile() as smaller:
        subprocess.run(["strip", "--strip-unneeded", "-o", smaller.name, str(file)], check=True)
        return Path(smaller.name).read_bytes()


def metadata() -> Iterator[tuple[str, str]]:
    """By which entry points are found: the modes, and the commands that are in it."""
    for name in OURS:
        found = distribution(name)
        folder = f"{name.replace('-', '_')}-{found.version}.dist-info"
        yield f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {found.version}\n"
        points: dict[str, list[str]] = {}
        for point in found.entry_points:
            if point.group == "vsockfwd.modes" or (point.group == "vsockfwd.commands" and point.name in COMMANDS):
                points.setdefault(point.group, []).append(f"{point.name} = {point.value}")
        text = "".join(f"[{group}]\n" + "".join(f"{line}\n" for line in lines) for group, lines in points.items())
        yield f"{folder}/entry_points.txt", text


def build(target: Path) -> None:
    archive = io.BytesIO()
    extensions = {}
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:

        def add(name: str, data: bytes | str) -> None:
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)

        for name, source in sources():
            if source.suffix == ".so":
                module = name.partition(".")[0].replace("/", ".")
                extensions[module] = name
                add(name, stripped(source))
            else:
                add(f"{name}c", compiled(source, name))
        for name, text in metadata():
            add(name, text)
        python = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
        libc = "musl" if "musl" in sysconfig.get_config_var("EXT_SUFFIX") else "glibc"
        main = (HERE / "main.py").read_text()
        for word, value in {
            "@SUFFIX@": sysconfig.get_config_var("EXT_SUFFIX"),
            "@NAME@": f"{python} on Linux {platform.machine()} with {libc}",
            '{"@MODULE@": "@FILE@"}': repr(extensions),
        }.items():
            main = main.replace(word, value)
        add("__main__.py", main)
    target.write_bytes(b"#!/usr/bin/env python3\n" + archive.getvalue())
    target.chmod(0o755)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
