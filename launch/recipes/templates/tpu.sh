#!/bin/bash
# {{ name }}: a Cloud TPU slice as a queued resource, and the command on all its hosts. Run with: bash FILE
command=(
    {{ command }}
)
name={{ name }}
where=(--project={{ project }} --zone={{ zone }})
resources=(gcloud compute tpus queued-resources)

# What each host runs. When this script or the connection ends, its input ends, and the command is told to save. gcloud
# starts it again where a connection broke: then it ends what the first start left, and leaves starting to this script.
on_host() {
    local start=$1 child watcher code last pid file=${TMPDIR:-/tmp}/{{ name }}.start
    shift
    export MEDREPORT_HOSTS={{ auto }}
    export MEDREPORT_JOIN_TIMEOUT={{ join_timeout }}
    export JAX_COMPILATION_CACHE_DIR={{ cache }}
    cd {{ directory }} || exit
    {{ setup }}
    command -v "$1" >/dev/null || { echo "$1: not found on $(hostname); see --setup" >&2; exit 2; }
    exec 3<&0 8>>"$file" || exit
    if ! flock -n 8; then
        read -r last pid <"$file"
        kill -TERM "$pid"
        flock -w 600 8
        exit 75
    fi
    read -r last pid <"$file"
    [[ $last == "$start" ]] && exit 75
    echo "$(date +%T) $(hostname): starting ${1##*/} ${2-}"
    "$@" </dev/null 3<&- &
    child=$!
    echo "$start $child" >"$file"
    { read -r -u 3; kill -TERM "$child"; } >/dev/null 2>&1 8>&- &
    watcher=$!
    wait "$child"
    code=$?
    kill "$watcher" 2>/dev/null
    exit "$code"
}
quoted() { for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done; }
on_all_hosts() {
    {{ gcloud }} compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all \
        {{ ssh_flags }} \
        --command="$1"
}
node() { gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>&1; }
pause() { for ((second = 0; second < $1 && !stopped; second++)); do sleep 1; done; } # a signal ends the waiting

# What the queued resource is: MISSING, UNKNOWN where gcloud cannot say, or its state.
state() {
    "${resources[@]}" describe "$name" "${where[@]}" --format='value(state.state)' 2>"$folder/errors" && return
    if grep -q NOT_FOUND "$folder/errors"; then echo MISSING; else echo UNKNOWN; fi
}
create() {
    "${resources[@]}" create "$name" --node-id="$name" "${where[@]}" \
        --accelerator-type={{ accelerator }} --runtime-version={{ runtime }} \
        {{ spot }} \
        --async
}
delete() { "${resources[@]}" delete "$name" "${where[@]}" --force --quiet; }

# Waits for the slice, and says what it waits for. A preempted one is requested again. What gcloud cannot describe from
# the start is waited for briefly: the project may be a wrong one, whereas later only the network can be.
acquire() {
    local now before=
    while [[ $stopped == 0 ]]; do
        now=$(state)
        if [[ $now != "$before" ]]; then
            echo "$(date +%T) $name: $now" >&2
            [[ $now != UNKNOWN ]] || cat "$folder/errors" >&2
        fi
        before=$now
        [[ $now == UNKNOWN ]] || known=1
        case $now in
            UNKNOWN) ((known || ++unknown < 3)) || exit 1 ;;
            ACTIVE) return ;;
            MISSING) create || exit ;;
            SUSPENDED) delete || exit ;;
            FAILED)
                "${resources[@]}" describe "$name" "${where[@]}" --format='value(state)' >&2
                exit 1
                ;;
        esac
        pause 30
    done
}

# Whether the slice is gone. For a while after a preemption it may look as if it were there.
gone() {
    for _ in 1 2 3 4 5 6; do
        [[ $stopped == 0 ]] || return
        [[ $(node) == READY ]] || return 0
        pause 10
    done
    return 1
}
# Tells the command to save; a second signal does not wait for that.
stop() {
    [[ $stopped == 0 || -z $job ]] || kill -TERM -- "-$job" 2>/dev/null
    stopped=1
    exec 4>&-
}
finish() {
    case $(state) in
        MISSING) ;;
        UNKNOWN)
            echo "gcloud cannot tell whether $name exists, which is billed while it is ACTIVE; check with:" \
                "${resources[*]} describe $name ${where[*]}" >&2
            ;;
        *)
            echo "the queued resource is still there, and billed while it is ACTIVE; delete it with:" \
                "${resources[*]} delete $name ${where[*]} --force" >&2
            ;;
    esac
    rm -r "$folder"
}

folder=$(mktemp -d) || exit
mkfifo "$folder/input" || exit
stopped=0
known=0
unknown=0
code=75
last=
job=
trap finish EXIT
trap stop INT TERM HUP
for ((start = 0; start <= {{ restarts }}; start++)); do
    acquire
    [[ $stopped == 0 ]] || break
    remote="$(quoted bash -c "$(declare -f on_host); on_host \"\$@\"" bash "$(date +%s)-$$-$start" "${command[@]}")"
    set -m # in a group of its own, so that Ctrl-C reaches this script only
    on_all_hosts "$remote" <"$folder/input" &
    job=$!
    set +m
    exec 4>"$folder/input" # open as long as this script runs
    [[ $stopped == 0 ]] || exec 4>&-
    wait "$job"
    code=$?
    while kill -0 "$job" 2>/dev/null; do # a signal ended the waiting, not the job
        wait "$job"
        code=$?
    done
    job=
    exec 4>&-
    if [[ $stopped == 1 || $code == 0 ]]; then break; fi
    # 75: the state is saved, or a host was lost. 143: SIGTERM came too early to be caught. 137: a host was killed. 255: a
    # connection was lost; if it is again, ssh does not work. Where the slice is gone, the code can be any.
    case $code in
        75 | 143 | 137) ;;
        *) [[ $code == 255 && $last != 255 ]] || gone || break ;;
    esac
    last=$code
    echo "exit code $code: starting again" >&2
done
exit "$code"
