"""The scripts that a newcomer starts: run_local.sh with a stand-in for the server and with the real one."""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from tests.support.checkout import short_checkout
from tests.support.job_server import AUDIO
from tests.support.paths import PROJECT as ROOT

pytestmark = pytest.mark.slow

JOB_SERVER = "-m tests.support.job_server"  # the script works in the project's folder
DEADLINE_S = 300  # an end to waiting where something is broken
ENGINE_ENDS_S = 10  # it ends by itself when the server is gone


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first song's server writes its weights."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the script keeps its log."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


@pytest.fixture
def environment(cache: Path, port: int, temporary: Path) -> dict[str, str]:
    """The real interpreter, an own port, own folders."""
    own = {"YUE_VENV": sys.prefix, "PORT": str(port), "TMPDIR": str(temporary), "YUE_MODEL": "tiny"}
    return os.environ | own | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def played(environment: dict[str, str], tmp_path: Path, port: int) -> dict[str, str]:
    """The same, with a stand-in for gunicorn that plays a song's life."""
    return environment | {"YUE_VENV": str(_venv(tmp_path, f"exec {_python()} {JOB_SERVER} {port}"))}


def run_local(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "run_local.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)


def test_help_tells_the_options_and_starts_nothing(environment: dict[str, str]) -> None:
    done = run_local(environment, "--help")
    assert done.returncode == 0
    for option in ("--once", "--output FILE", "YUE_MODEL", "PORT", "YUE_VENV", "YUE_PIP_ARGS"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--twice"], ["song.mp3"], ["--output"], ["--output", "/none/song.mp3"], ["--output", "a.mp4"]]
)
def test_wrong_arguments_are_code_2_and_named(arguments: list[str], environment: dict[str, str]) -> None:
    done = run_local(environment, *arguments)
    assert done.returncode == 2
    assert arguments[-1] in done.stderr and "allowed" in done.stderr


@pytest.mark.parametrize("wrong", ["http", "0", "65536", "08080"])
def test_a_port_that_is_none_is_named(wrong: str, environment: dict[str, str]) -> None:
    done = run_local(environment | {"PORT": wrong})
    assert done.returncode == 2
    assert f"PORT: got '{wrong}'" in done.stderr


def test_a_busy_port_is_told_before_anything_slow(environment: dict[str, str], port: int, tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", port))
        busy.listen()
        done = run_local(environment | {"YUE_VENV": str(tmp_path / "none")}, "--once")
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr


def test_a_yue_venv_without_python_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    done = run_local(environment | {"YUE_VENV": str(tmp_path / "none")}, "--once")
    assert done.returncode == 1
    assert f"YUE_VENV: got '{tmp_path / 'none'}'" in done.stderr


@pytest.mark.parametrize(
    ("script", "file", "tool"),
    [("run_local.sh", "requirements.txt", "gunicorn"), ("run_tests.sh", "requirements-dev.txt", "ruff")],
)
def test_an_environment_that_lacks_the_tools_is_told_in_one_line(
    environment: dict[str, str], tmp_path: Path, script: str, file: str, tool: str
) -> None:
    venv.create(tmp_path / "bare")
    bare = environment | {"YUE_VENV": str(tmp_path / "bare")}
    done = subprocess.run([str(ROOT / script)], env=bare, capture_output=True, text=True, timeout=DEADLINE_S)
    (line,) = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 1 and tool in line and f"{tmp_path}/bare/bin/python -m pip install -r {file}" in line


def test_a_first_song_is_generated_and_the_server_stopped(
    played: dict[str, str], tmp_path: Path, temporary: Path
) -> None:
    output = tmp_path / "song.mp3"
    done = run_local(played, "--once", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert output.read_bytes() == AUDIO
    assert f"{output}: 12.3 s" in done.stdout
    assert "hums a tune and cannot sing words" in done.stdout and "YUE_MODEL=en-cot" in done.stdout
    assert not list(temporary.iterdir()), "the log of a good run is of no use"
    assert_nothing_left(played)


@pytest.mark.parametrize(("model", "warned"), [("en-cot", True), ("tiny", False)])
def test_real_weights_without_a_gpu_are_warned_of(
    played: dict[str, str], tmp_path: Path, model: str, warned: bool
) -> None:
    settings = {"YUE_MODEL": model, "YUE_DEVICE": "cpu"}
    done = run_local(played | settings, "--once", "--output", str(tmp_path / "song.mp3"))
    assert done.returncode == 0, done.stderr
    assert ("warning: en-cot: " in done.stderr and "16 GB" in done.stderr and "estimate" in done.stderr) == warned


@pytest.mark.parametrize("wrong", ["foo", "en-cott", "owner/"])
def test_an_unknown_model_is_refused_before_anything_slow(wrong: str, played: dict[str, str]) -> None:
    done = run_local(played | {"YUE_MODEL": wrong, "YUE_DEVICE": "cpu"}, "--once")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"run_local.sh: YUE_MODEL: got {wrong!r}; allowed: tiny, en-cot, ")


def test_the_line_that_activates_the_environment_is_told(played: dict[str, str], tmp_path: Path) -> None:
    activate = Path(played["YUE_VENV"]) / "bin" / "activate"
    activate.write_text("")
    command = [str(ROOT / "run_local.sh"), "--output", str(tmp_path / "song.mp3")]
    with subprocess.Popen(command, env=played, stdout=subprocess.PIPE, text=True, start_new_session=True) as script:
        assert script.stdout is not None
        assert any(line == f"To use its environment there: . {activate}\n" for line in script.stdout)
        os.killpg(script.pid, signal.SIGINT)
        script.stdout.read()
    assert_nothing_left(played)


def test_output_is_taken_from_where_the_caller_stands(played: dict[str, str], tmp_path: Path) -> None:
    command = [str(ROOT / "run_local.sh"), "--once", "--output=here.mp3"]
    subprocess.run(command, env=played, cwd=tmp_path, check=True, capture_output=True, timeout=DEADLINE_S)
    assert (tmp_path / "here.mp3").read_bytes() == AUDIO


def test_without_output_the_song_is_where_the_caller_stands_and_overwrites_none(
    played: dict[str, str], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "song.mp3").write_bytes(b"dear")
    done = subprocess.run(
        [str(ROOT / "run_local.sh"), "--once"], env=played, cwd=here, capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"song.mp3": b"dear", "song-2.mp3": AUDIO}
    assert "song-2.mp3: 12.3 s" in done.stdout


def test_a_server_that_dies_shows_its_log(environment: dict[str, str], tmp_path: Path, temporary: Path) -> None:
    dying = environment | {"YUE_VENV": str(_venv(tmp_path, "echo 'the boiler burst' >&2; exit 3"))}
    done = run_local(dying, "--once", "--output", str(tmp_path / "song.mp3"))
    assert done.returncode == 1
    assert "the boiler burst" in done.stderr
    (log,) = temporary.iterdir()
    assert str(log) in done.stderr and "the boiler burst" in log.read_text()


def test_a_song_that_fails_gives_its_exit_code(environment: dict[str, str], tmp_path: Path) -> None:
    """A server that answers /health and generates no songs."""
    venv = _venv(tmp_path, f"exec {_python()} -m http.server {environment['PORT']}")
    done = run_local(environment | {"YUE_VENV": str(venv)}, "--output", str(tmp_path / "song.mp3"))
    assert done.returncode == 1
    assert "501" in done.stderr and "the song failed" in done.stderr
    assert_nothing_left(environment)


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ending_it_ends_the_server(way: signal.Signals, played: dict[str, str], tmp_path: Path) -> None:
    code = end_when(played, "until Ctrl-C", way, "--output", str(tmp_path / "song.mp3"))
    assert code == 128 + way
    assert_nothing_left(played)


def test_ctrl_c_during_the_song_ends_everything(environment: dict[str, str], tmp_path: Path) -> None:
    venv = _venv(tmp_path, f"exec {_python()} {JOB_SERVER} {environment['PORT']} endless")
    output = tmp_path / "song.mp3"
    code = end_when(environment | {"YUE_VENV": str(venv)}, "generating section", signal.SIGINT, "--output", str(output))
    assert code == 128 + signal.SIGINT
    assert_nothing_left(environment)
    assert not output.exists()


def end_when(environment: dict[str, str], sign: str, way: signal.Signals, *arguments: str) -> int:
    """Start the script, send the signal once it has said `sign`, and see all that wrote to its output end."""
    command = [str(ROOT / "run_local.sh"), *arguments]
    # A session of its own stands for a terminal: the signal goes to the script's whole group, as Ctrl-C does.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as script:
        assert script.stdout is not None
        assert any(sign in line for line in script.stdout)
        os.killpg(script.pid, way)
        script.stdout.read()  # ends when the last process that holds it ends
        return script.wait(DEADLINE_S)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A checkout whose requirements are none, so that installing them is quick."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "requirements.txt").write_text("# nothing\n")
    yield folder


def prepare(project: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "YUE_VENV"}
    script = (
        'set -euo pipefail; source scripts/setup.sh; prepare_environment requirements.txt; "$python" -m pip --version'
    )
    command = ["bash", "-c", script]
    return subprocess.run(command, cwd=project, env=clean, capture_output=True, text=True, timeout=DEADLINE_S)


def test_the_environment_is_made_once_and_mended_when_broken(project: Path) -> None:
    first = prepare(project)
    assert "Making .venv" in first.stdout and "Installing requirements.txt" in first.stdout, first.stderr

    second = prepare(project)
    assert second.returncode == 0 and "Making" not in second.stdout and "Installing" not in second.stdout

    (project / "requirements.txt").write_text("# still nothing\n")
    changed = prepare(project)
    assert "Making" not in changed.stdout and "Installing requirements.txt" in changed.stdout

    (project / ".venv" / "bin" / "python").unlink()
    broken = prepare(project)
    assert broken.returncode == 0 and "Making .venv" in broken.stdout and "Installing" in broken.stdout


def test_an_environment_left_half_made_is_made_anew(project: Path) -> None:
    (project / "requirements.txt").write_text("./no-such-package\n")
    failed = prepare(project)
    assert failed.returncode == 1 and "requirements.txt could not be installed" in failed.stderr

    (project / "requirements.txt").write_text("# nothing\n")
    again = prepare(project)
    assert again.returncode == 0 and "Making .venv" in again.stdout


def test_a_machine_without_python_is_told_what_to_install(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    script = "set -euo pipefail; source scripts/setup.sh; prepare_environment requirements.txt"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", script], cwd=project, env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("broken", ["ruff check", "ruff format", "mypy", "hadolint", "audit", "pytest", ""])
def test_run_tests_runs_everything_and_fails_when_anything_fails(broken: str, project: Path) -> None:
    ran, done = run_tests(project, broken, "-k", "lyrics")
    tests = "-m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -k lyrics"
    checks = ["-m ruff check", "-m ruff format --check", "hadolint Dockerfile", tests, "-m mypy", "scripts/audit.py"]
    assert ran == checks
    assert done.returncode == (1 if broken else 0), done.stderr
    assert not broken or broken in done.stderr


def run_tests(project: Path, broken: str, *arguments: str) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """What is run by run_tests.sh, in the order in which it is shown, where one of the tools finds something wrong."""
    shutil.copy(ROOT / "run_tests.sh", project)
    (project / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", project / ".ci")
    python = project / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "ran $*"\ncase "$*" in *"{broken or "none"}"*) exit 1 ;; esac\n')
    python.chmod(0o755)
    shutil.copy(python, python.with_name("hadolint"))
    python.with_name("hadolint").write_text(python.read_text().replace("$*", "hadolint $*"))
    command = [str(project / "run_tests.sh"), *arguments]
    done = subprocess.run(command, env=os.environ | {"YUE_VENV": "venv"}, capture_output=True, text=True)
    ran = [line.removeprefix("ran ") for line in done.stdout.splitlines() if line.startswith("ran")]
    return [line for line in ran if "-c" not in line.split()], done


@pytest.mark.parametrize("broken", ["mypy", "pytest", ""])
def test_the_quick_tests_fail_when_anything_fails(broken: str, project: Path) -> None:
    ran, done = run_tests(project, broken, "--quick", "-k", "lyrics")
    tests = (
        "-m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m not container and not slow -k lyrics"
    )
    assert ran == ["-m ruff check", "-m ruff format --check", tests, "-m mypy"]
    assert done.returncode == (1 if broken else 0), done.stderr
    assert not broken or broken in done.stderr


def test_run_tests_tells_its_options_and_runs_nothing(project: Path) -> None:
    ran, done = run_tests(project, "", "--help")
    assert not ran and done.returncode == 0 and "--quick" in done.stdout and "YUE_VENV" in done.stdout


def test_the_real_server_generates_end_to_end_at_any_address_with_any_keys(
    environment: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "song.mp3"
    command = [str(short_checkout(tmp_path / "checkout") / "run_local.sh"), "--once", "--output", str(output)]
    own = environment | {"YUE_HOST": "127.0.0.2", "YUE_API_KEY": "of-the-first-user,of-the-second-user"}
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    song = soundfile.info(output)
    assert (song.format, song.samplerate, song.channels) == ("MP3", 44_100, 1)
    told_seconds = float(done.stdout.split(f"{output}: ")[1].split(" s")[0])
    assert told_seconds > 1
    assert song.duration == pytest.approx(told_seconds, abs=0.2)
    assert_nothing_left(environment)


def test_ctrl_c_during_a_real_song_ends_the_engine_too(environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "song.mp3"
    assert end_when(environment, "generating section", signal.SIGINT, "--output", str(output)) == 128 + signal.SIGINT
    assert_nothing_left(environment)
    assert not output.exists()


def assert_nothing_left(environment: dict[str, str]) -> None:
    """Nothing listens any more, and no process lives (or goes on living) that the script brought about."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(environment["PORT"]))) != 0, "the server is still there"
    own = f"TMPDIR={environment['TMPDIR']}".encode()
    for process in Path("/proc").glob("[0-9]*"):  # where there is no /proc the port has to do
        try:
            left = own in (process / "environ").read_bytes().split(b"\0")
            ending = os.pidfd_open(int(process.name)) if left else None
        except (OSError, ProcessLookupError):  # ended meanwhile, or another user's
            continue
        if ending is not None:
            ended, _, _ = select.select([ending], [], [], ENGINE_ENDS_S)
            os.close(ending)
            assert ended, f"process {process.name} is left behind"


def _python() -> str:
    return shlex.quote(sys.executable)


def _venv(folder: Path, gunicorn: str) -> Path:
    """An environment whose Python is the real one, but for `-m gunicorn`."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nif [ "$*" = "-m gunicorn" ]; then {gunicorn}; fi\nexec {_python()} "$@"\n')
    python.chmod(0o755)
    return python.parents[1]
