#!/bin/bash
# {{ name }}: one process on each host, the first of which coordinates. Run with: bash FILE
command=(
    {{ command }}
)
hosts=({{ hosts }})
logs={{ logs }}

# What each host runs. When this script or the connection ends, its input ends, and the command is told to save.
on_host() {
    cd {{ directory }} || exit
    export MEDREPORT_JOIN_TIMEOUT={{ join_timeout }}
    export JAX_COMPILATION_CACHE_DIR={{ cache }}
    {{ setup }}
    command -v "$3" >/dev/null || { echo "$3: not found on $(hostname); see --setup" >&2; exit 2; } # after env NAME=VALUE
    exec 3<&0
    "$@" </dev/null 3<&- &
    local child=$!
    { read -r -u 3; kill -TERM "$child"; } >/dev/null 2>&1 &
    local watcher=$!
    wait "$child"
    local code=$?
    kill "$watcher" 2>/dev/null
    exit "$code"
}
quoted() { for word; do printf "'%s' " "${word//\'/\'\\\'\'}"; done; } # for any shell, unlike printf %q

mkdir -p "$logs" || exit
exec 4< <(exec tail -f /dev/null --pid=$$) # an input that stays open as long as this script runs
open=$!
stop() { kill "$open" 2>/dev/null; }
pids=()
for number in "${!hosts[@]}"; do
    hosts_of="MEDREPORT_HOSTS={{ address }}:{{ port }},${#hosts[@]},$number"
    remote="$(quoted bash -c "$(declare -f on_host); on_host \"\$@\"" bash env "$hosts_of" "${command[@]}")"
    ssh -o BatchMode=yes "${hosts[number]}" "$remote" <&4 >"$logs/$number.log" 2>&1 &
    pids+=($!)
done

{{ supervise }}
