"""Carries out a Dockerfile in a plain folder, without Docker.

What differs from Docker: FROM is this machine's /usr and Python, read-only; and the two steps that
make an environment and download pinned packages are stood in for by links to the packages of the
present environment, once their versions were compared with the pins: the files are the same, and a
test must not download gigabytes. All else is done as written.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path, PurePath

ROOT = Path(__file__).parents[2]
PACKAGES = Path(sysconfig.get_path("purelib"))
PYTHON = Path(sys.base_prefix)


class Image:
    """A folder made by carrying out a Dockerfile, and how its last lines say to start it."""

    def __init__(self, dockerfile: Path, root: Path, arguments: dict[str, str]) -> None:
        self.root, self.arguments = root, dict(arguments)
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        self.folder, self.user = "/", "0:0"
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.probe: list[str] = []
        text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
        for line in filter(None, text.replace("\\\n", " ").splitlines()):
            name, _, rest = line.partition(" ")
            getattr(self, f"_{name.lower()}")(rest)  # an instruction unknown here fails the test

    def _arg(self, text: str) -> None:
        name, _, default = text.partition("=")
        self.arguments.setdefault(name, default)

    def _from(self, text: str) -> None:
        assert self._filled(text).startswith("python:3.11-")
        for name in ("etc", "proc", "dev", "tmp", "opt/packages", "usr", PYTHON.as_posix()[1:]):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            if (Path("/") / name).is_symlink():
                (self.root / name).symlink_to(os.readlink(f"/{name}"))
        for name in ("ld.so.cache", "hosts"):
            shutil.copy(f"/etc/{name}", self.root / "etc")

    def _env(self, text: str) -> None:
        for pair in shlex.split(text):
            name, _, value = pair.partition("=")
            self.environment[name] = self._filled(value)

    def _workdir(self, text: str) -> None:
        self.folder = text
        self._inside(text).mkdir(parents=True, exist_ok=True)

    def _copy(self, text: str) -> None:
        source, target = text.split()
        names = [p for p in context() if source == "." or p == PurePath(source)]
        assert names, f"COPY {text} copies nothing"
        for name in names:
            (self._inside(target) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self._inside(target) / name)

    def _run(self, text: str) -> None:
        if text.startswith("python -m venv "):
            self._make_environment(self._inside(text.split()[-1]))
        elif "--requirement" in text:
            self._link_packages(self._inside(text.split()[-1]))
        else:
            script = [*base(self.root), f'exec chroot {self.root} "$@"']
            inside = ["env", "-i", f"--chdir={self.folder}", *pairs(self.environment)]
            command = ["sh", "-ec", "\n".join(script), "sh", *inside, "sh", "-ec", text]
            do("unshare", "--mount", "--pid", "--fork", *command)

    def _user(self, text: str) -> None:
        self.user = text

    def _entrypoint(self, text: str) -> None:
        self.entrypoint = json.loads(text)

    def _cmd(self, text: str) -> None:
        self.command = json.loads(text)

    def _healthcheck(self, text: str) -> None:
        self.probe = json.loads(text.partition(" CMD ")[2])

    def _make_environment(self, folder: Path) -> None:
        self.environment_folder = folder
        (folder / "bin").mkdir(parents=True)
        for name in ("python", "python3"):
            (folder / "bin" / name).symlink_to(sys._base_executable)
        (folder / "pyvenv.cfg").write_text(f"home = {Path(sys._base_executable).parent}\n")

    def _link_packages(self, pins: Path) -> None:
        for name, pinned in re.findall(r"^([\w.-]+)==(\S+)", pins.read_text(), re.MULTILINE):
            assert version(name).partition("+")[0] == pinned, name
        folder = self.environment_folder / PACKAGES.relative_to(sys.prefix)
        folder.mkdir(parents=True)
        for package in PACKAGES.iterdir():
            if "voxfed" not in package.name:
                (folder / package.name).symlink_to(Path("/opt/packages") / package.name)
        ours = f"#!/{self.environment_folder.relative_to(self.root)}/bin/python\n".encode()
        for script in Path(sys.prefix, "bin").iterdir():
            first, _, rest = script.read_bytes().partition(b"\n")
            if first.startswith(b"#!") and b"python" in first and script.name != "voxfed":
                (self.environment_folder / "bin" / script.name).write_bytes(ours + rest)
                (self.environment_folder / "bin" / script.name).chmod(0o755)

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _filled(self, text: str) -> str:
        known = self.arguments | self.environment
        return re.sub(r"\$\{?(\w+)\}?", lambda match: known[match[1]], text)


def context() -> list[PurePath]:
    """The files that .dockerignore lets into an image; the last line that matches decides."""
    lines = [x for x in (ROOT / ".dockerignore").read_text().splitlines() if x and x[0] != "#"]
    rules = [(line.lstrip("!"), line.startswith("!")) for line in lines]

    def enters(path: PurePath) -> bool:
        allowed = True
        for pattern, admits in rules:
            parts = path.parts if pattern.startswith("**/") else path.parts[:1]
            if any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in parts):
                allowed = admits
        return allowed

    tops = [p for p in ROOT.iterdir() if enters(PurePath(p.name))]
    files = [f for top in tops for f in (top.rglob("*") if top.is_dir() else [top]) if f.is_file()]
    return [name for f in files if enters(name := PurePath(f.relative_to(ROOT)))]


def base(root: Path) -> list[str]:
    """Shell lines that mount what every container has: system, Python, packages, /proc, /dev."""
    sources = [f"/{name}" for name in ("usr", "bin", "sbin", "lib", "lib64")]
    sources = [s for s in sources if Path(s).is_dir() and not Path(s).is_symlink()]
    if not PYTHON.is_relative_to("/usr"):
        sources.append(str(PYTHON))
    lines = [bind(root, root)] + [bind(s, f"{root}{s}", True) for s in sources]
    lines += [bind(PACKAGES, root / "opt/packages", True), f"mount -t proc proc {root}/proc"]
    lines += [f"mount -t tmpfs tmpfs {root}/dev", f"mkdir -m 1777 {root / 'dev' / 'shm'}"]
    for name in ("null", "zero", "random", "urandom"):
        lines += [f"touch {root}/dev/{name}", bind(f"/dev/{name}", f"{root}/dev/{name}")]
    return lines


def bind(source: object, target: object, read_only: bool | None = False) -> str:
    option = "-o ro " if read_only else ""
    return f"mount --bind {option}{shlex.quote(str(source))} {shlex.quote(str(target))}"


def pairs(environment: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in environment.items()]


def do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
