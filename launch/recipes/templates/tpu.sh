#!/bin/bash
# {{ name }}: a Cloud TPU slice as a queued resource, and the command on all its hosts. Run with: bash FILE
command=(
    {{ command }}
)
name={{ name }}
where=(--project={{ project }} --zone={{ zone }})

# What each host runs.
on_host() {
    export MEDREPORT_HOSTS={{ auto }}
    export MEDREPORT_JOIN_TIMEOUT={{ join_timeout }}
    export JAX_COMPILATION_CACHE_DIR={{ cache }}
    cd {{ directory }} || exit
    {{ setup }}
    echo $$ >/tmp/{{ name }}.pid
    exec "$@"
}
quoted() { for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done; }
on_all_hosts() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }
state() {
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null
}
create() {
    gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type={{ accelerator }} --runtime-version={{ runtime }} \
        {{ spot }} \
        --async
}
delete() { gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

# Waits for the slice. A preempted one is requested again.
acquire() {
    while true; do
        case "$(state)" in
            ACTIVE) return ;;
            "") create || exit ;;
            FAILED | SUSPENDED) delete || exit ;;
        esac
        sleep 30
    done
}

stopped=0
trap 'stopped=1; on_all_hosts "kill -TERM \$(cat /tmp/$name.pid)"' INT TERM
remote="$(quoted bash -c "$(declare -f on_host); on_host \"\$@\"" bash "${command[@]}")"
for ((start = 0; start <= {{ restarts }}; start++)); do
    acquire
    on_all_hosts "$remote" &
    job=$!
    wait "$job"
    code=$?
    while kill -0 "$job" 2>/dev/null; do # a signal ended the waiting, not the job
        wait "$job"
        code=$?
    done
    # 75: the state is saved, or a host was lost. 143: SIGTERM came too early to be caught. 137: a host was killed. Where
    # the slice is gone, the code can be any.
    if [[ $stopped == 1 || $code == 0 ]]; then break; fi
    if [[ $code != 75 && $code != 143 && $code != 137 && $(state) == ACTIVE ]]; then break; fi
    echo "exit code $code: starting again" >&2
done
echo "the slice is still there, and billed; delete it with:" \
    "gcloud compute tpus queued-resources delete $name ${where[*]} --force" >&2
exit "$code"
