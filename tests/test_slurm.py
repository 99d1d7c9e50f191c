"""The launch scripts on a real Slurm: a throw-away cluster of two nodes on this machine, started by the test."""

import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import assert_continued, assert_same_result, checkpoint_step, children, last_step
from tiny import REPOSITORY, overrides

MISSING = [
    p for p in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(p, path=os.defpath + ":/usr/sbin")
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("slurm"),  # one cluster at a time
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not installed (apt-get install slurmctld slurmd ...)"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="starting Slurm's daemons takes root"),
]

NAME = "source_only_gta2city"
LONGER = ("run.steps=30", "run.log_every=1", "run.val_every=10", "run.save_every=10")
CONFIGURATION = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
GresTypes=gpu
MpiDefault=none
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=20
SchedulerParameters=batch_sched_delay=0,sched_interval=2
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={ports[1]} CPUs=8 RealMemory=1000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr={address} Port={ports[2]} CPUs=8 RealMemory=1000 Gres=gpu:2
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE
PartitionName=high Nodes=n1,n2 PriorityTier=2 MaxTime=INFINITE
"""


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            k: v for k, v in os.environ.items() if not k.startswith("SLURM") and not k.endswith("_ROOT")
        }
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        self.environment["PATH"] = f"/usr/sbin:{self.environment['PATH']}"

    def call(self, *command: str, **variables: str) -> str:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, runs: Path, *words: str) -> str:
        """The number of a job that writes to `runs`."""
        output = f"--output={self.folder}/%x-%j.log"
        return self.call("sbatch", "--parsable", output, *words, RUNS=str(runs)).strip()

    def state(self, job: str) -> str:
        facts = self.call("scontrol", "show", "job", job)
        return facts.partition("JobState=")[2].split()[0]

    def wait(self, job: str, *states: str) -> None:
        until = time.monotonic() + 150
        while self.state(job) not in states:
            assert time.monotonic() < until, f"job {job} is {self.state(job)}\n{self.logs()}"
            assert self.state(job) not in {"FAILED", "NODE_FAIL", "TIMEOUT"} - set(states), self.logs()
            time.sleep(0.5)

    def restart(self, job: str) -> None:
        """Wait until a job that was queued again runs. The two minutes for which Slurm holds it back become five
        seconds; within a second it would still refuse the job as the one that it has just taken away."""
        update = ["scontrol", "update", f"JobId={job}", "StartTime=now+5"]
        running, until, hastened = {"RUNNING", "COMPLETED"}, time.monotonic() + 150, False
        while "Restarts=1" not in self.call("scontrol", "show", "job", job) or self.state(job) not in running:
            assert time.monotonic() < until, self.logs()
            if self.state(job) == "PENDING" and not hastened:
                hastened = subprocess.run(update, env=self.environment, check=False).returncode == 0
            time.sleep(0.5)

    def logs(self) -> str:
        return "\n".join(f"{p.name}:\n{p.read_text()[-3000:]}" for p in self.folder.glob("*.log"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def own_address() -> str:
    """Of this machine in its network, as a cluster's nodes have one; its name may stand for another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nothing_is_sent:
        try:
            nothing_is_sent.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(nothing_is_sent.getsockname()[0])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    text = CONFIGURATION.format(folder=folder, host=platform.node(), address=own_address(), ports=free_ports(3))
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")  # to count
    cluster = Cluster(folder)
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")]
    cluster.call("munged", "--force", *munge, f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed")
    cluster.call("slurmctld")
    cluster.call("slurmd", "-N", "n1")
    cluster.call("slurmd", "-N", "n2")
    try:
        until = time.monotonic() + 30
        while cluster.call("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() != ["idle", "idle"]:
            assert time.monotonic() < until, cluster.logs()
            time.sleep(0.5)
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=cluster.environment, check=False)
        for pid_file in (*folder.glob("slurm*.pid"), folder / "munge.pid"):
            if pid_file.exists():
                os.kill(int(pid_file.read_text()), 15)


@pytest.fixture
def settings(gta5_root, cityscapes_root) -> list[str]:
    return [*overrides(gta5_root, cityscapes_root), *LONGER]


def two_nodes(settings: list[str]) -> list[str]:
    return ["--nodes=2", "--cpus-per-task=1", "launch/gta2city_source_only.sh", *settings]


def wait_for_line(run: Path, number: int, cluster: Cluster) -> None:
    path, until = run / "metrics.jsonl", time.monotonic() + 90
    while not path.exists() or len(path.read_bytes().splitlines()) < number:
        assert time.monotonic() < until, cluster.logs()
        time.sleep(0.05)


def wait_for_process(job: str, cluster: Cluster) -> None:
    """Until node n1 has started one of the job's first step."""
    command, until, listed = ["scontrol", "listpids", f"{job}.0", "n1"], time.monotonic() + 90, ""
    while not re.search(rf"^\d+ +{job} ", listed, re.MULTILINE):
        assert time.monotonic() < until, cluster.logs()
        listed = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, check=False).stdout
        time.sleep(0.05)


def test_two_nodes_requeue_and_preemption_end_in_the_same_result(cluster, settings, tmp_path):
    """The uninterrupted job, one requeued by hand, one asked to stop in time, one preempted."""
    name = "mini/source_only-seed0"
    job = cluster.submit(tmp_path / "straight", *two_nodes(settings))
    assert cluster.call("squeue", "-h", "-j", job, "-o", "%j").strip() == NAME
    cluster.wait(job, "COMPLETED")
    straight = tmp_path / "straight" / name
    assert len(list((straight / "logs").rglob("stdout.log"))) == 2  # one per process

    for kind in ("requeue", "USR1", "preempt"):
        run = tmp_path / kind / name
        job = cluster.submit(tmp_path / kind, *two_nodes(settings))
        wait_for_line(run, 12, cluster)
        if kind == "requeue":
            cluster.call("scontrol", "requeue", job)
        elif kind == "USR1":
            cluster.call("scancel", "--signal=USR1", job)
        else:
            high = cluster.submit(
                tmp_path, "--nodes=2", "--exclusive", "--partition=high", "--job-name=high", "--wrap=sleep 1"
            )
            cluster.wait(high, "COMPLETED")
        cluster.wait(job, "PENDING")
        step = checkpoint_step(run)
        assert step == last_step(run) if kind != "requeue" else step >= 10
        cluster.restart(job)
        cluster.wait(job, "COMPLETED")
        assert_continued((cluster.folder / f"{NAME}-{job}.log").read_text(), step)
        assert_same_result(run, straight)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_one_node_has_all_its_processors_and_logs(processes, cluster, settings, tmp_path):
    run = tmp_path / "mini/source_only-seed0"
    export = f"--export=PATH,PYTHON,OMP_NUM_THREADS,SLURM_CONF,RUNS,GPUS={processes}"  # nothing else
    job = cluster.submit(tmp_path, "--cpus-per-task=2", export, "launch/gta2city_source_only.sh", *settings)
    wait_for_line(run, 1, cluster)
    assert " CPUs=2 " in cluster.call("scontrol", "show", "step", f"{job}.0")
    cluster.call("scancel", "--signal=INT", job)
    cluster.wait(job, "FAILED")
    assert "ExitCode=130:0" in cluster.call("scontrol", "show", "job", job)
    assert (run / "checkpoints/last.pt").exists()
    assert len(list((run / "logs").rglob("stdout.log"))) == int(processes)


@pytest.mark.parametrize("to", [["--batch"], []])
def test_a_signal_while_a_job_starts_is_not_lost(to, cluster, settings, tmp_path):
    """To the script, as Slurm sends it ahead of the time limit, or to the processes, of which none listens yet. What is
    sent to a step before it has a process, Slurm itself forgets."""
    place = ["--cpus-per-task=1", "--nodelist=n1"]
    job = cluster.submit(tmp_path, *place, "launch/gta2city_source_only.sh", *settings, "run.steps=4")
    wait_for_process(job, cluster)
    cluster.call("scancel", *to, "--signal=USR1", job)
    cluster.restart(job)
    cluster.wait(job, "COMPLETED")
    assert "by SIGUSR1" not in (cluster.folder / f"{NAME}-{job}.log").read_text()  # it had not begun
    assert (tmp_path / "mini/source_only-seed0/summary.json").exists()


def test_a_job_of_which_one_node_dies_ends_within_a_minute(cluster, settings, tmp_path):
    job = cluster.submit(tmp_path, *two_nodes([*settings, "run.steps=9999"]))
    wait_for_line(tmp_path / "mini/source_only-seed0", 1, cluster)
    listed = subprocess.run(["pgrep", "-f", f"launch/torchrun.py.*-{job} "], capture_output=True, text=True).stdout
    on_second = [
        pid for pid in map(int, listed.split()) if b"SLURM_NODEID=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
    ]
    (torchrun,) = on_second
    for pid in (*children(torchrun), torchrun):
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    cluster.wait(job, "FAILED")
    assert time.monotonic() - began < 60


def test_seeds_are_a_job_array_with_a_readable_name(cluster, settings, tmp_path):
    file = "experiments/mini/source_only.yaml"
    said = cluster.call(
        "bash", "launch/seeds.sh", file, "0", "1", *settings, "run.steps=4", "run.val_every=4",
        RUNS=str(tmp_path), SBATCH_OUTPUT=f"{cluster.folder}/%x-%A_%a.log", SBATCH_CPUS_PER_TASK="1",
    )  # fmt: skip
    job = said.split()[-1]
    names = set(cluster.call("squeue", "-h", "-r", "-j", job, "-o", "%j %K").splitlines())
    assert names == {"source_only-seeds 0", "source_only-seeds 1"}
    for task in (0, 1):
        cluster.wait(f"{job}_{task}", "COMPLETED")
        assert (tmp_path / f"mini/source_only-seed{task}/summary.json").exists()


def test_one_task_of_an_array_stops_and_the_other_is_left_alone(cluster, settings, tmp_path):
    """The task that started last has the number of the whole array for its own."""
    said = cluster.call(
        "bash", "launch/seeds.sh", "experiments/mini/source_only.yaml", "0", "1", *settings, "run.steps=60",
        RUNS=str(tmp_path), SBATCH_OUTPUT=f"{cluster.folder}/%x-%A_%a.log", SBATCH_CPUS_PER_TASK="1",
    )  # fmt: skip
    job = said.split()[-1]
    other, stopped = (tmp_path / f"mini/source_only-seed{task}" for task in (0, 1))
    wait_for_line(other, 1, cluster)
    wait_for_line(stopped, 1, cluster)
    assert not (other / "summary.json").exists()
    cluster.call("scancel", "--batch", "--signal=USR1", f"{job}_1")  # to the script, which hands it on
    cluster.restart(f"{job}_1")
    for task, run in ((0, other), (1, stopped)):
        cluster.wait(f"{job}_{task}", "COMPLETED")
        assert f"Restarts={task}" in cluster.call("scontrol", "show", "job", f"{job}_{task}")
        assert (run / "summary.json").exists()
        log = (cluster.folder / f"source_only-seeds-{job}_{task}.log").read_text()
        assert log.count("stopped after step") == log.count(f"queueing job {job}_{task} again") == task


def test_inside_an_interactive_step_it_does_not_wait_for_that_steps_resources(cluster, settings, tmp_path):
    script = ["timeout", "120", "bash", "launch/gta2city_source_only.sh", *settings, "run.steps=1"]
    cluster.call("srun", "--nodes=1", "--cpus-per-task=2", *script, RUNS=str(tmp_path))
    assert (tmp_path / "mini/source_only-seed0/summary.json").exists()


def said_by(call: str, cluster: Cluster, *words: str) -> list[str]:
    """What a call of launch/lib.sh prints in a job."""
    log = cluster.folder / "call.out"
    wrapped = f"--wrap=bash -c 'source launch/lib.sh; {call}'"
    cluster.call("sbatch", "--wait", f"--output={log}", *words, wrapped)
    return log.read_text().split()


@pytest.mark.skipif(shutil.which("ip") is None, reason="needs the program ip (package iproute2)")
def test_each_of_several_nodes_knows_its_own_address(cluster):
    address = own_address()
    listed = subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True).stdout
    (interface,) = (line.split()[1] for line in listed.splitlines() if f" {address}/" in line)
    said = said_by("run_on $NODES printenv PET_LOCAL_ADDR GLOO_SOCKET_IFNAME", cluster, "--nodes=2")
    assert said == 2 * [address, interface]
    said_by("! run_on 1 printenv PET_LOCAL_ADDR GLOO_SOCKET_IFNAME", cluster, "--nodes=1")


def test_processes_have_all_processors_of_the_job(cluster):
    assert said_by("run_on 1 printenv SLURM_CPUS_PER_TASK", cluster, "--exclusive", "--cpus-per-task=1") == ["8"]
    said = said_by("run_on 2 printenv SLURM_CPUS_PER_TASK", cluster, "--nodes=2", "--ntasks-per-node=2", "-c", "3")
    assert said == ["6", "6"]


def test_inside_salloc_each_gpu_has_a_process(cluster):
    call = "source launch/lib.sh; echo $GPUS"
    assert cluster.call("salloc", "--gpus-per-node=2", "bash", "-c", call).strip() == "2"


@pytest.mark.parametrize("gpus", ["--gpus=4", "--gpus-per-node=2", "--gres=gpu:2"])
def test_two_nodes_and_one_of_them_have_all_their_gpus(gpus, cluster):
    job = ["--nodes=2", gpus]
    assert said_by("run_on 1 printenv SLURM_NNODES SLURM_GPUS_ON_NODE", cluster, *job) == ["1", "2"]
    assert said_by("run_on 2 printenv SLURM_NNODES SLURM_GPUS_ON_NODE", cluster, *job) == ["2", "2"] * 2
