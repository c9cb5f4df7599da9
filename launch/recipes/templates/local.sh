#!/bin/bash
# {{ name }}: {{ processes }} processes of this machine work together as hosts do. Run with: bash FILE
cd {{ directory }} || exit
command=(
    {{ command }}
)
export MEDREPORT_JOIN_TIMEOUT={{ join_timeout }}
export JAX_COMPILATION_CACHE_DIR={{ cache }}
PATH={{ path }}:$PATH
{{ setup }}
command -v "${command[0]}" >/dev/null || { echo "${command[0]}: not found; see --setup" >&2; exit 2; }
compgen -G {{ gpus }} >/dev/null || echo "no GPU here: all processes run on the CPU; --cpu-devices N says so" >&2

logs={{ logs }}
mkdir -p "$logs" || exit
stop() { kill -TERM "${pids[@]}" 2>/dev/null; }
pids=()
for number in $(seq 0 {{ last }}); do
    env MEDREPORT_HOSTS="127.0.0.1:{{ port }},{{ processes }},$number" {{ devices }} \
        "${command[@]}" </dev/null >"$logs/$number.log" 2>&1 &
    pids+=($!)
done

{{ supervise }}
