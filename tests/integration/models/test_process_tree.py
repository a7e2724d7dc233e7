"""Process trees: real ones, started, watched, stopped and found again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from manager.models import process_tree
from manager.models.process_tree import (
    RUN_ID_VARIABLE,
    LaunchError,
    ProcessTree,
    command_line,
    unusable_reason,
)

Eventually = Callable[[Callable[[], Any]], Any]
FAKE = Path(__file__).resolve().parents[2] / "support" / "fake_upstream.py"
GRACE = 20.0  # seconds; no test waits for their end, but those where nothing else can happen
pytestmark = pytest.mark.skipif(os.name != "posix", reason="these are a POSIX system's processes")


def marked(run: str) -> list[psutil.Process]:
    """The living processes of a run, by its id alone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and process.environ().get(RUN_ID_VARIABLE) == run:
                found.append(process)
    return found


class Launchpad:
    """Starts trees in a folder of the test's, and sees what they print."""

    def __init__(self, folder: Path, eventually: Eventually) -> None:
        self.folder = folder
        self.runs: list[str] = []
        self._eventually = eventually

    def script(self, text: str, name: str = "run.sh", mode: int = 0o755) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return path

    def launch(self, arguments: Sequence[object], cwd: Path | None = None) -> ProcessTree:
        run = uuid.uuid4().hex
        self.runs.append(run)
        with (self.folder / f"{run}.log").open("wb") as output:
            return ProcessTree.start(
                run,
                [str(argument) for argument in arguments],
                cwd=cwd or self.folder,
                env={**os.environ, "GREETING": "hello"},
                output=output.fileno(),
            )

    def sh(self, text: str) -> ProcessTree:
        """A tree whose leader is a shell script."""
        return self.launch(["/bin/sh", "-c", text])

    def python(self, text: str, *arguments: object) -> ProcessTree:
        return self.launch([sys.executable, "-c", text, *arguments])

    @property
    def run(self) -> str:
        """The latest run."""
        return self.runs[-1]

    def says(self, text: str) -> None:
        """Waits until the latest run has printed that."""
        log = self.folder / f"{self.run}.log"
        self._eventually(lambda: text in log.read_text())

    def members(self, count: int) -> list[psutil.Process]:
        """The latest run's processes, once there are so many."""
        members: list[psutil.Process] = self._eventually(
            lambda: found if len(found := marked(self.run)) == count else None
        )
        return members


@pytest.fixture
def pad(tmp_path: Path, eventually: Eventually) -> Iterator[Launchpad]:
    pad = Launchpad(tmp_path, eventually)
    yield pad
    for run in pad.runs:
        while members := marked(run):  # again: what is killed may just have forked
            for process in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


# --- starting ---------------------------------------------------------------------------


def test_a_script_runs_in_its_folder_with_its_variables_and_its_output_in_the_log(
    pad: Launchpad, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    script = pad.script('#!/bin/sh\necho "$GREETING from $(pwd)"\necho trouble >&2\n')
    pad.launch([script], cwd=folder)
    pad.says(f"hello from {folder}\ntrouble\n")


def test_a_script_reads_no_terminal_and_hears_none_of_its_signals(pad: Launchpad) -> None:
    tree = pad.sh("cat; echo end of input; sleep 600")
    pad.says("end of input")
    assert os.getsid(tree.pid) == tree.pid != os.getsid(0)


def test_the_leader_is_known_by_pid_and_creation(pad: Launchpad, eventually: Eventually) -> None:
    tree = pad.sh("sleep 600; :")
    leader = psutil.Process(tree.pid)
    assert tree.created == leader.create_time()
    eventually(lambda: leader.environ().get(RUN_ID_VARIABLE) == pad.run)


def test_a_script_that_is_not_executable_says_how_to_make_it_so(pad: Launchpad) -> None:
    script = pad.script("#!/bin/sh\n", mode=0o644)
    with pytest.raises(LaunchError, match=f"chmod \\+x {script}"):
        command_line(script, ())


def test_a_script_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"gone\.sh is missing"):
        command_line(tmp_path / "gone.sh", ())
    with pytest.raises(LaunchError, match="missing"):
        command_line(tmp_path, ())


def test_a_script_without_its_first_line_is_named(pad: Launchpad) -> None:
    script = pad.script("echo hello\n")
    with pytest.raises(LaunchError, match=r"#! line"):
        pad.launch([script])


@pytest.mark.parametrize("first_line", ["#!/opt/missing/bash\n", "#!/bin/sh\r\n"])
def test_a_script_whose_interpreter_is_missing_is_named(pad: Launchpad, first_line: str) -> None:
    """A file from Windows looks so as well: its line ends are part of the interpreter's name."""
    script = pad.script(first_line + "echo hello\n")
    with pytest.raises(LaunchError, match=r"#! line"):
        pad.launch([script])


def test_a_folder_that_is_missing_is_named(pad: Launchpad, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"its folder {tmp_path / 'gone'} is missing"):
        pad.launch(["/bin/true"], cwd=tmp_path / "gone")


def test_a_command_that_is_missing_is_named(pad: Launchpad) -> None:
    with pytest.raises(LaunchError, match=r"no-such-server-anywhere cannot be run: No such file"):
        pad.launch(["no-such-server-anywhere", "--port", 1])


def test_an_argument_that_no_system_takes_is_refused_as_well(pad: Launchpad) -> None:
    with pytest.raises(LaunchError, match="cannot be run"):
        pad.launch(["/bin/echo", "a\0b"])


# --- alive or not -----------------------------------------------------------------------


def test_a_script_that_runs_is_alive_and_has_no_exit_code(pad: Launchpad) -> None:
    tree = pad.sh("sleep 600; :")
    assert tree.alive()
    assert tree.exit_code is None


@pytest.mark.parametrize(
    ("text", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -15 $$", -15)]
)
def test_a_script_that_has_ended_is_not_alive_and_its_exit_code_is_known(
    pad: Launchpad, eventually: Eventually, text: str, code: int
) -> None:
    tree = pad.sh(text)
    eventually(lambda: not tree.alive())
    assert tree.exit_code == code
    assert tree.stop(0)


def test_a_script_that_failed_is_not_alive_though_it_leaves_processes_behind(
    pad: Launchpad, eventually: Eventually
) -> None:
    tree = pad.sh("sleep 600 & exit 3")
    eventually(lambda: not tree.alive())
    assert len(pad.members(1)) == 1
    assert tree.stop(GRACE)
    assert marked(pad.run) == []


def test_a_script_that_leaves_its_server_behind_has_handed_over_to_it(
    pad: Launchpad, eventually: Eventually
) -> None:
    tree = pad.sh("sleep 600 & exit 0")
    first = tree.pid
    eventually(lambda: tree.alive() and tree.pid != first)
    (server,) = pad.members(1)
    assert tree.pid == server.pid
    assert tree.created == server.create_time()
    assert tree.exit_code == 0
    server.kill()
    eventually(lambda: not tree.alive())


def test_a_script_that_hands_over_again_and_again_is_followed(
    pad: Launchpad, eventually: Eventually
) -> None:
    tree = pad.sh("sleep 600 & sleep 600 & exit 0")
    first = tree.pid
    eventually(lambda: tree.alive() and tree.pid != first)
    pad.members(2)
    second = tree.pid
    os.kill(second, signal.SIGKILL)
    eventually(lambda: tree.alive() and tree.pid != second)


SLOW_DAEMON = """
import os, time
if os.fork():
    os._exit(0)
print("first", flush=True)
while not os.path.exists("go"):
    time.sleep(0.005)
os.setsid()
if os.fork():
    os._exit(0)
print("second", flush=True)
time.sleep(600)
"""


def test_a_daemon_that_is_seen_between_its_two_forks_has_not_ended(
    pad: Launchpad, eventually: Eventually, tmp_path: Path
) -> None:
    tree = pad.python(SLOW_DAEMON)
    first = tree.pid
    pad.says("first")
    eventually(lambda: tree.alive() and tree.pid != first)
    between = psutil.Process(tree.pid)
    (tmp_path / "go").touch()
    pad.says("second")
    eventually(lambda: not between.is_running() or between.status() == psutil.STATUS_ZOMBIE)
    assert len(pad.members(1)) == 1
    assert tree.alive()


# --- once it answers --------------------------------------------------------------------

LISTENS = """
import os, socket, subprocess, sys, time
if "wrapped" in sys.argv:
    sys.exit(subprocess.run([sys.executable, "-c", sys.orig_argv[2]]).returncode)
with socket.create_server(("127.0.0.1", 0)) as server:
    subprocess.Popen(["sleep", "600"])
    print(f"port {server.getsockname()[1]} of {os.getpid()}.", flush=True)
    time.sleep(600)
"""
Listening = Callable[..., tuple[ProcessTree, int, int]]


@pytest.fixture
def listening(pad: Launchpad, tmp_path: Path) -> Listening:
    """Starts a server that has a helper of its own: its tree, its port and its pid."""

    def listening(*flags: str) -> tuple[ProcessTree, int, int]:
        tree = pad.python(LISTENS, *flags)
        pad.says(".\n")
        words = (tmp_path / f"{pad.run}.log").read_text().rstrip(".\n").split()
        return tree, int(words[1]), int(words[3])

    return listening


@pytest.mark.parametrize("flags", [[], ["wrapped"]])
def test_the_server_is_the_process_that_listens_on_the_models_port(
    listening: Listening, flags: list[str]
) -> None:
    tree, port, pid = listening(*flags)
    assert tree.settle(port)
    assert tree.pid == pid
    assert tree.created == psutil.Process(pid).create_time()
    assert tree.alive()


@pytest.mark.parametrize("flags", [[], ["wrapped"]])
def test_what_a_crashed_server_leaves_behind_is_not_the_server(
    pad: Launchpad, eventually: Eventually, listening: Listening, flags: list[str]
) -> None:
    tree, port, pid = listening(*flags)
    assert tree.settle(port)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not tree.alive())
    assert len(pad.members(1)) == 1
    assert tree.stop(GRACE)
    assert marked(pad.run) == []


def test_the_whole_tree_is_stopped_also_what_is_above_the_server(
    pad: Launchpad, listening: Listening
) -> None:
    tree, port, _ = listening("wrapped")
    assert len(pad.members(3)) == 3
    assert tree.settle(port)
    assert tree.stop(GRACE)
    assert marked(pad.run) == []
    assert not tree.alive()


def test_a_server_outside_of_the_tree_leaves_the_script_as_the_leader(
    pad: Launchpad, eventually: Eventually
) -> None:
    """As that of a container, which its script only attends to."""
    tree = pad.sh("sleep 600; :")
    first = tree.pid
    with socket.create_server(("127.0.0.1", 0)) as outside:
        assert not tree.settle(outside.getsockname()[1])
    assert tree.pid == first
    assert tree.alive()
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not tree.alive())


# --- stopping ---------------------------------------------------------------------------


def test_a_process_gets_sigterm_before_sigkill(pad: Launchpad) -> None:
    tree = pad.sh('trap "echo saved; exit 0" TERM; echo up; while :; do sleep 0.01; done')
    pad.says("up")
    assert tree.stop(GRACE)
    pad.says("saved")
    assert tree.exit_code == 0
    assert not tree.alive()


IGNORES_SIGTERM = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"])
print("up", flush=True)
time.sleep(600)
"""


def test_a_process_that_does_not_listen_is_killed_with_all_below_it(pad: Launchpad) -> None:
    tree = pad.python(IGNORES_SIGTERM)
    pad.says("up")
    assert len(pad.members(2)) == 2
    assert tree.stop(0.1)
    assert marked(pad.run) == []
    assert tree.exit_code == -signal.SIGKILL


def test_children_and_their_children_end_with_their_parent(pad: Launchpad) -> None:
    tree = pad.sh("(sleep 600 & sleep 600 & wait) & (sleep 600 & wait) & wait")
    assert len(pad.members(6)) == 6
    assert tree.stop(GRACE)
    assert marked(pad.run) == []
    assert not tree.alive()


DAEMON = """
import os, subprocess, sys, time
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
subprocess.Popen(["sleep", "600"])
time.sleep(600)
"""


def test_a_daemon_that_left_its_session_is_found_and_stopped(
    pad: Launchpad, eventually: Eventually
) -> None:
    tree = pad.python(DAEMON)
    first = tree.pid
    members = pad.members(2)
    assert all(os.getsid(process.pid) != first for process in members)
    eventually(lambda: tree.alive() and tree.pid in [process.pid for process in members])
    assert tree.stop(GRACE)
    assert marked(pad.run) == []
    assert not tree.alive()


def test_what_forks_while_it_is_being_stopped_is_stopped_too(pad: Launchpad) -> None:
    tree = pad.sh('trap "sleep 600 & exit 0" TERM; echo up; while :; do sleep 0.01; done')
    pad.says("up")
    assert tree.stop(GRACE)
    assert marked(pad.run) == []


def test_a_suspended_process_is_ended_too(pad: Launchpad) -> None:
    tree = pad.sh("sleep 600; :")
    os.kill(tree.pid, signal.SIGSTOP)
    assert tree.stop(0.1)
    assert marked(pad.run) == []


def test_a_tree_can_be_stopped_again_and_after_its_end(
    pad: Launchpad, eventually: Eventually
) -> None:
    tree = pad.sh("exit 0")
    eventually(lambda: not tree.alive())
    assert tree.stop(GRACE)
    assert tree.stop(GRACE)


def test_other_trees_and_the_program_itself_are_left_alone(pad: Launchpad) -> None:
    one = pad.sh("sleep 600; :")
    other = pad.sh("sleep 600; :")
    assert one.stop(GRACE)
    assert not one.alive()
    assert other.alive()
    assert len(pad.members(2)) == 2


def test_no_zombie_is_left_of_a_stopped_script(pad: Launchpad) -> None:
    tree = pad.sh("sleep 600; :")
    pid = tree.pid
    assert tree.stop(GRACE)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("flags", [["--fork"], ["--daemonize"], ["--ignore-sigterm"], []])
def test_a_model_server_of_each_kind_leaves_nothing_behind(
    pad: Launchpad, eventually: Eventually, flags: list[str]
) -> None:
    tree = pad.launch([sys.executable, FAKE, "--port", "0", "--children", "2", *flags])
    pad.says("listening")
    eventually(tree.alive)
    assert len(marked(pad.run)) == 3
    assert tree.stop(0.2 if "--ignore-sigterm" in flags else GRACE)
    assert marked(pad.run) == []
    assert not tree.alive()


# --- finding it again -------------------------------------------------------------------


def test_a_run_is_found_again_by_its_id_and_can_be_stopped(pad: Launchpad) -> None:
    first = pad.sh("sleep 600 & sleep 600 & wait")
    pad.members(3)
    found = ProcessTree.find(pad.run, first.pid, first.created)
    assert found is not None
    assert (found.pid, found.created) == (first.pid, first.created)
    assert found.alive()
    assert found.exit_code is None
    assert found.stop(GRACE)
    assert marked(pad.run) == []
    assert not found.alive()


def test_a_run_that_was_killed_before_its_pid_was_recorded_is_found_too(pad: Launchpad) -> None:
    first = pad.sh("sleep 600 & wait")
    pad.members(2)
    found = ProcessTree.find(pad.run, None, None)
    assert found is not None
    assert found.pid == first.pid  # the eldest


def test_a_run_whose_leader_has_ended_is_found_by_what_it_left(
    pad: Launchpad, eventually: Eventually
) -> None:
    first = pad.sh("sleep 600 & exit 0")
    pid, created = first.pid, first.created
    eventually(lambda: first.exit_code == 0)
    found = ProcessTree.find(pad.run, pid, created)
    assert found is not None
    assert found.pid != pid
    assert found.alive()
    assert found.stop(GRACE)
    assert marked(pad.run) == []


def test_a_run_that_has_ended_is_not_found(pad: Launchpad, eventually: Eventually) -> None:
    tree = pad.sh("exit 0")
    pid, created = tree.pid, tree.created
    eventually(lambda: tree.exit_code == 0)
    assert ProcessTree.find(pad.run, pid, created) is None
    assert ProcessTree.find(uuid.uuid4().hex, None, None) is None


@pytest.fixture
def unmarked() -> Iterator[psutil.Process]:
    """A process whose run id cannot be read: here, one that has none."""
    popen = subprocess.Popen(["sleep", "600"])
    yield psutil.Process(popen.pid)
    popen.kill()
    popen.wait()


def test_a_process_without_the_id_is_known_by_pid_and_creation(unmarked: psutil.Process) -> None:
    created = unmarked.create_time()
    found = ProcessTree.find("run", unmarked.pid, created)
    assert found is not None
    assert found.pid == unmarked.pid
    assert found.stop(GRACE)
    assert not found.alive()


def test_another_program_that_has_got_the_pid_meanwhile_is_not_touched(
    unmarked: psutil.Process,
) -> None:
    assert ProcessTree.find("run", unmarked.pid, unmarked.create_time() - 3600) is None
    assert ProcessTree.find("run", unmarked.pid, None) is None
    assert unmarked.is_running()


# --- command lines, of other systems as well --------------------------------------------


@pytest.mark.parametrize(
    ("name", "system", "expected"),
    [
        ("serve.sh", "posix", ["{path}"]),
        ("serve.py", "posix", [sys.executable, "{path}"]),
        ("serve.py", "nt", [sys.executable, "{path}"]),
        ("serve.bat", "nt", ["cmd.exe", "/d", "/c", "{path}"]),
        ("SERVE.CMD", "nt", ["cmd.exe", "/d", "/c", "{path}"]),
        (
            "serve.ps1",
            "nt",
            ["powershell.exe", "-NoProfile", "-ExecutionPolicy", "Bypass", "-File", "{path}"],
        ),
        (
            "serve.ps1",
            "posix",
            ["pwsh", "-NoProfile", "-ExecutionPolicy", "Bypass", "-File", "{path}"],
        ),
    ],
)
def test_each_kind_of_script_is_run_by_what_runs_it(
    pad: Launchpad, name: str, system: str, expected: list[str]
) -> None:
    script = pad.script("#!/bin/sh\n", name)
    wanted = [part.format(path=script) for part in expected]
    assert command_line(script, (), system) == wanted


def test_a_python_script_need_not_be_executable(pad: Launchpad) -> None:
    script = pad.script("print('hello from', __name__)", "serve.py", mode=0o644)
    pad.launch(command_line(script, ()))
    pad.says("hello from __main__")


def test_a_command_is_taken_as_it_is() -> None:
    assert command_line(None, ("llama-server", "-m", "a b.gguf")) == [
        "llama-server",
        "-m",
        "a b.gguf",
    ]


@pytest.mark.parametrize(
    ("name", "system", "reason"),
    [
        ("a.sh", "posix", None),
        ("a.py", "posix", None),
        ("a.SH", "posix", None),
        ("a.bat", "posix", "a.bat is a script for Windows"),
        ("a.cmd", "posix", "a.cmd is a script for Windows"),
        ("a.bat", "nt", None),
        ("a.CMD", "nt", None),
        ("a.ps1", "nt", None),
        ("a.py", "nt", None),
        ("a.sh", "nt", "a.sh is a script for Linux or macOS"),
    ],
)
def test_a_script_for_another_system_is_said_to_be_one(
    name: str, system: str, reason: str | None
) -> None:
    assert unusable_reason(Path(name), system) == reason


def test_a_command_is_for_every_system() -> None:
    assert unusable_reason(None, "posix") is None
    assert unusable_reason(None, "nt") is None


def test_a_powershell_script_needs_powershell_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "pwsh" in str(unusable_reason(Path("a.ps1"), "posix"))
    pwsh = tmp_path / "pwsh"
    pwsh.touch()
    pwsh.chmod(0o755)
    assert unusable_reason(Path("a.ps1"), "posix") is None


def test_a_ctrl_c_in_a_windows_console_does_not_reach_the_model(
    pad: Launchpad, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def popen(_: Sequence[str], **options: Any) -> None:
        seen.update(options)
        raise FileNotFoundError(2, "The system cannot find the file specified")

    monkeypatch.setattr(process_tree.subprocess, "Popen", popen)
    monkeypatch.setattr(process_tree.subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    with pytest.raises(LaunchError):
        pad.launch(["server.exe"])
    assert seen["creationflags"] == 512


def test_the_process_that_listens_leads_once_the_server_answers(
    pad: Launchpad, eventually: Eventually, tmp_path: Path
) -> None:
    """A wrapper that outlives its server must not hide that the server has crashed."""
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0));"
        f"open({str(tmp_path / 'port')!r}, 'w').write(f'{{s.getsockname()[1]}} ');"
        "time.sleep(600)"
    )
    tree = pad.sh(f'{sys.executable} -c "{listen}" & sleep 600')
    eventually(lambda: (tmp_path / "port").exists() and (tmp_path / "port").read_text()[-1:] == " ")
    wrapper = tree.pid
    assert tree.settle(int((tmp_path / "port").read_text()))
    assert tree.pid != wrapper
    assert tree.alive()
    os.kill(tree.pid, signal.SIGKILL)
    eventually(lambda: not tree.alive())
    assert tree.stop(GRACE)
    assert marked(pad.run) == []
