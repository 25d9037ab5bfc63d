"""What travels with a job to a cluster."""

import shlex
import subprocess
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.cli import _split, command_parser
from launch.cluster import package
from launch.cluster.jobs import _variables, entrypoint_of
from launch.cluster.package import CONFIG, check_portable, make_working_dir
from launch.config import RunConfig
from launch.reading import read_config

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "tests" / "launch" / "tiny.yaml"


def config(*words: str) -> RunConfig:
    return read_config(RunConfig, [TINY], ["--launcher", "ray", "--out", "/shared/out", *words])


def test_the_project_travels_without_what_git_ignores_and_the_configuration_reads_back(tmp_path: Path) -> None:
    told = make_working_dir(config(), tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"launch/cli.py", "pipeline/train.py", "data_prep/errors.py", "configs/runs/demo.yaml", CONFIG} <= names
    assert "launch/report/page/report.html.j2" in names
    assert not [name for name in names if name.startswith((".git", ".venv")) or "__pycache__" in name]
    assert told["files"] == len(names)
    assert read_config(RunConfig, [tmp_path / CONFIG], []) == config()


def test_files_that_keep_keys_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, job = tmp_path / "project", tmp_path / "job"
    job.mkdir()
    names = ["launch/a.py", ".env", ".env.local", "deploy/me.pem", "sub/.netrc", "credentials.json", "ignored.txt"]
    for name in (*names, "launch/keys.py", "monkey.py"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (project / ".gitignore").write_text("ignored.txt\n")
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    monkeypatch.setattr(package, "_HERE", project)
    make_working_dir(config(), job)
    sent = sorted(path.relative_to(job).as_posix() for path in job.rglob("*") if path.is_file())
    assert sent == sorted(["launch/a.py", "launch/keys.py", "monkey.py", CONFIG])


def test_an_installation_sends_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site-packages"
    for name in ("launch/a.py", "pipeline/b/c.py", "data_prep/d.txt", "launch/__pycache__/a.pyc", "torch/e.py"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    monkeypatch.setattr(package, "_HERE", site)
    (tmp_path / "job").mkdir()
    make_working_dir(config(), tmp_path / "job")
    sent = sorted(path.relative_to(tmp_path / "job").as_posix() for path in (tmp_path / "job").rglob("*.*"))
    assert sent == sorted(["launch/a.py", "pipeline/b/c.py", "data_prep/d.txt", CONFIG])


def test_a_project_too_large_to_travel_names_its_largest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "launch").mkdir()
    with open(tmp_path / "launch" / "big.bin", "wb") as file:
        file.truncate(package.MOST_BYTES + 1)
    monkeypatch.setattr(package, "_HERE", tmp_path)
    with pytest.raises(UserError, match=r"100 MiB, the largest file being .*big\.bin"):
        make_working_dir(config(), tmp_path / "job")


@pytest.mark.parametrize(
    "words",
    [
        ("--data.root", "data/coco"),
        ("--data.annotations", "[train=a.json]"),
        ("--tokenizer.path", "bert"),
        ("--loader.cache_dir", "cache"),
        ("--out", "runs/tiny"),
        ("--out", "a=/b"),
        ("--checkpoint.path", "checkpoints"),
    ],
)
def test_relative_paths_are_refused(words: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"{words[0][2:]}.* is relative"):
        check_portable(config(*words))


def test_absolute_paths_and_urls_are_fine() -> None:
    check_portable(config("--data.root", "s3://bucket/coco", "--data.annotations", "[train=/a=b/c.json, /d=e/f.json]"))


def test_another_launcher_is_refused() -> None:
    with pytest.raises(UserError, match="--launcher ray"):
        check_portable(config("--launcher", "local"))


def test_a_job_has_the_time_that_the_server_gives_it() -> None:
    plain = entrypoint_of(config(), "run", "python")
    assert plain == "python -m launch run trimline_run.yaml --cluster.address auto --cluster.notice_seconds 110"
    longer = entrypoint_of(config("--cluster.notice_seconds=300"), "trim", "/my env/python")
    assert longer.startswith("'/my env/python' -m launch trim ") and longer.endswith("--cluster.notice_seconds 300")


@pytest.mark.parametrize(
    ("notice", "patience"), [("30", "120"), ("300", "310"), ("200.5", "211"), ("1234567", "1234577")]
)
def test_the_server_is_told_its_patience_in_whole_seconds_which_it_reads(notice: str, patience: str) -> None:
    assert _variables(config("--cluster.notice_seconds", notice))["RAY_JOB_STOP_WAIT_TIME_S"] == patience


def test_a_job_can_start_over_or_take_stages_from_another_run_there() -> None:
    words = shlex.split(entrypoint_of(config(), "run", "python", fresh=True, take_from="/shared/my run"))
    assert words[-3:] == ["--fresh", "--take_from", "/shared/my run"]
    own, overrides = _split(words[3:])
    options = command_parser().parse_args(own)
    assert (options.fresh, options.take_from, options.configs) == (True, Path("/shared/my run"), [CONFIG])
    assert read_config(RunConfig, [TINY], overrides).cluster.notice_seconds == 110
    with pytest.raises(UserError, match=r"--take_from runs/a is relative.*absolute path"):
        entrypoint_of(config(), "run", "python", take_from="runs/a")


def test_submit_takes_both() -> None:
    own, _ = _split(["cluster", "submit", "a.yaml", "--fresh", "--take_from", "/shared/b", "--out", "/shared/a"])
    options = command_parser().parse_args(own)
    assert (options.fresh, options.take_from) == (True, "/shared/b")
