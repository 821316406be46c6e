"""What a virtual machine of the rig boots from: a kernel of Debian's, its modules, `init`, and what Python reads first.

The last of these is there without being carried in: the machine sees all files of this one over 9p. But each file costs
some round trips, and in the nested guest, whose 9p ends in another machine's 9p, an import of the command line took
39 s of them instead of 20 with this.
"""

import functools
import importlib.util
import lzma
import os
import py_compile
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from tests.vm.machine import MachineFailed

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsockfwd-rig"
MODULES_OF_THE_ROOT = ("9pnet_virtio", "9p", "overlay")
CONTROL_PORT = "control"
APPLETS = ["chmod", "dirname", "hostname", "insmod", "ip", "mkdir", "mount", "mv", "sh", "switch_root"]
DIRECTORY, FILE, PROGRAM, SYMLINK = 0o040755, 0o100644, 0o100755, 0o120777
# Run by a fresh interpreter, so that nothing but the command line's own imports is found.
LIST_FILES = """
import sys
sys.path.insert(0, sys.argv[1])
import inside
inside.import_command_line()
with open("/proc/self/maps") as maps:
    files = {line.split(maxsplit=5)[5].rstrip() for line in maps if "/" in line}
files.update(getattr(module, "__file__", None) or "" for module in sys.modules.values())
print(*sorted(file for file in files if file.startswith("/")), sep="\\n")
"""


def build(name: str, modules: Sequence[str], tmp: str, folder: Path) -> bytes:
    """The initramfs of the machine `name`. Inside, `tmp` is made anew, and `folder` is as it is here."""
    exports = [
        f"export {key}={shlex.quote(value)}\n" for key, value in configuration(name, modules, tmp, folder).items()
    ]
    files = {
        "bin/busybox": (PROGRAM, Path("/bin/busybox").read_bytes()),
        **{f"bin/{applet}": (SYMLINK, b"busybox") for applet in APPLETS},
        "init": (PROGRAM, (HERE / "init").read_bytes()),
        "config": (FILE, "".join(exports).encode()),
        **{f"modules/{module}": (FILE, content) for module, content in module_contents(modules)},
        **{f"carried{path}": (PROGRAM, content) for path, content in carried_files().items()},
    }
    folders = sorted({str(parent) for file in files for parent in PurePath(file).parents} - {"."})
    return b"".join(
        [
            *(cpio_entry(folder, DIRECTORY) for folder in ["dev", "proc", "sys", *folders]),
            *(cpio_entry(file, mode, content) for file, (mode, content) in files.items()),
            cpio_entry("TRAILER!!!", 0),
        ]
    )


def kernel() -> Path:
    found = next((CACHE / "linux/boot").glob("vmlinuz-*"), None)
    if found is None:
        raise MachineFailed(f"no kernel in {CACHE}: run tests/vm/install.sh first")
    return found


def configuration(name: str, modules: Sequence[str], tmp: str, folder: Path) -> Mapping[str, str]:
    """What `init` is told, and the environment that every process inside begins with."""
    return {
        "HOSTNAME": name,
        "MODULES": " ".join(path.name.removesuffix(".xz") for path in module_files(modules)),
        "NEEDED_PATHS": " ".join(map(str, (sys.prefix, sys.base_prefix, CHECKOUT, CACHE, folder))),
        "PYTHON": sys.executable,
        "INSIDE": str(HERE / "inside.py"),
        "PORT": CONTROL_PORT,
        "TMP": tmp,
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),  # the checkout under test, where it is not the installed one
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }


def module_files(modules: Sequence[str]) -> list[Path]:
    """The files of these kernel modules and of those they need, in the order to load them."""
    release = kernel().name.removeprefix("vmlinuz-")
    wanted = (*MODULES_OF_THE_ROOT, *modules)
    shown = subprocess.run(
        ["/sbin/modprobe", "-d", str(CACHE / "linux"), "-S", release, "--show-depends", "-a", *wanted],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    files = [line.split()[1] for line in shown.splitlines() if line.startswith("insmod ")]
    return [Path(file) for file in dict.fromkeys(files)]


def module_contents(modules: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for path in module_files(modules):
        content = path.read_bytes()
        # Unpacked here: emulated, it would take longer than the rest of the boot.
        yield path.name.removesuffix(".xz"), lzma.decompress(content) if path.suffix == ".xz" else content


@functools.cache
def carried_files() -> Mapping[Path, bytes]:
    """Contents by path, which has no symbolic links in it."""
    listing = [sys.executable, "-c", LIST_FILES, str(HERE)]
    listed = subprocess.run(listing, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    # Each start of the command line looks for entry points in all that is installed.
    packages = Path(sysconfig.get_path("purelib"))
    installed = [*packages.glob("*.pth"), *packages.glob("*.dist-info/METADATA"), *packages.glob("*.dist-info/*.txt")]
    files: dict[Path, bytes] = {}
    for path in {Path(file).resolve() for file in [*listed, *map(str, installed)] if os.path.isfile(file)}:
        files[path] = path.read_bytes()
        if path.suffix == ".py":
            files[Path(importlib.util.cache_from_source(path))] = bytecode(path)
    return files


def bytecode(source: Path) -> bytes:
    with tempfile.NamedTemporaryFile() as target:
        # Unchecked: it is made from the very bytes carried beside it, and an initramfs keeps no times.
        py_compile.compile(
            str(source), target.name, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
        return Path(target.name).read_bytes()


def cpio_entry(name: str, mode: int, content: bytes = b"") -> bytes:
    """One file in the format that the kernel unpacks, `newc` (Documentation/driver-api/early-userspace)."""
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)
