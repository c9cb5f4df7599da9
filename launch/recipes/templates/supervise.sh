# Waits for all. Where one ends with an error, the others usually end by themselves; those that do not are stopped, and
# those that are stuck are killed.
trap stop INT TERM
code=0
while ((${#pids[@]})); do
    sleep 0.2
    for number in "${!pids[@]}"; do
        kill -0 "${pids[number]}" 2>/dev/null && continue
        wait "${pids[number]}"
        status=$?
        unset "pids[number]"
        if ((status != 0 && code == 0)); then
            code=$status
            echo "host $number ended with exit code $status; see $logs/$number.log" >&2
            patience=$((SECONDS + 15))
        fi
    done
    if ((code != 0 && SECONDS > patience)); then
        stop
    fi
    if ((code != 0 && SECONDS > patience + 60)); then
        kill -KILL "${pids[@]}" 2>/dev/null
    fi
done
exit "$code"