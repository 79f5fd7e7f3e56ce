"""What Snakemake is told of its SLURM jobs, in states that a healthy cluster cannot show.

squeue, sacct, sbatch and scancel are stand-ins on the PATH; tests/slurm asks real ones.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from snakemake.exceptions import WorkflowError
from snakemake_executor_plugin_slurm.job_status_query import query_job_status_sacct, query_job_status_squeue
from snakemake_executor_plugin_slurm.submit_string import get_submit_command

from bench.small_dag import small_config

ROOT = Path(__file__).parents[2]
OWN = ROOT / "workflow" / "slurm"


class Cluster:
    """Stand-ins that say what a test wants them to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(sys.executable)
        self.patience, self.watch = "0", "0"

    def says(self, program: str, text: str = "", status: int = 0) -> None:
        path = self.folder / "bin" / program
        path.write_text(
            f"#!/bin/sh\necho {program} \"$@\" >> '{self.folder}/calls'\n/bin/cat <<'END'\n{text}\nEND\nexit {status}\n"
        )
        path.chmod(0o755)

    def asked(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(arguments), cwd=self.folder, capture_output=True, text=True, check=False,
            env={
                "PATH": f"{OWN}:{self.folder}/bin", "UIC_SQUEUE_PATIENCE": self.patience, "UIC_SBATCH_PAUSE": "0.05",
                "UIC_SLURM_JOBS": str(self.folder / "jobs"), "UIC_SQUEUE_WATCH": self.watch,
            },
        )  # fmt: skip

    def told(self) -> dict[str, str]:
        """What the plugin's question is answered with."""
        process = self.asked("squeue", "--format=%i|%T", "--states=all", "--noheader", "--name", "run")
        assert process.returncode == 0, process.stderr
        return dict(line.split("|") for line in process.stdout.splitlines())

    def fails_first(self, program: str, error: str, text: str) -> None:
        """The first call ends with an error, later ones say `text`."""
        path = self.folder / "bin" / program
        path.write_text(
            f"#!/bin/sh\necho {program} \"$@\" >> '{self.folder}/calls'\n"
            f"if [ -e '{self.folder}/{program}.failed' ]; then echo '{text}'; exit 0; fi\n"
            f": > '{self.folder}/{program}.failed'; echo '{error}' >&2; exit 1\n"
        )
        path.chmod(0o755)

    def submit(self, comment: str = "rule_index") -> subprocess.CompletedProcess[str]:
        """As the plugin does."""
        return self.asked("sbatch", "--parsable", "--job-name", "run", "--comment", comment, "--wrap=true")

    def calls(self) -> str:
        return (self.folder / "calls").read_text()


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("question", [query_job_status_squeue, query_job_status_sacct])
def test_the_questions_of_the_installed_plugin_are_known(cluster, question):
    """A newer plugin that asks in other words would be answered by SLURM itself, without what is seen here."""
    cluster.says("squeue", "7|LAUNCH_FAILED|None")
    process = cluster.asked(*shlex.split(question("run")))
    assert process.stdout == "7|FAILED\n", process.stderr


def test_the_submission_of_the_installed_plugin_is_known(cluster):
    cluster.says("sbatch", "7")
    resources = type("Resources", (dict,), {"__getattr__": dict.__getitem__})(runtime=10, mem_mb=500, nodes=1)
    job = SimpleNamespace(resources=resources, threads=1, is_group=lambda: False, rule=SimpleNamespace(name="index"))
    parameters = {
        "run_uuid": "run", "slurm_logfile": "log", "comment_str": "rule_index", "account": "", "partition": "",
        "workdir": ".", "job_name": "run",
    }  # fmt: skip
    process = cluster.asked(*shlex.split(get_submit_command(job, parameters)))
    assert process.returncode == 0, process.stderr
    assert (cluster.folder / "jobs" / "run.jobs").read_text().split() == ["7"]


@pytest.mark.parametrize(
    "answer",
    [
        "4711",
        "4711;cluster2",
        "Welcome to Cluster 9!\nMaintenance on 24 May 2026, 8:00\n4711",
        "Your account has\n1200\nhours left.\n4711;main",
        "4711\nThank you for using nodes of 2026.",
        "Submitted batch job 4711 on cluster c2",
    ],
)
def test_fault_44_a_job_s_number_is_recorded_without_the_site_s_banner(cluster, answer, seen):
    cluster.says("sbatch", answer)
    process = cluster.submit()
    seen(process.stdout)
    assert (process.returncode, process.stdout) == (0, "4711\n"), process.stderr
    assert (cluster.folder / "jobs" / "run.jobs").read_text() == "4711\n"


def test_fault_44_an_answer_without_a_number_is_shown(cluster, seen):
    cluster.says("sbatch", "Quota exceeded")
    process = cluster.submit()
    seen(process.stderr)
    assert process.returncode == 1
    assert process.stderr == "sbatch: no job number in its answer: Quota exceeded\n"


def test_another_version_of_the_plugin_is_refused(monkeypatch):
    rules: dict[str, Any] = {}
    exec((OWN.parent / "rules" / "cluster.smk").read_text(), rules)
    rules["refuse_other_plugin"]()
    monkeypatch.setattr(rules["metadata"], "version", lambda name: "3.0.0")
    with pytest.raises(WorkflowError, match=r"snakemake-executor-plugin-slurm 3\.0\.0 is installed, .* make setup"):
        rules["refuse_other_plugin"]()


def test_states_that_the_plugin_knows_pass_as_they_are(cluster):
    cluster.says("squeue", "1|RUNNING|None\n2|PENDING|Priority\n3|COMPLETED|None\n4|OUT_OF_MEMORY|OutOfMemory")
    assert cluster.told() == {"1": "RUNNING", "2": "PENDING", "3": "COMPLETED", "4": "OUT_OF_MEMORY"}


def test_a_preempted_job_that_does_not_come_back_has_failed(cluster):
    cluster.says("squeue", "1|PREEMPTED|None")
    cluster.patience = "60"
    assert cluster.told() == {"1": "PREEMPTED"}
    cluster.patience = "0"
    assert cluster.told() == {"1": "FAILED"}


def test_a_preempted_job_that_comes_back_is_waited_for(cluster):
    cluster.patience = "60"
    for state in ("PREEMPTED", "PENDING", "RUNNING", "PREEMPTED", "COMPLETED"):
        cluster.says("squeue", f"1|{state}|None")
        assert cluster.told() == {"1": state}


def test_a_job_of_a_dead_node_that_nobody_starts_again_has_failed(cluster):
    cluster.says("squeue", "1|NODE_FAIL|None")
    cluster.told()
    assert cluster.told() == {"1": "FAILED"}


def test_a_job_that_could_not_be_launched_has_failed(cluster):
    cluster.says("squeue", "1|LAUNCH_FAILED|None")
    assert cluster.told() == {"1": "FAILED"}


@pytest.mark.parametrize(
    "reason", ["launch failed requeued held", "launch failure limit exceeded requeued held"]
)  # fmt: skip
def test_a_job_held_after_its_launch_failed_is_cancelled_and_has_failed(cluster, reason):
    """In the words of SLURM 22.05 and of later ones."""
    cluster.says("squeue", f"1|PENDING|{reason}\n2|RUNNING|None")
    cluster.says("scancel")
    assert cluster.told() == {"1": "FAILED", "2": "RUNNING"}
    assert "scancel 1\n" in cluster.calls()


@pytest.mark.parametrize(
    "reason",
    [
        "PartitionTimeLimit", "PartitionConfig", "BadConstraints", "DependencyNeverSatisfied",
        "InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "MaxMemPerLimit",
        "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxCpuMinutesPerJobLimit",
        "QOSMaxMemoryPerJob", "AssocMaxGRESPerJob", "QOSMaxGRESPerNode", "QOSMinGRES", "QOSMinCpuNotSatisfied",
    ],
)  # fmt: skip
def test_a_job_that_slurm_would_never_start_is_cancelled_and_has_failed(cluster, reason):
    """Not at once: an administrator may be at it. It stays cancelled."""
    cluster.says("squeue", f"1|PENDING|{reason}|gpu\n2|RUNNING|None|gpu")
    cluster.says("scancel")
    cluster.patience = "60"
    for _ in range(2):
        assert cluster.told() == {"1": "PENDING", "2": "RUNNING"}
    cluster.says("squeue", status=1)
    assert cluster.told() == {"1": "PENDING", "2": "RUNNING"}
    assert "scancel" not in cluster.calls()
    cluster.says("squeue", f"1|PENDING|{reason}|gpu\n2|RUNNING|None|gpu")
    cluster.patience = "0"
    assert cluster.told() == {"1": "FAILED", "2": "RUNNING"}
    assert "scancel 1\n" in cluster.calls()
    cluster.says("squeue", f"1|CANCELLED|{reason}|gpu\n2|RUNNING|None|gpu")
    assert cluster.told() == {"1": "CANCELLED", "2": "RUNNING"}


@pytest.mark.parametrize(
    "reason",
    [
        "Priority", "Resources", "None", "Dependency", "BeginTime", "JobHeldUser", "JobHeldAdmin", "PartitionDown",
        "ReqNodeNotAvail, UnavailableNodes:n1", "QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser", "QOSMaxCpuPerUserLimit",
        "QOSGrpCpuLimit", "AssocMaxJobsLimit", "AssocGrpGRES", "MaxGRESPerAccount", "Licenses", "Reservation",
        "PartitionTimeLimit|gpu,long", "PartitionNodeLimit",
    ],
)  # fmt: skip
def test_a_job_that_waits_for_others_or_that_another_partition_may_start_is_waited_for(cluster, reason):
    cluster.says("squeue", f"1|PENDING|{reason}")
    cluster.says("scancel")
    for _ in range(3):
        assert cluster.told() == {"1": "PENDING"}
    assert "scancel" not in cluster.calls()


def test_patience_counts_from_when_the_reason_is_there(cluster):
    cluster.says("scancel")
    cluster.says("squeue", "1|PENDING|Priority|gpu")
    cluster.told()
    cluster.says("squeue", "1|PENDING|InvalidQOS|gpu")
    assert cluster.told() == {"1": "PENDING"}
    cluster.says("squeue", "1|RUNNING|None|gpu")
    assert cluster.told() == {"1": "RUNNING"}


@pytest.mark.slow
def test_the_log_of_a_job_that_slurm_would_never_start_says_why(cluster, seen):
    """And Snakemake shows it."""
    queue = cluster.folder / "queue"
    queue.touch()
    for program, script in (
        ("squeue", f"cat '{queue}'"),
        (
            "sbatch",
            'case "$*" in *miniimagenet*) job=7 why=PartitionTimeLimit;; *) job=8 why=InvalidAccount;; esac\n'
            f"echo \"$job|PENDING|$why|gpu\" >> '{queue}'\necho $job",
        ),
        ("sacct", "exit 0"),
        ("scancel", f'for job in "$@"; do sed -i "/^$job|/d" \'{queue}\'; done'),
    ):
        cluster.says(program)
        (cluster.folder / "bin" / program).write_text(f"#!/bin/sh\n{script}\n")
    (cluster.folder / "small.yaml").write_text(yaml.safe_dump(small_config()))
    profile = (ROOT / "profiles/slurm/config.yaml").read_text().replace("software-deployment-method: conda", "")
    (cluster.folder / "config.yaml").write_text(profile.replace("retries: 2", "retries: 0"))
    process = subprocess.run(
        [
            sys.executable, "-m", "snakemake", "results/data/miniimagenet.generated", "results/data/voc07.generated",
            "--snakefile", str(ROOT / "Snakefile"), "--profile", str(cluster.folder), "--directory",
            str(cluster.folder), "--configfile", str(cluster.folder / "small.yaml"),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=200,
        env=os.environ | {
            "PATH": f"{cluster.folder}/bin:{os.environ['PATH']}", "UIC_SQUEUE_PATIENCE": "0", "UIC_SQUEUE_WATCH": "9",
        },
    )  # fmt: skip
    assert process.returncode == 1
    for name, reason, remedy in (
        (
            "miniimagenet",
            "PartitionTimeLimit",
            "write the site's time limit in the profile, as `runtime` under default-",
        ),
        ("voc07", "InvalidAccount", "correct slurm_partition, slurm_account, qos or set-resources in the profile"),
    ):
        line = (cluster.folder / f"results/logs/data/synthetic_{name}.log").read_text()
        assert line.startswith(f"error: SLURM would never start this job ({reason}); {remedy}")
        assert line in process.stderr
        seen(line)


def test_accounting_answers_where_the_controller_does_not(cluster):
    cluster.says("squeue", status=1)
    cluster.says("sacct", "1|CANCELLED by 0\n2|COMPLETED")
    assert cluster.told() == {"1": "CANCELLED", "2": "COMPLETED"}


def test_the_plugins_question_to_sacct_is_answered_the_same_way(cluster):
    cluster.says("squeue", "1|RUNNING|None")
    process = cluster.asked("sacct", "-X", "--noheader", "--format=JobIdRaw,State", "--name", "run")
    assert process.stdout == "1|RUNNING\n"


def test_where_nobody_answers_the_plugin_hears_what_was_so_before(cluster):
    """A query that fails, often enough, makes it drop its jobs."""
    cluster.says("squeue", "1|RUNNING|None\n2|COMPLETED|None")
    cluster.told()
    cluster.says("sbatch", "3")
    assert cluster.submit().returncode == 0
    cluster.says("squeue", status=1)
    for _ in range(10):
        assert cluster.told() == {"1": "RUNNING", "2": "COMPLETED", "3": "PENDING"}


def test_a_job_that_ended_and_was_forgotten_between_two_questions_is_not_waited_for(cluster):
    cluster.says("sbatch", "7")
    assert cluster.submit().stdout == "7\n"
    cluster.says("squeue")
    cluster.says("sacct", "7|FAILED")
    assert cluster.told() == {"7": "FAILED"}
    cluster.says("sbatch", "8;one")
    assert cluster.submit().stdout == "8\n"
    cluster.says("sacct")
    cluster.patience = "60"
    assert cluster.told() == {"7": "FAILED", "8": "RUNNING"}
    cluster.patience = "0"
    assert cluster.told() == {"7": "FAILED", "8": "UNKNOWN"}


@pytest.mark.parametrize(
    "error",
    [
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "sbatch: error: Batch job submission failed: Resource temporarily unavailable",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
    ],
)
def test_a_submission_waits_for_the_controller_and_for_room(cluster, error):
    cluster.fails_first("sbatch", error, "5")
    cluster.says("squeue")
    process = cluster.submit()
    assert (process.returncode, process.stdout) == (0, "5\n"), process.stderr
    assert cluster.calls().count("sbatch") == 2
    assert (cluster.folder / "jobs/run.jobs").read_text() == "5\n"


def test_a_submission_whose_answer_was_lost_is_not_made_twice(cluster):
    """Of the jobs in the queue, that of this rule; not the one that another call has been told of."""
    cluster.says("sbatch", "4")
    cluster.submit("rule_index")
    cluster.fails_first("sbatch", "sbatch: error: Socket timed out on send/recv operation", "9")
    cluster.says("squeue", "4|rule_index\n5|rule_check\n6|rule_index")
    process = cluster.submit("rule_index")
    assert (process.returncode, process.stdout) == (0, "6\n")
    assert cluster.calls().count("sbatch") == 2
    assert (cluster.folder / "jobs/run.jobs").read_text().split() == ["4", "6"]


def test_a_submission_is_not_made_again_while_the_queue_cannot_be_looked_at(cluster):
    cluster.fails_first("sbatch", "sbatch: error: Unable to contact slurm controller", "9")
    cluster.fails_first("squeue", "slurm_load_jobs error", "")
    assert cluster.submit().stdout == "9\n"
    assert [line.split()[0] for line in cluster.calls().splitlines()] == ["sbatch", "squeue", "squeue", "sbatch"]


def test_a_wrong_submission_fails_at_once(cluster):
    """Launch failure at the door."""
    cluster.says("sbatch", "", 1)
    (cluster.folder / "bin/sbatch").write_text(
        "#!/bin/sh\necho 'error: invalid partition specified: gpu' >&2; exit 1\n"
    )
    process = cluster.submit()
    assert process.returncode == 1
    assert "invalid partition" in process.stderr


def test_a_submission_that_nobody_waits_for_is_given_up(cluster):
    cluster.says("sbatch", "1", 1)
    (cluster.folder / "bin/sbatch").write_text(
        f"#!/bin/sh\necho >> '{cluster.folder}/calls'; echo 'Unable to contact slurm controller' >&2; exit 1\n"
    )
    cluster.says("squeue")
    process = subprocess.Popen(
        ["sbatch", "--parsable", "--job-name", "run", "--comment", "rule_index"], cwd=cluster.folder,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={"PATH": f"{OWN}:{cluster.folder}/bin", "UIC_SBATCH_PAUSE": "0.01"},
    )  # fmt: skip
    process.stdout.close()  # as by Snakemake's death
    assert process.wait(30) == 1
    assert "squeue" not in cluster.calls()


def test_the_script_of_a_submission_reaches_sbatch(cluster):
    (cluster.folder / "bin/sbatch").write_text(f"#!/bin/sh\n/bin/cat > '{cluster.folder}/script'; echo 1\n")
    (cluster.folder / "bin/sbatch").chmod(0o755)
    process = subprocess.run(
        ["sbatch", "--parsable", "--job-name", "run", "--comment", "rule_index", "/dev/stdin"], input=b"#!/bin/sh\n",
        cwd=cluster.folder, capture_output=True, check=True, env={"PATH": f"{OWN}:{cluster.folder}/bin"},
    )  # fmt: skip
    assert process.stdout == b"1\n"
    assert (cluster.folder / "script").read_bytes() == b"#!/bin/sh\n"


def test_jobs_that_an_earlier_snakemake_left_are_ended_and_waited_for(cluster):
    cluster.says("sbatch", "3")
    cluster.submit()
    gone = cluster.folder / "gone"
    cluster.says("squeue")
    (cluster.folder / "bin/squeue").write_text(
        f"#!/bin/sh\necho squeue \"$@\" >> '{cluster.folder}/calls'\n[ -e '{gone}' ] || echo '3|RUNNING|rule_index'\n"
    )
    cluster.says("scancel")
    (cluster.folder / "bin/scancel").write_text(
        f"#!/bin/sh\necho scancel \"$@\" >> '{cluster.folder}/calls'\n: > '{gone}'\n"
    )
    process = cluster.asked("python3", str(OWN / "end_orphans.py"))
    assert process.returncode == 0, process.stderr
    assert "3 RUNNING rule_index" in process.stdout
    assert "squeue --noheader --format=%i|%T|%k --name run\nscancel 3\nsqueue" in cluster.calls()
    asked = cluster.calls()
    assert cluster.asked("python3", str(OWN / "end_orphans.py")).stdout == ""  # that Snakemake is done with
    assert cluster.calls() == asked


def test_the_answer_comes_once_a_job_has_ended(cluster):
    """Snakemake asks ever more seldom; whoever is asked waits for news in its place."""
    cluster.says("sbatch", "1")
    cluster.submit()
    cluster.fails_first("squeue", "", "1|COMPLETED|None")
    cluster.watch = "30"
    assert cluster.told() == {"1": "COMPLETED"}
    assert cluster.calls().count("squeue") == 2
    cluster.watch = "2"
    assert cluster.told() == {"1": "COMPLETED"}  # which is no news: it was waited for another
    assert cluster.calls().count("squeue") == 4


def test_an_end_that_snakemake_did_not_ask_for_is_told_again_at_once(cluster):
    """It was submitted after the question: the answer passes it by."""
    cluster.says("squeue", "1|COMPLETED|None")
    cluster.watch = "30"
    for count in (1, 2):
        assert cluster.told() == {"1": "COMPLETED"}
        assert cluster.calls().count("squeue") == count


def test_a_job_that_ended_unseen_is_told_by_accounting(cluster):
    cluster.says("squeue", "1|RUNNING|None\n2|RUNNING|None")
    cluster.told()
    cluster.says("squeue", "2|RUNNING|None")
    cluster.says("sacct", "1|TIMEOUT")
    assert cluster.told() == {"1": "TIMEOUT", "2": "RUNNING"}


def test_a_job_that_everybody_forgot_is_taken_for_ended_after_a_while(cluster):
    """UNKNOWN: the plugin takes it for done, and Snakemake looks whether its files are there."""
    cluster.patience = "60"
    cluster.says("squeue", "1|RUNNING|None")
    cluster.told()
    cluster.says("squeue")
    assert cluster.told() == {"1": "RUNNING"}
    cluster.patience = "0"
    assert cluster.told() == {"1": "UNKNOWN"}


def test_an_end_that_was_seen_stays(cluster):
    cluster.says("squeue", "1|COMPLETED|None")
    cluster.told()
    cluster.says("squeue")
    assert cluster.told() == {"1": "COMPLETED"}


def test_a_full_disk_keeps_no_end_from_snakemake(cluster):
    (cluster.folder / "jobs").write_text("in the way")
    cluster.says("squeue", "1|COMPLETED|None")
    assert cluster.told() == {"1": "COMPLETED"}


def test_a_damaged_memory_is_started_afresh(cluster):
    cluster.says("squeue", "1|RUNNING|None")
    cluster.told()
    (cluster.folder / "jobs/run.json").write_text("{")
    assert cluster.told() == {"1": "RUNNING"}


def test_without_a_queue_to_submit_to_nobody_waits_for_one_that_does_not_answer(cluster):
    cluster.says("sbatch", "3")
    cluster.submit()
    cluster.says("squeue", status=1)
    process = cluster.asked("python3", str(OWN / "end_orphans.py"), "--local")
    assert process.returncode == 0
    assert "SLURM does not answer" in process.stdout
    assert (cluster.folder / "jobs/run.jobs").exists()


def test_any_other_question_goes_to_the_real_program(cluster):
    cluster.says("squeue", "vm")
    assert cluster.asked("squeue", "-h", "-j", "7", "-o", "%N").stdout == "vm\n"
    assert cluster.calls() == "squeue -h -j 7 -o %N\n"


def test_a_program_that_is_not_there_is_named(cluster):
    process = cluster.asked("sacct", "-j", "1")
    assert process.returncode != 0
    assert "sacct: not on this machine" in process.stderr


def test_the_programs_keep_their_names_on_the_path():
    for name in ("squeue", "sbatch"):
        assert os.access(OWN / name, os.X_OK)
    assert (OWN / "sacct").resolve() == OWN / "squeue"
