"""The packages of a build: those that the folders hold. All else is in pyproject.toml.

setuptools finds packages under the names of their folders, and `cli/` is imported as `embedpipe_cli` (nobody's
site-packages gets a top-level module named `cli`): the one thing that pyproject.toml cannot say without a list.
"""

from setuptools import find_packages, setup

# The import name of each folder at the top of the tree that is a package of the distribution.
ROOMS = {"embedpipe": "embedpipe", "dalle2_core": "dalle2_core", "cli": "embedpipe_cli"}


def _packages() -> list[str]:
    found: list[str] = []
    for folder, name in ROOMS.items():
        found += (name + package.removeprefix(folder) for package in find_packages(include=[folder, f"{folder}.*"]))
    return found


setup(packages=_packages(), package_dir={name: folder for folder, name in ROOMS.items()})
