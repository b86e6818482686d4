"""The files of `runners/` that people start from."""

import shutil
import subprocess

import pytest
import yaml

from minitron_nas.resources import resource

SCRIPTS = ("slurm.sh", "two-nodes.sh")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_for_bash_and_says_how_it_is_called(name: str) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    path = resource("runners", name)
    assert subprocess.run([bash, "-n", str(path)], check=False, capture_output=True).returncode == 0
    told = subprocess.run([bash, str(path)], check=False, capture_output=True, text=True)
    assert told.returncode != 0
    assert "give a plan and a run folder" in told.stderr


@pytest.mark.parametrize(("name", "kind"), [("rayjob.yaml", "RayJob"), ("raycluster.yaml", "RayCluster")])
def test_a_cluster_on_kubernetes_has_a_head_without_work_and_one_path_for_all(name: str, kind: str) -> None:
    content = yaml.safe_load(resource("runners", name).read_text(encoding="utf-8"))
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", kind)
    cluster = content["spec"]["rayClusterSpec"] if kind == "RayJob" else content["spec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    for group in (head, workers):
        pod = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


def test_the_cluster_of_a_job_is_the_one_that_stays() -> None:
    job, cluster = (
        yaml.safe_load(resource("runners", name).read_text(encoding="utf-8"))
        for name in ("rayjob.yaml", "raycluster.yaml")
    )
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    assert "--set runner.address=auto" in job["spec"]["entrypoint"]


def test_the_launcher_starts_a_head_without_work() -> None:
    content = yaml.safe_load(resource("runners", "ray-cluster.yaml").read_text(encoding="utf-8"))
    assert any("--head" in line and "--num-cpus=0" in line for line in content["head_start_ray_commands"])
    assert any("$RAY_HEAD_IP" in line for line in content["worker_start_ray_commands"])
