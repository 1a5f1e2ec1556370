"""infra/docker/Dockerfile against the tree, the locks and the code; no image is built."""

from __future__ import annotations

import fnmatch
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path, PurePosixPath

import grimp
import pytest

from tests.dockerfile import Dockerfile

ROOT = Path(__file__).parents[3]
DOCKERFILE = Dockerfile(ROOT / "infra" / "docker" / "Dockerfile")
LOCKS = ROOT / "infra" / "docker" / "locks"

LOCK_OF = {
    "migrate": "dispatcher",  # the core, without an extra: the dispatcher's is empty
    "api": "api",
    "batch_clerk": "api",
    "dispatcher": "dispatcher",
    "webhook_sender": "webhooks",
    "ar_worker": "ar",
    "decoder_worker": "decoder",
}
IMAGES = sorted(LOCK_OF)
CODE_OF = {"batch_clerk": "api"}
"""Services that are another one's code."""
WORKERS = ("ar_worker", "decoder_worker")

OURS = ("services", "shared", "infra")

NEVER_REACHED = {
    ("shared.checkpoint", "huggingface_hub"): "imported inside resolve_checkpoint, which only workers call",
    ("shared.quantization", "torchao"): "an extra, imported where it is asked for; docs/gpu.md tells how to add it to an image",
}
"""Imports that an image without the library may contain: who imports what, and why that is well."""


def locked(name: str) -> dict[str, set[str]]:
    return versions_in(LOCKS / f"{name}.lock")


def versions_in(lock: Path) -> dict[str, set[str]]:
    """Versions by distribution; more than one where it depends on the Python."""
    found: dict[str, set[str]] = {}
    for line in lock.read_text().splitlines():
        if match := re.match(r"([a-z0-9-]+)==([^ ;\\]+)", line):
            found.setdefault(match[1], set()).add(match[2])
    return found


def installs(stage: str) -> list[str]:
    """The package installations of a stage and of those it starts from, the build tools aside."""
    runs = [arguments for instruction, arguments in DOCKERFILE.steps(stage) if instruction == "RUN"]
    return [run for run in runs if run.startswith("uv pip install")]


@cache
def import_graph() -> grimp.ImportGraph:
    """Who imports whom, what is imported inside functions included."""
    return grimp.build_graph(*OURS, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None)


def modules_of(image: str) -> set[str]:
    """Our modules that the command of an image imports, with the packages they are in."""
    graph = import_graph()
    command = DOCKERFILE.command(image)[-1]
    entry = f"{command}.__main__" if file_of(command).name == "__init__.py" else command
    reached = {module for module in (entry, *graph.find_upstream_modules(entry)) if module.split(".")[0] in OURS}
    return {".".join(parts[:length]) for parts in (module.split(".") for module in reached) for length in range(1, len(parts) + 1)}


def file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("image", IMAGES)
def test_copied_paths_exist(image: str) -> None:
    """Every path that an image copies is in the tree, and .dockerignore lets it through."""
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    refused = [line for line in ignore if not line.startswith("!")]
    stages = {image, *(copy.stage for copy in DOCKERFILE.copies(image) if copy.stage)}
    sources = [source for stage in stages for copy in DOCKERFILE.copies(stage) if copy.stage is None for source in copy.sources]

    assert sources
    assert refused[0] == "*"
    for source in sources:
        assert (ROOT / source).exists(), source
        assert PurePosixPath(source).parts[0] in allowed, source
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in refused[1:]), source


@pytest.mark.parametrize("image", IMAGES)
def test_copied_stages_exist(image: str) -> None:
    """What an image takes from another stage is a stage of the file."""
    assert {copy.stage for copy in DOCKERFILE.copies(image) if copy.stage} <= DOCKERFILE.stages.keys()


@pytest.mark.parametrize("image", IMAGES)
def test_image_installs_its_lock_only(image: str) -> None:
    """An image holds one environment: that of its extra, every package with its hash, and torch only for the workers."""
    (environment,) = {copy.stage for copy in DOCKERFILE.copies(image) if copy.target == "/venv"}
    assert environment is not None
    lock = LOCK_OF[image]
    *before, last = installs(environment)

    assert last == f"uv pip install --no-deps --require-hashes --compile-bytecode --requirement {lock}.lock"
    torch = f"uv pip install --compile-bytecode torch=={version('torch').partition('+')[0]}"
    assert before == ([torch] if image in WORKERS else [])
    locks = [source for copy in DOCKERFILE.copies(environment) for source in copy.sources if source.endswith(".lock")]
    assert locks == ["infra/docker/locks/build.lock", f"infra/docker/locks/{lock}.lock"]


@pytest.mark.parametrize("image", IMAGES)
def test_image_holds_its_own_service_only(image: str) -> None:
    """No image carries another service's code."""
    copied = {source for copy in DOCKERFILE.copies(image) if copy.stage is None for source in copy.sources}
    services = {source for source in copied if source.startswith("services/")}

    assert services == (set() if image == "migrate" else {"services/__init__.py", f"services/{CODE_OF.get(image, image)}"})


@pytest.mark.parametrize("image", IMAGES)
def test_imported_modules_are_copied(image: str) -> None:
    """Every module of ours that the command of an image imports, however indirectly, is in the image."""
    copied = [source for copy in DOCKERFILE.copies(image) if copy.stage is None for source in copy.sources]
    files = {file_of(module).relative_to(ROOT).as_posix() for module in modules_of(image)}

    missing = {file for file in files if not any(file == source or file.startswith(f"{source}/") for source in copied)}

    assert missing == set()


@pytest.mark.parametrize("image", IMAGES)
def test_imported_libraries_are_installed(image: str) -> None:
    """Every library that one of these modules imports is in the lock of the image."""
    graph = import_graph()
    provided = locked(LOCK_OF[image]).keys() | ({"torch"} if image in WORKERS else set())
    distributions = packages_distributions()
    missing = set()
    for module in modules_of(image):
        for library in {imported.split(".")[0] for imported in graph.find_modules_directly_imported_by(module)}:
            if library in OURS or library in sys.stdlib_module_names:
                continue
            names = {name.lower().replace("_", "-") for name in distributions[library]}
            if not names & provided:
                missing.add((module, library))

    assert missing - NEVER_REACHED.keys() == set()


@pytest.mark.parametrize("image", WORKERS)
def test_workers_lack_optional_libraries_only(image: str) -> None:
    """What a worker may go without is an extra of the project; the hub's client, which it calls, is in its lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = {re.split(r"[^\w-]", requirement)[0] for requirement in project["optional-dependencies"]["quantization"]}

    assert {library for _, library in NEVER_REACHED} - optional == {"huggingface_hub"}
    assert "huggingface-hub" in locked(LOCK_OF[image])


@pytest.mark.parametrize("name", sorted({*LOCK_OF.values()}))
def test_locks_agree(name: str) -> None:
    """An image installs the versions that the tests ran with."""
    tested = versions_in(ROOT / "requirements.lock")

    assert locked(name)
    assert {package: versions for package, versions in locked(name).items() if versions != tested.get(package)} == {}


def test_base_image_is_pinned() -> None:
    """All images start from one Python: the oldest that is allowed, for which the locks were made."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert DOCKERFILE.base_images() == {f"python:{project['requires-python'].removeprefix('>=')}-slim-bookworm"}


@pytest.mark.parametrize("image", IMAGES)
def test_images_do_not_run_as_root(image: str) -> None:
    """Every image ends as an ordinary user."""
    assert DOCKERFILE.last(image, "USER") == "glmq"
