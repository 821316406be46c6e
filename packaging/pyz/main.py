# The first file that Python runs of vsockfwd.pyz. Any Python may be given it, however old: it says which one is needed.
import sys

NEEDS = {"suffix": "@SUFFIX@", "name": "@NAME@"}
EXTENSIONS = {"@MODULE@": "@FILE@"}


def fits():
    try:
        from importlib.machinery import EXTENSION_SUFFIXES
    except ImportError:
        return False
    return NEEDS["suffix"] in EXTENSION_SUFFIXES


def told():
    name = getattr(getattr(sys, "implementation", None), "name", "python")
    message = "vsockfwd.pyz: made for %s, this is %s %s on %s - try python%s, or make another: make pyz PYTHON=..."
    return message % (NEEDS["name"], name, sys.version.split()[0], sys.platform, NEEDS["name"].split()[1])


class Extensions(object):
    """Finds the modules that are machine code, which Python does not load out of an archive: by a file in memory."""

    def find_spec(self, name, path=None, target=None):
        if name not in EXTENSIONS:
            return None
        from importlib.machinery import ExtensionFileLoader
        from importlib.util import spec_from_file_location

        place = self.place(__loader__.get_data("%s/%s" % (__loader__.archive, EXTENSIONS[name])))
        return spec_from_file_location(name, place, loader=ExtensionFileLoader(name, place))

    def place(self, data):
        import os

        try:
            descriptor = os.memfd_create("vsockfwd", os.MFD_CLOEXEC)
            os.write(descriptor, data)
            place = "/proc/self/fd/%d" % descriptor
            if os.path.exists(place):
                return place
        except (AttributeError, OSError):
            pass
        import atexit
        import tempfile

        # A kernel without such files, or no /proc: a file that goes when we do.
        file = tempfile.NamedTemporaryFile(suffix=NEEDS["suffix"], delete=False)
        file.write(data)
        file.close()
        atexit.register(os.unlink, file.name)
        return file.name


if __name__ == "__main__":
    if not fits():
        sys.stderr.write(told() + "\n")
        sys.exit(69)
    sys.meta_path.insert(0, Extensions())
    from vsockfwd.__main__ import main

    sys.exit(main())
