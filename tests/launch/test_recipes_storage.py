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


@pytest.mark.parametrize(
    "platform",
    [
        "slurm --gpus 8 --time 60", "slurm --gpus 8 --time 60 --nodes 2", SLURM, "ssh --hosts a,b",
        f"{SKY} --infra k8s --volume runs", f"{TPU} v6e-16", f"{TPU} v6e-8 --spot",
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["/tmp", "/var/tmp", "/dev/shm", "/run", "/shared/../tmp"])
def test_what_each_machine_has_for_itself_is_refused_even_where_the_setup_mounts_something(platform, folder):
    setup = [] if platform == SLURM else MOUNT
    with pytest.raises(UserError, match=rf"^--run-dir {folder}/eyes: /\S+ is of one machine only, .*; give a path on"):
        launched(platform, f"--run-dir {folder}/eyes", *setup)
    with pytest.raises(UserError, match=r"^--run-dir eyes: /\S+ is of one machine only"):
        launched(platform, "--run-dir eyes", *setup, "--directory", folder)


@pytest.mark.parametrize(
    ("platform", "where"),
    [
        ("ssh --hosts a", "--run-dir /tmp/eyes"),
        ("local --processes 2 --cpu-devices 1", "--run-dir /tmp/eyes"),
        ("slurm --gpus 8 --time 60", "--run-dir /tmpfiles/eyes"),
        (f"{SLURM} --mounts /shared/tmp:/tmp", "--run-dir /tmp/eyes"),
        (f"{SKY} --infra k8s --volume v --mount /tmp/v", "--run-dir /tmp/v/eyes"),
    ],
)
def test_a_folder_of_one_machine_will_do_where_there_is_one_or_something_is_mounted_on_it(platform, where):
    assert launched(platform, where) == 0


def test_entering_a_directory_matters_to_relative_paths_only():
    enters = ["--setup", "cd /shared/code"]
    assert launched(f"{SKY} --infra k8s --volume v", "--run-dir runs/x", *enters) == 0
    with pytest.raises(UserError, match="is not below --mount /shared"):
        launched(f"{SKY} --infra k8s --volume v", "--run-dir /opt/x", *enters)


@pytest.mark.parametrize("platform", [GKE, f"{GKE} --claim c", f"{SKY} --infra gcp", "slurm --gpus 8 --time 60"])
@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("gs://", "^gs://: expected the address of something in a bucket, gs://BUCKET/KEY"),
        ("gs://eyes", "^gs://eyes: expected the address of something in a bucket"),
        ("az://a/b", "^az://a/b: az:// is not supported; expected gs://BUCKET/KEY or s3://BUCKET/KEY$"),
        ("GS://bbb/r", "^GS://bbb/r: GS:// is not supported"),
        ("gs:/eyes/x", "expected two slashes"),
        ("gs://eyes/../x", "has an empty, hidden or relative part"),
    ],
)
def test_an_address_that_the_command_would_refuse_is_refused(platform, address, line):
    with pytest.raises(UserError, match=line):
        launched(platform, f"--run-dir {address}")
    with pytest.raises(UserError, match=line):
        launched(platform, f"--run-dir gs://eyes/x --model.base={address}")


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
