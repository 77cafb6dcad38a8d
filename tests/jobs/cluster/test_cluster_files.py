"""The files that bring a cluster up: valid where they will be read, agreeing with each other, nothing private sent."""

from __future__ import annotations

import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli

from jobs.batch.settings import CaptionSettings, FeatureSettings
from jobs.benchmark import BenchmarkSettings
from jobs.cli.arguments import parse
from jobs.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[3]
CLUSTERS = ROOT / "jobs" / "cluster" / "templates"
LAUNCHED = [ROOT / "cluster.yaml", CLUSTERS / "ssh.yaml"]
RAY_JOBS = [CLUSTERS / "kuberay-caption.yaml", CLUSTERS / "kuberay-train.yaml"]
MIB = 2**20


def load(path: Path) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


# --- the cluster launcher's ---------------------------------------------------------------------------------------


@pytest.fixture(params=LAUNCHED, ids=lambda path: path.name)
def cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A file as `ray up` completes it from its defaults."""
    prepared: dict[str, Any] = prepare_config(load(request.param))
    return prepared


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_a_misspelt_key_would_be_found() -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(load(LAUNCHED[0]) | {"idle_timeout": 5}))


def test_every_machine_has_the_token_and_asks_for_it(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in cluster["initialization_commands"])


def test_the_dashboard_is_only_on_the_heads_loopback(cluster: dict[str, Any]) -> None:
    start = cluster["head_start_ray_commands"][-1]
    assert re.findall(r"--dashboard-host\S*", start) == ["--dashboard-host=127.0.0.1"]


def test_workers_do_not_inherit_the_launchers_one_thread(cluster: dict[str, Any]) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert commands[-1].startswith("unset OMP_NUM_THREADS;")
        assert "ray start" in commands[-1]


def test_start_commands_have_only_options_of_ray_start(cluster: dict[str, Any]) -> None:
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        for command in commands:
            check_ray_command(command[command.index("ray ") :])


def test_mounted_files_exist_and_suffice_for_the_installation(cluster: dict[str, Any]) -> None:
    mounted = {remote: local for remote, local in cluster["file_mounts"].items() if remote.startswith("~/captionlib/")}
    assert mounted == {f"~/captionlib/{local}": local for local in mounted.values()}
    assert {"pyproject.toml", "README.md", ".constraints.txt", "captionlib", "jobs"} == set(mounted.values())
    assert all((ROOT / local).exists() for local in mounted.values())


def test_setup_installs_with_the_pinned_versions_and_rays_job_server(cluster: dict[str, Any]) -> None:
    # As merged by the launcher: no command of Ray's own defaults among them, which would call a pip that isn't there.
    for commands in (cluster["head_setup_commands"], cluster["worker_setup_commands"]):
        assert commands[-1].startswith("cd ~/captionlib && ~/.local/bin/uv pip install")
        words = shlex.split(commands[-1])
        assert words[words.index("-c") + 1] == ".constraints.txt"
        assert ".[cpu,train,cluster]" in words


def test_aws_accepts_the_machines() -> None:
    """Against botocore's own model of the call that starts them."""
    import botocore.session
    import botocore.validate

    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    for name, node_type in load(LAUNCHED[0])["available_node_types"].items():
        call = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = botocore.validate.ParamValidator().validate(call, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_aws_machines_cost_nothing_at_rest_but_the_head() -> None:
    config = load(LAUNCHED[0])
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for node_type in types.values():
        assert node_type["min_workers"] == 0
        assert node_type["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["max_workers"] == sum(node_type["max_workers"] for node_type in types.values())
    assert config["provider"]["cache_stopped_nodes"] is False


def test_aws_machines_have_roles_and_no_keys() -> None:
    text = LAUNCHED[0].read_text()
    assert not re.search(r"AKIA|aws_secret|AWS_SECRET", text)
    types = load(LAUNCHED[0])["available_node_types"]
    roles = {name: node_type["node_config"]["IamInstanceProfile"] for name, node_type in types.items()}
    worker = {"Name": "captionlib-worker"}
    assert roles == {"head": {"Name": "captionlib-head"}, "cpu_worker": worker, "gpu_worker": worker}


# --- Kubernetes ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=RAY_JOBS, ids=lambda path: path.name)
def ray_job(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)


def test_a_ray_job_has_only_fields_that_kuberay_knows(ray_job: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "rayjob_schema.json").read_text())
    jsonschema.validate(ray_job, schema)
    misspelt = {**ray_job, "spec": {**ray_job["spec"], "shutdownAfterJobFinish": True}}
    with pytest.raises(jsonschema.ValidationError, match="shutdownAfterJobFinish"):
        jsonschema.validate(misspelt, schema)


def test_a_ray_job_ends_its_cluster_and_asks_for_the_token(ray_job: dict[str, Any]) -> None:
    spec = ray_job["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_pods_get_what_they_ask_for_and_the_account_of_the_bucket(ray_job: dict[str, Any]) -> None:
    account = load(CLUSTERS / "kuberay-account.yaml")
    assert account["kind"] == "ServiceAccount"
    cluster = ray_job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == account["metadata"]["name"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert (group.get("groupName") == "gpu") == (gpus == 1)


def test_entrypoints_fit_their_clusters(ray_job: dict[str, Any]) -> None:
    (command,) = commands_of_the_project(ray_job["spec"]["entrypoint"])
    settings = parsed(command)
    groups = {group["groupName"]: group for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    resources = {
        name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()
    }
    cpus = {name: int(found["cpu"]) for name, found in resources.items()}
    if isinstance(settings, TrainSettings):
        assert settings.num_workers == groups["gpu"]["maxReplicas"]
        assert settings.cpus_per_worker == cpus["gpu"]
    else:
        assert settings.work.num_gpus <= groups["gpu"]["maxReplicas"]
        assert settings.work.num_cpus <= sum(cpus[name] * groups[name]["maxReplicas"] for name in groups)


def test_all_files_name_the_versions_of_the_constraints() -> None:
    pins = dict(line.split("==") for line in (ROOT / ".constraints.txt").read_text().split() if "==" in line)
    (image,) = re.findall(r"^FROM rayproject/ray:(\S+)-py(\d)(\d+)$", (CLUSTERS / "Dockerfile").read_text(), re.M)
    assert image[0] == pins["ray"]
    for path in LAUNCHED:
        assert f"uv venv --python {image[1]}.{image[2]} " in path.read_text()
    for path in RAY_JOBS:
        assert load(path)["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]


# --- what `ray job submit --working-dir .` sends ------------------------------------------------------------------


def sent(folder: Path, target: Path, excludes: list[str]) -> list[str]:
    """Names in the package that Ray makes of a folder."""
    create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    with zipfile.ZipFile(target) as package:
        return [name for name in package.namelist() if not name.endswith("/")]


def test_the_package_is_small_and_holds_what_the_jobs_need(tmp_path: Path) -> None:
    target = tmp_path / "package.zip"
    names = sent(ROOT, target, get_runtime_env_default_excludes())
    assert target.stat().st_size < 40 * MIB  # Ray's limit is 500
    python = {str(path.relative_to(ROOT)) for top in ("captionlib", "jobs") for path in (ROOT / top).rglob("*.py")}
    assert python <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert tops.isdisjoint({".git", ".venv", "out", "runs", "data", "build", "dist", ".demo"})
    private = re.compile(r"(^|/)(\.env|\.ssh|\.aws|auth_token|__pycache__)|\.(log|pem|key)$")
    assert [name for name in names if private.search(name)] == []


@pytest.mark.parametrize("excludes", [get_runtime_env_default_excludes(), []], ids=["this Ray", "an older Ray"])
def test_nothing_private_is_sent(tmp_path: Path, excludes: list[str]) -> None:
    project = tmp_path / "project"
    private = [
        ".env", ".env.local", "train.log", "jobs/debug.log", "key.pem", ".ssh/id_ed25519", ".aws/credentials",
        ".git/config", ".venv/bin/python", "out/run.json", "runs/a/best/model.safetensors", "data/x.jpg",
        "jobs/__pycache__/caption.pyc", ".mypy_cache/x", "captionlib.egg-info/PKG-INFO", ".ray/auth_token",
    ]  # fmt: skip
    wanted = ["jobs/caption.py", "captionlib/pretrained/default/model.safetensors", "jobs/data/x.py", "README.md"]
    for name in private + wanted:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    for name in (".gitignore", ".rayignore"):
        (project / name).write_text((ROOT / name).read_text())
    names = sent(project, tmp_path / "package.zip", excludes)
    assert sorted(names) == sorted([*wanted, ".gitignore", ".rayignore"])


# --- the page -----------------------------------------------------------------------------------------------------


def commands_of_the_page() -> Iterator[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (CLUSTERS / "README.md").read_text(), re.M | re.S)
    for line in "".join(blocks).splitlines():
        assert line.startswith("$ "), line
        yield from re.split(r" && ", line.removeprefix("$ "))


def check_ray_command(command: str) -> None:
    """Parse a `ray …` command with Ray's own parser, without running it."""
    words = shlex.split(command, comments=True)
    assert words[0] == "ray"
    group: click.Command = ray_cli
    context = click.Context(group, info_name="ray")
    words = words[1:]
    while isinstance(group, click.Group):
        name = words.pop(0)
        found = group.get_command(context, name)
        assert found is not None, f"{command}: there is no {name}"
        group = found
    group.make_context("ray", words)


def commands_of_the_project(text: str) -> list[str]:
    return re.findall(r"python -m jobs\.\w+ .*", text)


def parsed(command: str) -> Any:
    """The settings of a `python -m jobs.x …` command."""
    _, _, module, *arguments = shlex.split(command, comments=True)
    classes = {
        "jobs.caption": CaptionSettings,
        "jobs.extract_features": FeatureSettings,
        "jobs.train": TrainSettings,
        "jobs.benchmark": BenchmarkSettings,
    }
    return parse(classes[module], arguments, prog=module, description="")


def test_rays_commands_on_the_page_are_understood_by_ray() -> None:
    commands = [command for command in commands_of_the_page() if command.startswith("ray ")]
    assert len(commands) > 10
    for command in commands:
        check_ray_command(command)


def test_the_projects_commands_in_all_files_are_understood() -> None:
    texts = [path.read_text() for path in (CLUSTERS / "README.md", *RAY_JOBS)]
    commands = [command for text in texts for command in commands_of_the_project(text.replace("\n    --", " --"))]
    assert {command.split()[2].removeprefix("jobs.") for command in commands} == {
        "caption", "extract_features", "train", "benchmark",
    }  # fmt: skip
    for command in commands:
        settings = parsed(command)
        if isinstance(settings, BenchmarkSettings):
            continue  # of one machine
        assert (settings.address if isinstance(settings, TrainSettings) else settings.work.address) == "auto"


def test_files_that_the_page_names_exist() -> None:
    text = (CLUSTERS / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert all((CLUSTERS / link).exists() for link in links)
    assert all((ROOT / path).exists() for path in re.findall(r"(?:-f|up|down|dashboard) (\S+\.yaml|\S+file)", text))
