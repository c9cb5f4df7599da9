"""`medreport launch` refuses a run directory that would be lost with its container or machine at every restart."""

import pytest

from common.errors import UserError
from launch.cli import dispatch

GKE = "gke --image i --topology v6e:4x4"
SKY = "skypilot --accelerators H100:8"
TPU = "tpu --runtime r --project p --zone z --accelerator"
SLURM = "slurm --gpus 8 --time 60 --container i"
MOUNT = ["--setup", "mountpoint -q /mnt || sudo mount 10.0.0.2:/share /mnt"]


def launched(platform: str, where: str, *extra: str, command: str = "retsta train --preset demo") -> int:
    return dispatch(["launch", *platform.split(), *extra, "--dry-run", "--", *command.split(), *where.split()])


@pytest.mark.parametrize(
    ("platform", "where", "line"),
    [
        (GKE, "--run-dir /runs/x", "^--run-dir /runs/x: would be lost .*; give --claim NAME, or .* gs://BUCKET/x$"),
        (GKE, "--run-dir runs/x", "^--run-dir runs/x: would be lost with its container, at every restart"),
        (GKE, "--run-dir=runs/x", "^--run-dir runs/x: would be lost"),
        (f"{GKE} --claim c", "--run-dir /data/x", "^--run-dir /data/x: is not below --mount /runs, .* as /runs/x$"),
        (f"{GKE} --claim c", "--run-dir /runs/../data/x", "is not below --mount /runs"),
        (f"{GKE} --claim c", "--run-dir /runs2/x", "is not below --mount /runs"),
        (f"{GKE} --claim c --mount /data", "--run-dir /runs/x", "is not below --mount /data"),
        (f"{GKE} --claim c --mount /data", "--run-dir x", "is not below --mount /data"),
        ("gke --image i --topology h100:8", "--run-dir /runs/x", "give --claim NAME"),
        (f"{SKY} --infra k8s", "--run-dir /shared/x", "^--run-dir /shared/x: would be lost .*; give --volume NAME"),
        (f"{SKY} --infra gcp --nodes 2", "--run-dir runs/x", "would be lost with its node, at every restart"),
        (f"{SKY} --infra gcp --setup cd", "--run-dir runs/x", "would be lost with its node"),
        (f"{SKY} --infra k8s --volume v", "--run-dir runs/x", "is not below --mount /shared"),
        (f"{SKY} --infra k8s --volume v --mount /d", "--run-dir /shared/x", "is not below --mount /d"),
        (f"{TPU} v6e-16", "--run-dir runs/x", "would be lost with its host, .* a disk that --setup mounts"),
        (f"{TPU} v6e-8 --spot", "--run-dir /home/me/x", "would be lost with its slice"),
        (SLURM, "--run-dir runs/x", "^--run-dir runs/x: would be lost with its container, .* --mounts /shared/runs"),
        (f"{SLURM} --mounts /data:/data", "--run-dir /runs/x", "would be lost with its container"),
        (
            f"{SKY} --infra k8s --volume v --setup cd",
            "--run-dir /tmp/x",
            "^--run-dir /tmp/x: is on a machine's own",
        ),
        (f"{SKY} --infra gcp --setup mount", "--run-dir /dev/shm/x", "would be lost with its node"),
        (f"{TPU} v6e-8 --spot --setup mount", "--run-dir /var/tmp/../tmp/x", "own disk, .* lost with its slice"),
        (f"{GKE} --claim c --mount /tmp", "--run-dir /tmp/x", "own disk, .* lost with its container"),
        (GKE, "--run-dir az://a/b", "^az://a/b: az:// is not supported; expected gs://BUCKET/KEY or s3://"),
        (GKE, "--run-dir GS://bucket/b", "^GS://bucket/b: GS:// is not supported"),
        (GKE, "--run-dir=gs://", "^gs://: expected the address of something in a bucket"),
    ],
)
def test_what_would_be_lost_is_refused(platform, where, line):
    with pytest.raises(UserError, match=line):
        launched(platform, where)


@pytest.mark.parametrize(
    ("platform", "where"),
    [
        (GKE, "--run-dir gs://eyes/x"),
        (f"{GKE} --claim c", "--run-dir /runs/x"),
        (f"{GKE} --claim c", "--run-dir runs/x"),
        (f"{GKE} --claim c --mount /data", "--run-dir /data/x"),
        (f"{SKY} --infra gcp", "--run-dir s3://eyes/x"),
        (f"{SKY} --infra k8s --volume v", "--run-dir /shared/x"),
        (f"{SKY} --infra k8s --volume v --directory /shared", "--run-dir x"),
        (f"{TPU} v6e-8", "--run-dir runs/x"),
        (f"{TPU} v6e-16 --spot", "--run-dir gs://eyes/x"),
        (f"{SLURM} --mounts /shared/runs:/runs", "--run-dir x"),
        (f"{SLURM} --mounts /runs:ro,/data:/data:rw", "--run-dir /data/x"),
        (f"{SLURM} --directory /scratch", "--run-dir x"),
        ("slurm --gpus 8 --time 60", "--run-dir runs/x"),
        ("ssh --hosts a,b", "--run-dir runs/x"),
    ],
)
def test_what_is_kept_is_accepted(platform, where):
    assert launched(platform, where) == 0


@pytest.mark.parametrize("platform", [f"{SKY} --nodes 2", f"{TPU} v6e-16 --spot"])
def test_a_disk_may_be_mounted_by_the_setup(platform):
    assert launched(platform, "--run-dir /mnt/x", *MOUNT) == 0
    with pytest.raises(UserError, match="would be lost"):
        launched(platform, "--run-dir /mnt/x")


def test_what_another_option_writes_is_kept_too_and_what_is_only_read_is_not_looked_at():
    standardize = "retsta standardize --run-dir /models/x a.jsonl"
    assert launched(GKE, "--output gs://eyes/rows.jsonl", command=standardize) == 0
    with pytest.raises(UserError, match=r"^--output rows\.jsonl: would be lost"):
        launched(GKE, "--output rows.jsonl", command=standardize)
    assert launched(GKE, "--run-dir x", command="record") == 0


@pytest.mark.parametrize("several", [f"{SKY} --nodes 2", GKE, "slurm --gpus 8 --time 60 --nodes 2", "ssh --hosts a,b"])
def test_checkpoints_of_several_hosts_are_not_written_to_s3(several):
    with pytest.raises(UserError, match=r"^--run-dir s3://eyes/x: several hosts cannot share checkpoints in s3://"):
        launched(several, "--run-dir s3://eyes/x")
    with pytest.raises(UserError, match="several hosts cannot share checkpoints"):
        launched(several, "", command="unicross evaluate --run-dir s3://eyes/x")
    assert launched(several, "--run-dir gs://eyes/x") == 0
    rows = "retsta standardize --run-dir gs://eyes/x s3://eyes/a.jsonl --output s3://eyes/b.jsonl"
    assert launched(several, "", command=rows) == 0


@pytest.mark.parametrize(
    ("platform", "where", "warned"),
    [
        (
            "slurm --gpus 8 --time 60",
            "--run-dir /tmp/x",
            "/tmp is usually each machine's own; a requeued job",
        ),
        (
            "ssh --hosts a,b",
            "--run-dir /dev/shm/x",
            "/dev/shm is usually each machine's own; give a directory",
        ),
        ("slurm --gpus 8 --time 60", "--run-dir /tmpx", ""),
        ("ssh --hosts a", "--run-dir /tmp/x", ""),
    ],
)
def test_what_may_be_lost_is_warned_of(platform, where, warned, capsys):
    assert launched(platform, where) == 0
    said = capsys.readouterr().err
    assert warned in said
    assert bool(warned) == ("warning: --run-dir" in said)
