"""Runs the services of a compose file in namespaces, without Docker.

What differs from Docker: each container that has a network has one pair of virtual interfaces in
place of a bridge, and nothing starts a container again that ended.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from image import ROOT, Image, base, bind, do, pairs

DEPLOY = ROOT / "deploy"
BY_DOCKER = {"build", "image", "init", "restart", "runtime", "profiles", "ports"}


class Container:
    """A service of a compose file, started from an image in namespaces of its own."""

    def __init__(
        self, image: Image, root: Path, service: dict[str, Any], command: list[str] | None = None
    ) -> None:
        known = {"command", "user", "environment", "volumes", "network_mode", "read_only"}
        known |= {"cap_drop", "security_opt", "tmpfs"} | BY_DOCKER
        assert set(service) <= known, f"the test cannot carry out {set(service) - known}"
        self.image, self.root, self.service = image, root, service
        shutil.copytree(image.root, root, symlinks=True)
        script = [*base(root), "ip link set lo up"]
        for target in service.get("tmpfs", ()):
            script += [f"mount -t tmpfs -o mode=1777,noexec,nosuid tmpfs {root}{target}"]
        for volume in service["volumes"]:
            assert Path(volume["source"]).is_dir(), volume
            (root / volume["target"][1:]).mkdir(parents=True, exist_ok=True)
            script += [bind(volume["source"], f"{root}{volume['target']}", volume.get("read_only"))]
        if service.get("read_only"):
            script += [f"mount -o remount,bind,ro {root}"]
        script += ["read ready", f'exec chroot {root} "$@" </dev/null']
        whole = [*image.entrypoint, *(command or service.get("command", image.command))]
        spaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork"]
        self.log = root.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*spaces, "sh", "-ec", "\n".join(script), "sh", *self._as_user(whole)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            )  # fmt: skip
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait(lambda: bool(children.read_text()), 60, "the namespaces did not come up")
        self.pid = int(children.read_text())

    def release(self) -> None:
        """Let it run, once its network is there."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.close()

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` in the container, as `docker exec` does."""
        spaces = ["--mount", "--pid", "--net", "--ipc", "--uts", "--root"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--", *self._as_user([*command])]

    def python(self, code: str) -> Any:
        """What `code` leaves in `found`, run in the container."""
        return json.loads(
            do(*self.inside("python", "-c", f"{code}\nimport json; print(json.dumps(found))"))
        )

    def healthy(self) -> bool:
        """Whether the image's own health check, run inside, succeeds."""
        return subprocess.run(self.inside(*self.image.probe), capture_output=True).returncode == 0

    def settle(self, seconds: float = 180) -> None:
        """Wait until it is healthy; fail with its log where it ends first or takes too long."""
        ends = time.monotonic() + seconds
        while not self.healthy():
            lost = self.process.poll() is not None or time.monotonic() > ends
            assert not lost, f"{self.root} is not healthy\n{self.log.read_text()}"

    def stop(self) -> int:
        """Do what `docker stop` does, and return the exit status."""
        for sign, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            if self.process.poll() is None:
                os.kill(self.pid, sign)
                try:
                    self.process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue
        return self.process.wait(1)

    def _as_user(self, command: list[str]) -> list[str]:
        uid, gid = self.service.get("user", self.image.user).split(":")
        flags = ["--reuid", uid, "--regid", gid, "--clear-groups"]
        if self.service.get("cap_drop") == ["ALL"]:
            flags += ["--inh-caps=-all", "--bounding-set=-all"]
        if self.service.get("security_opt") == ["no-new-privileges:true"]:
            flags += ["--no-new-privs"]
        environment = self.image.environment | self.service.get("environment", {})
        environment["OMP_NUM_THREADS"] = "1"
        inside = ["env", "-i", f"--chdir={self.image.folder}", *pairs(environment)]
        return ["setpriv", *flags, *inside, *command]


class Compose:
    """`docker compose` with one file and its deploy/.env; takes only lines that README.md gives."""

    images: dict[str, Image] = {}  # noqa: RUF012  shared on purpose: an image is built once

    def __init__(self, file: str, folder: Path, stack: ExitStack, **values: str) -> None:
        self.file, self.folder, self.stack = DEPLOY / file, folder, stack
        self.services: dict[str, dict[str, Any]] = read_compose(self.file, values)["services"]
        self.running: dict[str, Container] = {}

    def __call__(self, line: str, replace: tuple[str, str] = ("", "")) -> str:
        """Carry out a documented `run` or `exec`, with one word replaced, and return its output."""
        shown = f"docker compose -f deploy/{self.file.name} {line}\n"
        assert shown in (DEPLOY / "README.md").read_text(), shown
        verb, *words = line.replace(*replace).split() if replace[0] else line.split()
        if verb == "exec":
            return do(*self.running[words[0]].inside(*words[1:]))
        assert [verb, words[0]] == ["run", "--rm"], line
        once = self.create(words[1], words[2:])
        once.release()
        assert once.process.wait(150) == 0, once.log.read_text()
        return once.log.read_text()

    def create(self, name: str, command: list[str] | None = None) -> Container:
        """A container of a service that waits for its network; the image is built if need be."""
        service = self.services[name]
        dockerfile = service["build"]["dockerfile"]
        if dockerfile not in self.images:
            root, arguments = self.folder / "image", service["build"].get("args", {})
            self.images[dockerfile] = Image(ROOT / dockerfile, root, arguments)
        root = self.folder / (f"{name}-once" if command else name)
        container = Container(self.images[dockerfile], root, service, command)
        self.stack.callback(container.stop)
        if command is None:
            self.running[name] = container
        return container


def read_compose(file: Path, values: dict[str, str]) -> dict[str, Any]:
    """A compose file with its variables filled from `values`."""

    def fill(match: re.Match[str]) -> str:
        assert match["name"] in values or match["default"] is not None, f"{match['name']} is unset"
        return values.get(match["name"], match["default"])

    pattern = r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)?\}"
    return yaml.safe_load(re.sub(pattern, fill, file.read_text()))


def wait(what: Callable[[], bool], seconds: float, failure: str) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, failure
        time.sleep(0.3)
