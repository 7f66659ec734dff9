"""Machines on this machine: a network, a process table and a home of their own, reached by SSH and nothing else."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

NETWORK = "10.77.31"  # of all such machines; this one is .1
BRIDGE = "raylth0"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


def run(*words: str, **options) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


def can_be_made(*programs: str) -> str | None:
    """Return what is missing to make such machines, with these programs on them; None when nothing is."""
    for program in ("ip", "unshare", "nsenter", *programs):
        if not shutil.which(program, path=PATH):
            return f"{program} is missing: sh scripts/packages.sh cluster"
    if os.geteuid() or subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], check=False).returncode:
        return "no namespaces of one's own: root is needed"
    return None


class Namespaces:
    """Machines at `addresses`: each has a network, a process table and mounts of its own, and ends with its first process."""

    def __init__(self, number: int) -> None:
        self.processes: dict[int, subprocess.Popen] = {}
        self.addresses = [f"{NETWORK}.{2 + index}" for index in range(number)]
        self._unplug()
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")

    def boot(self, index: int, command: str, log: Path) -> None:
        """Start a machine whose first process is a shell with this command, and put it on the network."""
        address = self.addresses[index]
        ready = f"until ip addr show eth0 2>/dev/null | grep -q {address}; do sleep 0.05; done"
        alone = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child"]
        with log.open("a") as output:
            process = subprocess.Popen([*alone, "bash", "-c", f"{ready}\n{command}"], stdout=output, stderr=subprocess.STDOUT)
        self.processes[index] = process
        inside = self.first(index)
        subprocess.run(["ip", "link", "del", f"{BRIDGE}v{index}"], capture_output=True, check=False)  # of a machine that died
        run("ip", "link", "add", f"{BRIDGE}v{index}", "type", "veth", "peer", "name", "eth0", "netns", str(inside))
        run("ip", "link", "set", f"{BRIDGE}v{index}", "master", BRIDGE, "up")
        there = ("nsenter", "--net", "--target", str(inside))
        run(*there, "ip", "link", "set", "lo", "up")
        run(*there, "ip", "link", "set", "eth0", "up")
        run(*there, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
        run(*there, "ip", "route", "add", "default", "via", f"{NETWORK}.1")

    def first(self, index: int) -> int:
        """Return the number, on this machine, of a machine's first process."""
        pid, deadline = self.processes[index].pid, time.monotonic() + 10
        while True:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if found:
                return int(found[0])
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self, index: int) -> None:
        """End a machine as a power cut does: all of its process table with it (--kill-child)."""
        process = self.processes.pop(index)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _unplug(self) -> None:
        for name in (BRIDGE, *(f"{BRIDGE}v{index}" for index in range(len(self.addresses)))):
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)

    def stop(self) -> None:
        for index in list(self.processes):
            self.kill(index)
        self._unplug()


class Machines(Namespaces):
    """Machines that are reached as root with the key `key`, by SSH and nothing else, and have a home each."""

    def __init__(self, folder: Path, number: int, environment: dict[str, str]) -> None:
        super().__init__(number)
        self.key, self.folder = folder / "key", folder
        self.short = Path("/tmp") / f"rl{os.getpid()}"  # Ray's sockets need short paths
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "host"))
        shutil.copy(f"{self.key}.pub", folder / "allowed")
        try:
            for index, address in enumerate(self.addresses):
                self._start(index, address, environment)
        except BaseException:
            self.stop()
            raise

    def home(self, index: int) -> Path:
        return self.folder / f"home{index}"

    def _start(self, index: int, address: str, environment: dict[str, str]) -> None:
        home, temporary = self.home(index), self.short / str(index)
        home.mkdir()
        temporary.mkdir(parents=True)
        people = self.folder / f"passwd{index}"  # where root is at home: ssh asks there, whatever HOME says
        people.write_text(f"root:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
        settings = {"RAY_TMPDIR": str(temporary), **environment}
        pairs = " ".join(f"{name}={value}" for name, value in settings.items())
        sshd = shutil.which("sshd", path=PATH)
        options = [
            f"HostKey={self.folder}/host", f"AuthorizedKeysFile={self.folder}/allowed", f"ListenAddress={address}",
            "PidFile=none", "UsePAM=no", "PermitRootLogin=yes", "StrictModes=no", f"SetEnv={pairs}",
        ]  # fmt: skip
        words = " ".join(f"-o '{option}'" for option in options)
        command = f"mount --bind {people} /etc/passwd; mkdir -p /run/sshd; exec {sshd} -D -e -f /dev/null {words}"
        self.boot(index, command, self.folder / f"sshd{index}.log")
        self._wait(address)

    def _wait(self, address: str) -> None:
        deadline = time.monotonic() + 20
        while subprocess.run(self.ssh(address, "true"), capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, f"no SSH at {address}; see {self.folder}/sshd*.log"
            time.sleep(0.2)

    def ssh(self, address: str, command: str) -> list[str]:
        """Return the words of a command line that runs `command` there."""
        quiet = ("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR")
        return ["ssh", "-i", str(self.key), *quiet, f"root@{address}", command]

    def num_processes(self, index: int, name: str) -> int:
        """Count the processes of a machine whose command line has `name` in it."""
        lines = run(*self.ssh(self.addresses[index], "ps -eo args")).splitlines()
        return sum(name in line for line in lines)

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.short, ignore_errors=True)
