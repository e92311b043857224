"""What a model and its code say they need: imports read from source, modules turned into distributions, and pins."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Mapping

from mlpacker.environments.interpreters import Distribution, Installed, canonical
from mlpacker.environments.lock import pinned, requirement
from mlpacker.errors import BadDescription

# Imported by another name than they are installed by, where no interpreter has them to ask.
_KNOWN = {
    "bs4": "beautifulsoup4",
    "category_encoders": "category-encoders",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "fitz": "pymupdf",
    "google.protobuf": "protobuf",
    "imblearn": "imbalanced-learn",
    "jwt": "pyjwt",
    "pil": "pillow",
    "pil.image": "pillow",
    "pywt": "pywavelets",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "skopt": "scikit-optimize",
    "usb": "pyusb",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}
# Two distributions of one module: what a training machine has beside what serves as well without a display or a GPU.
_STAND_INS = {
    "opencv-python": "opencv-python-headless",
    "opencv-contrib-python": "opencv-contrib-python-headless",
    "tensorflow-gpu": "tensorflow",
    "sklearn": "scikit-learn",
}
_OURS = {"mlpacker", "mlpacker-runtime"}
# Standard modules by the newest interpreter that may run the code; removed ones stay standard for older code.
_STANDARD = set(sys.stdlib_module_names) | {"asyncore", "asynchat", "distutils", "imp", "smtpd", "tomllib"}


def imports(source: str) -> set[str]:
    """Top-level names that Python code imports, the standard library's left out.

    Imports in functions, in `try` and under `if TYPE_CHECKING` count too. Raises BadDescription on a syntax error.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise BadDescription(f"The code can't be read: {error}.", "It has to be Python 3 source.") from error
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return {name for name in found if name not in _STANDARD}


def distributions_for(modules: Iterable[str], installed: Installed | None) -> tuple[str, ...]:
    """The distributions that hold these modules (dotted names are cut to their first part), sorted.

    `installed` is what the training interpreter has; what it lacks is looked up among well-known names, else a module
    is taken to be installed by its own name. Standard modules and our own are left out.
    """
    top_level = installed.top_level if installed is not None else {}
    found = set()
    for module in modules:
        name = module.partition(".")[0]
        if not name or name in _STANDARD or name.startswith("_") or name == "__main__":
            continue
        told = top_level.get(name) or _KNOWN.get(name.lower()) or canonical(name)
        found.add(_STAND_INS.get(told, told))
    return tuple(sorted(found - _OURS))


def least(modules: Iterable[str]) -> tuple[str, ...]:
    """Requirements that follow from the very modules a pickle names: `numpy._core` is there from NumPy 2 on."""
    return ("numpy>=2",) if any(f"{module}.".startswith("numpy._core.") for module in modules) else ()


def pins(
    model_says: Mapping[str, str],
    user: Iterable[str] = (),
    mlmodel: Iterable[str] = (),
    training: Mapping[str, str] | Installed | None = None,
    needed: Iterable[str] = (),
) -> tuple[str, ...]:
    """The requirements of an environment, each distribution once, in this order of trust:

    1. `model_says`: versions that the model file itself carries. A user's or MLmodel's requirement for the same
       distribution joins it only when it allows that version; one that does not is an error.
    2. `user` (descriptor, requirements.txt), then `mlmodel` (an MLflow folder's).
    3. `training`: the training interpreter's installed versions of what else is `needed`, if its versions of what the
       model told are the same ones; one that was not the training interpreter says nothing.
    4. What else is `needed` (a name, or a requirement such as `least` gives) stays open, and is resolved as of the pins'
       time.

    Raises BadDescription when the user's requirement contradicts the model file.
    """
    told = {canonical(name): version for name, version in model_says.items()}
    found = {name: f"{name}=={version}" for name, version in told.items()}
    for source, texts in (("requirements", user), ("MLmodel", mlmodel)):
        for text in texts:
            _take(found, told, text, source)
    trusted = _trusted(told, training)
    for text in sorted(needed):  # of "numpy" and "numpy>=2" the latter says more, and comes later
        name = canonical(requirement(text).name)
        if found.get(name, name) == name:
            found[name] = (
                f"{name}=={trusted[name]}"
                if name in trusted
                else text.replace(requirement(text).name, name, 1)
            )
    return tuple(found[name] for name in sorted(found) if name not in _OURS)


def agrees(told: Mapping[str, str], installed: Mapping[str, str]) -> bool:
    """Does an interpreter have the very versions that a model file tells?"""
    names = {canonical(name): version for name, version in told.items()}
    return all(installed.get(_variant_of(name, installed)) == version for name, version in names.items())


def strangers(installed: Installed, needed: Iterable[str]) -> tuple[Distribution, ...]:
    """Needed distributions that the training interpreter has from a folder or a repository: no index has them."""
    names = sorted({canonical(one) for one in needed} & installed.distributions.keys())
    known = [installed.distributions[name] for name in names]
    return tuple(one for one in known if one.origin != "index")


def _take(found: dict[str, str], told: Mapping[str, str], text: str, source: str) -> None:
    wanted = requirement(text)
    name = canonical(wanted.name)
    if name in _OURS or (name == "mlflow" and source == "MLmodel"):
        return
    if name in told:
        if told[name] not in wanted.specifier and wanted.url is None:
            if source == "MLmodel":
                return
            raise BadDescription(
                f"The requirement {text!r} contradicts the model file, which was written with {name} {told[name]}.",
                f'Leave it out, or write "{name}=={told[name]}".',
            )
        if wanted.url is None:
            found[name] = f"{_with_extras(name, wanted.extras)}=={told[name]}"
            return
    if name in found and source == "MLmodel" and not (pinned(text) and not pinned(found[name])):
        return
    found[name] = str(wanted)


def _with_extras(name: str, extras: set[str]) -> str:
    return f"{name}[{','.join(sorted(extras))}]" if extras else name


def _trusted(told: Mapping[str, str], training: Mapping[str, str] | Installed | None) -> dict[str, str]:
    """The training interpreter's versions, or none when it is not the one that made the model."""
    if training is None:
        return {}
    versions = training.versions if isinstance(training, Installed) else training
    installed = {canonical(name): version for name, version in versions.items()}
    if not agrees(told, installed):
        return {}
    stand_ins = {stand: installed[name] for name, stand in _STAND_INS.items() if name in installed}
    return stand_ins | installed


def _variant_of(name: str, installed: Mapping[str, str]) -> str:
    """xgboost is at home as xgboost-cpu too."""
    return f"{name}-cpu" if name not in installed and f"{name}-cpu" in installed else name
