"""The files of configs/cluster, as far as they can be checked without such a cluster."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from launch.cli import _split, command_parser
from launch.cluster.package import check_portable
from launch.config import RunConfig
from launch.reading import read_config
from launch.recipes import find_recipe, recipes

FOLDER = Path(__file__).resolve().parents[3] / "configs" / "cluster"
LAUNCHER, KUBERAY, SLURM = (FOLDER / name for name in ("ray_launcher.yaml", "kuberay.yaml", "slurm.sbatch"))


def commands_of(path: Path) -> Iterator[list[str]]:
    """Every `trimline ...` of a file, of its comments too, with lines that go on put together."""
    text = re.sub(r"\\\n\s*", " ", path.read_text())
    if path == KUBERAY:
        yield shlex.split(yaml.safe_load(text.split("---\n")[1])["spec"]["entrypoint"])
    for line in text.splitlines():
        found = re.match(r"(?:#\s+)?(trimline (?:run|cluster) .*?)\s*&?$", line)
        if found:
            # What the shell computes is a number or a path.
            yield shlex.split(re.sub(r"\$\(\(.*?\)\)", "8", found[1]).replace("$data", "/d").replace("$out", "/o"))


@pytest.mark.parametrize("path", [LAUNCHER, KUBERAY, SLURM], ids=lambda path: path.name)
def test_every_command_of_the_files_is_one_that_trimline_takes(path: Path) -> None:
    commands = list(commands_of(path))
    assert commands
    for words in commands:
        assert words[0] == "trimline"
        own, overrides = _split(words[1:])
        options = command_parser().parse_args(own)
        config = read_config(RunConfig, [find_recipe(name) for name in options.configs], overrides)
        assert config.launcher == "ray"
        assert config.out.startswith("/")
        if options.command == "cluster":
            check_portable(config)
        else:
            assert config.cluster.address


def test_they_are_no_recipes_of_runs() -> None:
    assert not [name for name in recipes() if "cluster" in name]


def test_the_launchers_file_is_what_rays_own_schema_wants() -> None:
    config = yaml.safe_load(LAUNCHER.read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    provider = config["provider"]
    assert config["max_workers"] == len(provider["worker_ips"])
    # The addresses are of the range for documentation: nobody's machines are named by mistake.
    assert all(ip.startswith("192.0.2.") for ip in [provider["head_ip"], *provider["worker_ips"]])
    head = " ".join(config["head_start_ray_commands"])
    assert f"--node-ip-address={provider['head_ip']}" in head
    assert "--dashboard-host=127.0.0.1" in head


def test_the_kubernetes_objects_have_the_fields_that_the_operator_wants() -> None:
    claim, job = yaml.safe_load_all(KUBERAY.read_text())
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        # Kubernetes takes texts only there, and no numbers.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        check_pod(group["template"]["spec"], claim["metadata"]["name"])
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    (words,) = commands_of(KUBERAY)
    _, overrides = _split(words[1:])
    wanted = read_config(RunConfig, [find_recipe(name) for name in words[2:4]], overrides).cluster
    limits = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    replicas = cluster["workerGroupSpecs"][0]["replicas"]
    assert replicas * int(limits["nvidia.com/gpu"]) == wanted.workers * wanted.gpus_per_worker
    assert replicas * int(limits["cpu"]) >= wanted.workers * wanted.cpus_per_worker


def check_pod(pod: dict[str, Any], claim: str) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared"]["persistentVolumeClaim"]["claimName"] == claim
    for container in pod["containers"]:
        assert container["name"]
        assert container["image"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
        assert all({"name"} < set(variable) for variable in container["env"])
        # A secret is named, never written down.
        assert not [v for v in container["env"] if "KEY" in v["name"] and "value" in v]


def test_the_slurm_script_is_shell() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)], check=False).returncode == 0
    lines = SLURM.read_text().splitlines()
    directives = [at for at, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [at for at, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(directives) < min(commands), "Slurm reads no directive behind the first command"


def test_the_slurm_script_gives_the_run_most_of_the_notice() -> None:
    (given,) = re.findall(r"#SBATCH --signal=B:TERM@(\d+)", SLURM.read_text())
    (words,) = [words for words in commands_of(SLURM) if words[1] == "run"]
    _, overrides = _split(words[1:])
    wanted = read_config(RunConfig, [find_recipe(name) for name in words[2:4]], overrides).cluster.notice_seconds
    assert 0.7 * int(given) <= wanted <= int(given) - 30, "ending Ray takes its time too"


def slurm(tmp_path: Path, trimline: str, node: str = "node7") -> subprocess.Popen[str]:
    """The script on one machine, with what is not here put in place: Slurm's and Ray's commands note their words."""
    tools = tmp_path / "environment" / "bin"
    tools.mkdir(parents=True)
    for name in ("ray", "srun", "scontrol"):
        (tools / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/called\n')
    known = 'test "$(wc -c < "$RAY_AUTH_TOKEN_PATH")" -eq 65 || exit 9'
    (tools / "trimline").write_text(f'#!/bin/bash\n{known}\necho "trimline $*" >> {tmp_path}/called\n{trimline}\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    given = {"TRIMLINE_ENVIRONMENT": str(tmp_path / "environment"), "SLURM_JOB_ID": "123456", "SLURM_GPUS_ON_NODE": "2"}
    given |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_PER_TASK": "16", "HOME": str(tmp_path)}
    given["SLURMD_NODENAME"] = node
    return subprocess.Popen(["bash", str(SLURM)], env={**os.environ, **given}, stderr=subprocess.PIPE, text=True)


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "called").read_text().splitlines() if (tmp_path / "called").exists() else []


@pytest.mark.parametrize(
    ("code", "node", "excluded"), [(0, "node7", "node7"), (1, "", socket.gethostname().split(".")[0])]
)
def test_the_slurm_script_ends_as_the_run_does(tmp_path: Path, code: int, node: str, excluded: str) -> None:
    script = slurm(tmp_path, f"sleep 0.2; exit {code}", node)
    assert script.wait(30) == code, script.stderr and script.stderr.read()
    called = calls(tmp_path)
    assert called[0].startswith("ray start --head ")
    assert "--port=23456" in called[0]
    assert [line for line in called if line.startswith(f"srun --nodes=2 --ntasks=2 --exclude={excluded} ")]
    assert [line for line in called if line.startswith("trimline run ") and "--cluster.workers 6 " in line]
    assert called[-1].startswith("ray stop")
    assert not [line for line in called if line.startswith("scontrol")]
    assert not list(tmp_path.glob(".trimline-token*"))


def test_the_slurm_script_passes_the_notice_on_and_queues_again(tmp_path: Path) -> None:
    script = slurm(tmp_path, "trap 'sleep 0.3; exit 130' TERM\nwhile true; do sleep 0.05; done")
    end = time.monotonic() + 30
    while not any(line.startswith("trimline") for line in calls(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)
    script.send_signal(signal.SIGTERM)
    assert script.wait(30) == 130, script.stderr and script.stderr.read()
    assert [line for line in calls(tmp_path) if line.startswith("scontrol")] == ["scontrol requeue 123456"]
