"""Run by an interpreter we ask (`python -I ask_interpreter.py interpreter|installed`); prints one JSON object.

Python 3.6 and later, standard library only, and it imports nothing that is installed: distributions are read from
their metadata folders on `sys.path`.
"""

import json
import os
import platform
import site
import sys

SYSTEMS = {"Linux": "linux", "Darwin": "macos", "Windows": "windows"}
MACHINES = {("linux", "arm64"): "aarch64", ("macos", "aarch64"): "arm64"}


def interpreter() -> dict:
    system = SYSTEMS.get(platform.system(), platform.system().lower())
    machine = platform.machine().lower()
    machine = MACHINES.get((system, machine), "x86_64" if machine == "amd64" else machine)
    return {
        "executable": sys.executable,
        "python": "%d.%d" % sys.version_info[:2],
        "full": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": machine + "-" + system,
        "prefix": sys.prefix,
        "base": sys.base_prefix,
    }


def search_path() -> list:
    """sys.path, and the user's own site folder, which -I leaves out but a training script sees."""
    folders = [folder for folder in sys.path if os.path.isdir(folder)]
    if sys.prefix == sys.base_prefix and not os.environ.get("PYTHONNOUSERSITE"):
        own = site.getusersitepackages()
        if os.path.isdir(own) and own not in folders:
            folders.insert(0, own)
    return folders[:]


def headers(path: str) -> dict:
    """Name and Version of a METADATA or PKG-INFO file."""
    found: dict = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                break
            key, colon, value = line.partition(":")
            if colon and key in ("Name", "Version"):
                found.setdefault(key, value.strip())
    return found


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError:
        return ""


def modules(folder: str, info: str) -> list:
    """Top-level names: what the record of files lists, else what top_level.txt says."""
    names = set()
    for line in read(os.path.join(folder, info, "RECORD")).splitlines():
        path = line.split(",")[0].strip('"')
        first, slash, rest = path.partition("/")
        if slash and first.isidentifier() and rest.endswith((".py", ".so", ".pyd")):
            names.add(first)
        elif not slash and path.endswith((".py", ".so", ".pyd")):
            names.add(path.split(".")[0])
    for line in read(os.path.join(folder, info, "top_level.txt")).splitlines():
        if line.strip().isidentifier():
            names.add(line.strip())
    return sorted(name for name in names if not name.startswith("__editable__"))


def origin(folder: str, info: str) -> tuple:
    """("index"|"editable"|"local"|"git", address), as PEP 610's direct_url.json says."""
    if info.endswith(".egg-info"):
        in_place = "site-packages" not in folder and "dist-packages" not in folder
        return ("editable", folder) if in_place else ("index", "")
    try:
        told = json.loads(read(os.path.join(folder, info, "direct_url.json")) or "null")
    except ValueError:
        told = None
    if not told:
        return "index", ""
    url = told.get("url", "")
    if "vcs_info" in told:
        return "git", url + "@" + told["vcs_info"].get("commit_id", "")
    if told.get("dir_info", {}).get("editable"):
        return "editable", url
    return "local", url


def installed() -> dict:
    found = []
    seen = set()
    for folder in search_path():
        for info in sorted(os.listdir(folder)):
            name = {".dist-info": "METADATA", ".egg-info": "PKG-INFO"}.get(os.path.splitext(info)[1])
            path = os.path.join(folder, info, name) if name else ""
            if name == "PKG-INFO" and os.path.isfile(os.path.join(folder, info)):
                path = os.path.join(folder, info)
            if not path or not os.path.isfile(path):
                continue
            told = headers(path)
            if "Name" not in told or "Version" not in told or told["Name"] in seen:
                continue
            seen.add(told["Name"])
            kind, source = origin(folder, info)
            found.append(
                {
                    "name": told["Name"],
                    "version": told["Version"],
                    "modules": modules(folder, info),
                    "origin": kind,
                    "source": source,
                }
            )
    return {"distributions": found}


if __name__ == "__main__":
    print(json.dumps({"interpreter": interpreter, "installed": installed}[sys.argv[1]]()))
