"""Fixtures that several test folders share. Each folder's own fixtures live in its own conftest."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from infra.embedded.find import postgres_programs, redis_program, weed_program
from infra.embedded.memory import Memory
from infra.embedded.postgres import PostgresServer
from infra.embedded.redis import RedisServer
from infra.embedded.s3 import S3Server
from tests.nursery import Nursery
from tests.stack import BATCH_CLERK, Stack, running_stack, shared_stacks

# Before torch is imported: one thread is faster than two for nets this small, and xdist runs several tests at once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that asks the hub for something is a broken test.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The machines are shared and slow at times: no test is about the time that it takes.
settings.register_profile("glmq", deadline=None)
settings.load_profile("glmq")

_MEMORY_DISK = Path("/dev/shm")  # noqa: S108 - a disk in memory, where a folder with a name of its own is made
_ROOM_BYTES = 2 << 30
"""A server fills a gigabyte in a long run; containers often have a memory disk of 64 MiB."""


_SHARED_STACK = {"e2e": "stack", "conformance": "stack", "faults": "faults"}
"""Folders whose files share a running stack, which takes half a minute to start: all of them run in one xdist worker."""


_OWN_STACKS = ("tests/e2e/test_command_line.py", "tests/e2e/test_words.py")
"""Start their own, and take as long as all others of their folder together."""


_LONGEST_FIRST = (
    "stack",
    "faults",
    "tests/integration/test_stack_ends.py",
    "tests/integration/test_ar_exact.py",
    "tests/integration/test_decoder_exact.py",
    "tests/e2e/test_words.py",
    "tests/integration/test_embedded.py",
    "tests/e2e/test_command_line.py",
    "tests/integration/api/test_schemathesis.py",
    "tests/integration/test_reuse.py",
    "tests/unit/checkpoints/train/test_stages.py",
)
"""What takes a minute or more, however few tests it is: begun last, it would keep one process busy while the others have nothing left."""


def _scope(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return path if path in _OWN_STACKS else _SHARED_STACK.get(path.split("/")[1], path)


class _ByStack(LoadScopeScheduling):
    """The tests of a file in one xdist worker, and those of files that share a stack. (xdist's own groups do nothing under pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long first, all else in its order behind it."""
    ranks = {scope: rank for rank, scope in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(_scope(item.nodeid), len(ranks)))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """A stack whose tests are over ends, and not with the session: an idle one has a tenth of a core."""
    scope = _scope(item.nodeid)
    if scope in shared_stacks and (nextitem is None or _scope(nextitem.nodeid) != scope):
        shared_stacks.pop(scope).stop()


_NURSERY = pytest.StashKey[Nursery]()


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist fork its workers from a process that has imported, where it would have each of them import for itself."""
    if config.option.tx and not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="glmq-nursery-")
        config.add_cleanup(folder.cleanup)
        nursery = config.stash[_NURSERY] = Nursery.begin(Path(folder.name))
        config.option.tx = [f"popen//python={nursery.python()}"] * len(config.option.tx)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist's where it comes from."""
    node.workerinput["nursery"] = node.config.stash[_NURSERY].address


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByStack:
    """Hand out tests by stack, in the order in which they were collected, and not those of many tests first."""
    config.option.loadscopereorder = False
    return _ByStack(config, log)


def pytest_collection_finish() -> None:
    """Nothing that was imported until now goes away again: the collector need not look at it a thousand times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def throwaway() -> Iterator[Path]:
    """A folder for servers, in memory where there is room, deleted at the end. One per xdist worker."""
    in_memory = _MEMORY_DISK.is_dir() and os.access(_MEMORY_DISK, os.W_OK) and shutil.disk_usage(_MEMORY_DISK).free > _ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="glmq-test-", dir=_MEMORY_DISK if in_memory else None) as name:
        folder = Path(name)
        # Root's Postgres runs as nobody, who must be able to pass.
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def postgres_server(throwaway: Path) -> Iterator[PostgresServer]:
    """A running Postgres; its data is not synced to disk."""
    server = PostgresServer(
        throwaway / "postgres", Memory(throwaway / "postgres.json"), throwaway / "postgres.log", postgres_programs(), durable=False
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of an empty database that all tests of one xdist worker share; most want `database_url`."""
    return postgres_server.url()


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh, empty database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def redis_url(throwaway: Path) -> Iterator[str]:
    """URL of a running Redis that all tests of one xdist worker share."""
    server = RedisServer(throwaway / "redis", Memory(throwaway / "redis.json"), throwaway / "redis.log", redis_program(), durable=False)
    server.start()
    yield server.url()
    server.stop()


@pytest.fixture(scope="session")
def s3(throwaway: Path) -> Iterator[S3Server]:
    """A running S3 with `endpoint`, `access_key` and `secret_key`, no bucket yet; shared by all tests of one xdist worker."""
    server = S3Server(throwaway / "s3", Memory(throwaway / "s3.json"), throwaway / "s3.log", weed_program(), durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def miniature(pytestconfig: pytest.Config) -> Path:
    """
    Folder of the random-weight miniature checkpoint; read only.

    Kept between runs, because importing what builds it takes seconds; made anew when its recipe or a library changes.
    """
    recipe = Path(__file__).parents[1] / "checkpoints" / "random_miniature.py"
    key = hashlib.sha256(recipe.read_bytes())
    for library in ("torch", "transformers", "diffusers", "tokenizers", "safetensors"):
        key.update(f"{library}={version(library)}".encode())
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("miniature")
    folder = cache / key.hexdigest()[:16]
    if not folder.exists():
        # build() is safe without a lock; this only spares the other xdist workers the same work.
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            from checkpoints import random_miniature

            random_miniature.build(folder)
    return folder


@pytest.fixture(scope="session")
def nursery(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Nursery:
    """Where processes of the service are started from; one for all xdist workers, who come from there too."""
    given: dict[str, Any] = getattr(pytestconfig, "workerinput", {})
    return Nursery(given["nursery"]) if given else Nursery.begin(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def stack(
    nursery: Nursery,
    postgres_server: PostgresServer,
    redis_url: str,
    s3: S3Server,
    miniature: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """
    Every role and the clerk of batches running, with random weights; for all who break nothing.

    The workers know the adapter `ink`, for both halves, and `torn`, which is broken.
    """
    # Here, so that tests without a stack need not wait for torch.
    import torch
    from peft import LoraConfig

    from tests.adapter_files import write_adapter

    adapters = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    write_adapter(miniature, "ar", adapters / "ink", LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    write_adapter(miniature, "decoder", adapters / "ink", LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v"]))
    (adapters / "torn" / "ar").mkdir(parents=True)
    # Clients are to meet the comments of silent streams, which come every ten seconds unless told otherwise.
    short = {"GLMQ_LORA_DIR": str(adapters), "GLMQ_STREAM_HEARTBEAT_S": "0.2"}
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(nursery, postgres_server, redis_url, s3, miniature, folder, BATCH_CLERK, **short) as running:
        shared_stacks["stack"] = running
        yield running
