"""A Slurm of this machine: slurmctld here, slurmd on machines made of namespaces, munge between them."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.clouds.machines import NETWORK, PATH, Namespaces, run

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = """
ClusterName=raylth
SlurmctldHost={host}({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=3
SchedulerParameters=batch_sched_delay=0,sched_interval=2
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName=node{index} NodeAddr={address} CPUs=2 RealMemory=6000 Gres=gpu:1 State=UNKNOWN"
# A node's /tmp is its own, but for what this test keeps there.
START = """
hostname node{index}
mount --bind {folder}/hosts /etc/hosts
mount --rbind /tmp /mnt
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
for kept in {kept}; do mkdir -p $kept; mount --rbind /mnt/${{kept#/tmp/}} $kept; done
{slurmd} -D -N node{index} -f {folder}/slurm.conf &
wait
"""


class Slurm(Namespaces):
    """The nodes node0, node1, ... of two cores and one GPU, which is none; `folder` is on the file system that all see."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(number)
        self.folder, self.daemons = folder, []
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        places = {"folder": folder, "host": socket.gethostname(), "network": NETWORK}
        nodes = "\n".join(NODE.format(index=i, address=address) for i, address in enumerate(self.addresses))
        (folder / "slurm.conf").write_text(CONFIGURATION.format(nodes=nodes, **places))
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        hosts = [f"{address} node{index}" for index, address in enumerate(self.addresses)]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{NETWORK}.1 {socket.gethostname()}", *hosts, ""]))
        (folder / "state").mkdir()
        try:
            self._start_daemons()
            for index in range(number):
                self.start(index)
            self.wait_for_nodes()
        except BaseException:
            self.stop()
            raise

    def _start_daemons(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        files = {"key-file": key, **{f"{name}-file": self.folder / f"munge.{name}" for name in ("log", "pid", "seed")}}
        options = [f"--{name}={path}" for name, path in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", *options)
        deadline = time.monotonic() + 10
        while not (self.folder / "munge.socket").exists():
            assert time.monotonic() < deadline, "munged does not start"
            time.sleep(0.05)
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))

    def _daemon(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=PATH)
        with (self.folder / f"{name}.out").open("w") as log:
            self.daemons.append(
                subprocess.Popen([program, *words], stdout=log, stderr=subprocess.STDOUT, env=self.environment)
            )

    def start(self, index: int) -> None:
        """Boot a node, also one that was killed."""
        kept = {str(path) for path in (ROOT, self.folder, Path(sys.prefix)) if path.is_relative_to("/tmp")}
        where = {"index": index, "folder": self.folder, "slurmd": shutil.which("slurmd", path=PATH)}
        self.boot(index, START.format(kept=" ".join(sorted(kept)), **where), self.folder / f"node{index}.out")

    def wait_for_nodes(self) -> None:
        """Wait until every node that runs is ready for a job."""
        wanted, deadline = {f"node{index}" for index in self.processes}, time.monotonic() + 30
        while not wanted <= set(self.call("sinfo", "--noheader", "-N", "-t", "idle", "-o", "%N", check=False).split()):
            assert time.monotonic() < deadline, self.call("sinfo", "-N", "-l", check=False)
            time.sleep(0.2)

    def call(self, *words: str, check: bool = True) -> str:
        """Run a command of Slurm's, as on a login node."""
        if check:
            return run(*words, env=self.environment, cwd=self.folder)
        options = {"env": self.environment, "cwd": self.folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.run(words, check=False, text=True, **options).stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job, by Slurm's names."""
        words = self.call("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def commands(self, index: int) -> list[str]:
        """Return the command lines of all processes of a node."""
        inside = ("nsenter", "--pid", "--mount", "--target", str(self.first(index)))
        return [line for line in run(*inside, "ps", "-ww", "-eo", "args").splitlines()[1:] if not line.startswith("ps -ww")]

    def names(self, index: int, folder: str) -> list[str]:
        """Return what is in a folder of a node."""
        return run("nsenter", "--mount", "--target", str(self.first(index)), "ls", "-A", folder).split()

    def stop(self) -> None:
        super().stop()
        for daemon in reversed(self.daemons):
            daemon.kill()
            daemon.wait()
