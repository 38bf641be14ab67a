"""transformers' own common tests, from the source distribution of the installed version.

The archive lacks what these tests import from other folders. What is missing stands here in its smallest form: the
tests of exporters and of generation are not run (our own of the same names are in `test_generation.py`).
"""

import re
import subprocess
import sys
import tarfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

CACHE = Path(__file__).parents[2] / ".conformance"
PACKAGE = "transformers_tests"
MISSING = {
    # the tests import their own folder as if it were transformers
    f"{PACKAGE}/__init__.py": "",
    f"{PACKAGE}/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    f"{PACKAGE}/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    # values of a config without sub-configs, which this package has not
    f"{PACKAGE}/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    # turns addresses into paths of a cache of transformers' own CI
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, *args, **kwargs):\n    return url\n",
}


def fetch() -> Path:
    """Folder of the unpacked tests, which pip downloads once for each version of transformers.

    Raises:
        RuntimeError: pip cannot fetch the source distribution.
    """
    number = version("transformers")
    folder = CACHE / number
    if (folder / "complete").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-binary", ":all:", "--dest", str(folder), f"transformers=={number}"]
    if (done := subprocess.run(command, capture_output=True, text=True)).returncode:
        raise RuntimeError(f"pip cannot fetch the sources of transformers {number}: {done.stderr.strip()[-300:]}")
    with tarfile.open(folder / f"transformers-{number}.tar.gz") as archive:
        for member in archive.getmembers():
            name = re.fullmatch(r"[^/]+/tests/(test_\w+_common\.py)", member.name)
            if name and (content := archive.extractfile(member)) is not None:
                target = folder / PACKAGE / name.group(1)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(content.read())
    for name, code in MISSING.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code, encoding="utf-8")
    (folder / "complete").touch()
    return folder


def load(name: str) -> ModuleType:
    """A module of transformers' tests, such as `test_modeling_common`."""
    folder = str(fetch())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(f"{PACKAGE}.{name}")
