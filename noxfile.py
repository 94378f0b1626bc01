"""`python3 noxfile.py -s NAME` runs one session. It needs only Python.

Run as a script, this file makes an environment with nox in it (`.nox/front-door`, once) and hands
its arguments over: `python3 noxfile.py -s demo -- --url memory://`, `python3 noxfile.py --list`.
Each session has an environment of its own, which is kept, and installed again only when
pyproject.toml has changed.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent
NOX = "nox>=2025.2.9"


def front_door(arguments: list[str]) -> None:
    """Replace this process by nox, in an environment of its own."""
    if sys.version_info < (3, 11):  # noqa: UP036 - users may start this file with an older Python
        sys.exit(
            f"mqcore needs Python 3.11 or newer; this is {sys.version.split()[0]} "
            f"({sys.executable})"
        )
    environment = ROOT / ".nox" / "front-door"
    python, stamp = environment / "bin" / "python", environment / "installed"
    wanted = f"{NOX} on {sys.version}"
    if not stamp.is_file() or stamp.read_text() != wanted:
        print("noxfile.py: making .nox/front-door (once)", file=sys.stderr)
        make = [sys.executable, "-m", "venv", "--clear", str(environment)]
        if subprocess.call(make) or subprocess.call(
            [str(python), "-m", "pip", "install", "--quiet", NOX]
        ):
            sys.exit(
                "noxfile.py: could not make an environment with nox; what failed is shown above"
            )
        stamp.write_text(wanted)
    os.execv(python, [str(python), "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    front_door(sys.argv[1:])

import nox  # noqa: E402 - only the front door's environment has it

nox.needs_version = NOX.removeprefix("nox")
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests"]

TIDY_UP = 70.0
"""Seconds that tests have to remove what they started, after Ctrl-C or SIGTERM."""

signal.signal(
    signal.SIGTERM, signal.default_int_handler
)  # nox ends its sessions at Ctrl-C, and is killed by SIGTERM

PYPROJECT = ROOT / "pyproject.toml"
GROUPS = nox.project.load_toml(PYPROJECT)


def install(session: nox.Session, *groups: str) -> None:
    """Install the project with all its extras and these dependency groups, if they changed."""
    stamp = Path(session.virtualenv.location) / "installed"
    wanted = hashlib.sha256(PYPROJECT.read_bytes() + repr(groups).encode()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        session.install("--quiet", "-e", ".[all]", *nox.project.dependency_groups(GROUPS, *groups))
        stamp.write_text(wanted)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, or those that are named: `-s tests -- tests/unit -k retry`.

    All of them take a broker of each kind, where one can be had, and run those on brokers side by
    side; options for every pytest are written in one word, `-s tests -- --mqcore-brokers=local
    --mqcore-contract-reports=reports`.
    """
    install(session, "tests")
    # it passes a signal on to the tests, which then remove their containers; nox would kill it
    # after half a second
    session.run("python", "tests/side_by_side.py", *session.posargs, terminate_timeout=TIDY_UP)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, the layers between modules, and the changelog's fragments."""
    install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", "--no-logo")
    session.run("towncrier", "build", "--draft", "--version", "next", silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly, in core, plugins, examples and the typing tests."""
    install(session, "types", "tests", "demo", "rooms")
    session.run("mypy", *session.posargs)


@nox.session
def demo(session: nox.Session) -> None:
    """Segment real images end to end: `-s demo -- [--url URL] [--images DIR] [--out DIR]`."""
    install(session, "demo")
    session.run("python", "examples/segmentation/demo.py", *session.posargs)


@nox.session
def rooms(session: nox.Session) -> None:
    """Make rooms on a simulated Proxmox while things go wrong: `-s rooms -- [--url URL]`."""
    install(session, "rooms")
    session.run("python", "-m", "examples.rooms.demo", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Check that the contract kit catches broken backends: `-s mutants -- [NAME…] [--all]`."""
    install(session, "tests")
    session.run("python", "tests/mutants", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """Restart workers under load: `-s campaign -- redis-7 rabbitmq-4+quorum --restarts 60`.

    The other campaigns are run by hand: `python tests/campaigns/power_cuts.py sqlite postgresql`.
    """
    install(session, "tests")
    session.run(
        "python", "tests/campaigns/rolling_restarts.py", *(session.posargs or ["redis", "rabbitmq"])
    )


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/ and run its code blocks. A warning is an error."""
    install(session, "docs")
    # Not with --quiet: what is not shown is not counted, and every warning would pass.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.run("pytest", "tests/docs", *session.posargs)


@nox.session
def floor(session: nox.Session) -> None:
    """Compare what a message costs with the raw clients, and fail where it has about doubled."""
    install(session, "tests")
    session.run("python", "benchmarks/floor.py")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure mqcore beside its peers and raw clients: `-s bench -- [--only redis] [--page]`."""
    install(session, "tests", "bench")
    session.run("python", "benchmarks/peers.py", *session.posargs)


KOMBU, CELERY = "kombu==5.7.0", "celery==5.7.0"
"""Whose own suites the sessions `kombu-suite` and `celery-suite` run."""


@nox.session(name="kombu-suite")
def kombu_suite(session: nox.Session) -> None:
    """Run kombu's own suite for transports on mqcore: `-s kombu-suite -- --mqcore-brokers=local`.

    On memory, SQLite, Redis and RabbitMQ. What is left out is printed, with the reason.
    """
    install(session, "tests")
    session.run(
        *("pytest", "-p", "no:randomly", "tests/kombu_suite/suite.py", *session.posargs),
        env={"MQCORE_KOMBU_SOURCE": str(source_of(session, KOMBU))},
        terminate_timeout=TIDY_UP,
    )


@nox.session(name="celery-suite")
def celery_suite(session: nox.Session) -> None:
    """Run Celery's integration suite, unmodified, or a part: `-s celery-suite -- canvas inspect`.

    It needs a Redis of its own: `MQCORE_SUITE_REDIS`, by default `redis://localhost:6379`, with the
    broker in database 0 and the results in database 1. `MQCORE_SUITE_BROKER` names another broker.
    The files run one after the other, because they share keys of that Redis.
    """
    install(session, "tests")
    session.install("--quiet", CELERY, *CELERY_TESTS)
    source = source_of(session, CELERY)
    redis = os.environ.get("MQCORE_SUITE_REDIS", "redis://localhost:6379")
    host, _, port = redis.removeprefix("redis://").partition(":")
    environment = {
        "TEST_BROKER": os.environ.get("MQCORE_SUITE_BROKER", f"mqcore+{redis}/0"),
        "TEST_BACKEND": f"{redis}/1",
        "REDIS_HOST": host,
        "REDIS_PORT": port or "6379",
        "WORKER_LOGLEVEL": "INFO",
    }
    words = (
        *("pytest", "-q", "-rs", "--timeout=120", "-p", "celery.contrib.pytest"),
        *("-p", "no:randomly", "-p", "no:pytest_celery"),
    )
    with session.chdir(source):
        for name in session.posargs or CELERY_FILES:
            session.run(*words, f"t/integration/test_{name}.py", env=environment)


CELERY_TESTS = ("pytest-rerunfailures", "pytest-subtests", "pymemcache", "tblib")
CELERY_FILES = ("inspect", "tasks", "canvas", "beat", "worker", "loader", "redis_backend")


def source_of(session: nox.Session, package: str) -> Path:
    """Return the unpacked source of a package, as its project publishes it."""
    folder = ROOT / ".nox" / "sources" / package.replace("==", "-")
    if not folder.is_dir():
        session.run(
            *("python", "-m", "pip", "--quiet", "download", "--no-deps", "--no-binary=:all:"),
            *("--dest", str(folder.parent), package),
        )
        (archive,) = folder.parent.glob(f"{folder.name}*.tar.gz")
        shutil.unpack_archive(archive, folder.parent, filter="data")
    return folder


DJANGO = "django==6.1.3"
"""Whose tests of task backends the session `django` runs. It needs Python 3.12."""


@nox.session(venv_backend="none")
def django(session: nox.Session) -> None:
    """Run Django's own tests of task backends, out of its sdist, in memory and on SQLite."""
    environment = ROOT / ".nox" / "django"
    python = str(environment / "bin" / "python")
    if not (environment / "installed").is_file():
        session.run(newer_python(session), "-m", "venv", "--clear", str(environment), external=True)
        pip = (python, "-m", "pip", "--quiet")
        session.run(*pip, "install", "-e", str(ROOT), DJANGO, external=True)
        session.run(
            *pip,
            *("download", "--no-deps", "--no-binary=:all:", "--dest", str(environment), DJANGO),
            external=True,
        )
        (archive,) = environment.glob("django-*.tar.gz")
        shutil.unpack_archive(archive, environment / "sdist", filter="data")
        (environment / "installed").touch()

    (sdist,) = (environment / "sdist").iterdir()
    script = ROOT / "tests" / "django_suite" / "run.py"
    with TemporaryDirectory() as folder:  # another version may have left other tables elsewhere
        for store in ("memory://suite", f"sqlite:///{folder}/tasks.db"):
            session.run(python, str(script), str(sdist), "--store", store, external=True)


def newer_python(session: nox.Session) -> str:
    """Return a Python that Django 6 runs on: this one, one on the PATH, or one of pyenv."""
    found = [sys.executable, *(f"python3.{minor}" for minor in (14, 13, 12))]
    found += map(str, (Path.home() / ".pyenv" / "versions").glob("3.1[234].*/bin/python"))
    check = "import sys; sys.exit(sys.version_info < (3, 12))"
    for python in filter(shutil.which, found):
        if not subprocess.call([python, "-c", check], stderr=subprocess.DEVNULL):
            break
    else:
        session.error("Django 6 needs Python 3.12 or newer, and none was found")
    return python


@nox.session
def package(session: nox.Session) -> None:
    """Build the wheel, install it without extras, and import it outside of this tree."""
    wheels = session.create_tmp()
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ".")
    wheel = max(Path(wheels).glob("*.whl"), key=lambda path: path.stat().st_mtime)
    session.install("--quiet", "--force-reinstall", str(wheel))
    session.chdir(wheels)
    session.run(
        "python", "-W", "error", "-c", "import mqcore, mqcore_memory; print(mqcore.__file__)"
    )


@nox.session(venv_backend="none")
def dev(session: nox.Session) -> None:
    """Make .venv with everything that developing needs, and install the commit hooks."""
    python = ROOT / ".venv" / "bin" / "python"
    session.run(sys.executable, "-m", "venv", str(ROOT / ".venv"))
    wanted = nox.project.dependency_groups(GROUPS, "dev")
    session.run(str(python), "-m", "pip", "install", "--quiet", "-e", ".[all]", *wanted)
    session.run(str(python), "-m", "pre_commit", "install")
