#!/bin/bash
# {{ name }}: one task on each node, which uses all GPUs there. Submit with: sbatch FILE
#SBATCH --job-name={{ name }}
#SBATCH --nodes={{ nodes }}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={{ gpus }}
#SBATCH --cpus-per-task={{ cpus }}
#SBATCH --mem={{ memory }}
#SBATCH --time={{ time }}
#SBATCH --partition={{ partition }}
#SBATCH --account={{ account }}
#SBATCH --chdir={{ chdir }}
#SBATCH --output={{ name }}-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{{ notice }}

command=(
    {{ command }}
)
export MEDREPORT_JOIN_TIMEOUT={{ join_timeout }}
export JAX_COMPILATION_CACHE_DIR={{ cache }}
{{ setup }}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export ADDRESS="${nodes[0]}:$((20000 + SLURM_JOB_ID % 20000))"
# What each node runs. The hosts are named, because JAX would give each Slurm task a single GPU. Where one command fails,
# srun ends the others half a minute later, so that they can end by themselves, even where one was stuck.
task() {
    command -v "$1" >/dev/null || { echo "$1: not found on $SLURMD_NODENAME; see --setup" >&2; exit 2; }
    echo "$(date +%T) $SLURMD_NODENAME (host $SLURM_PROCID of $SLURM_NTASKS): starting ${1##*/} ${2-}"
    trap : TERM
    env MEDREPORT_HOSTS="$ADDRESS,$SLURM_NTASKS,$SLURM_PROCID" "$@"
    local code=$?
    ((code == 0 || SLURM_NTASKS == 1)) || sleep 30
    exit "$code"
}
srun --cpus-per-task={{ cpus }} --kill-on-bad-exit=1 --wait=0 \
    --container-image={{ container }} \
    --container-mounts={{ mounts }} \
    --container-workdir={{ workdir }} \
    --container-env={{ override }} \
    bash -c "$(declare -f task); task \"\$@\"" bash "${command[@]}"
code=$?

# 75: the state is saved, or a host was lost. 143: SIGTERM came before the command could catch it. 137: a host was killed.
if [[ $code == 75 || $code == 143 || $code == 137 ]] && ((${SLURM_RESTART_COUNT:-0} < {{ restarts }})); then
    echo "exit code $code: requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
