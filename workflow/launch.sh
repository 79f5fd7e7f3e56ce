# launch NODES GPUS GRES MODULE ARGUMENT…: run a stage in as many processes as its job has GPUs.
#
# GRES is the GPU request on some clusters (gpu:4, gpu:a100:4); if it ends in a number, GPUS is ignored. A stage that
# sees fewer than UIC_GPUS stops (uic_core/run/devices.py).
#
# Under SLURM a stage may take longer than a job's time limit. Two minutes before the limit SLURM sends USR1 to every
# process of the job (the rules' slurm_extra). The stage saves its state, writes the file UIC_SAVED and ends. The job is
# requeued under the same number: Snakemake keeps waiting, and no retry is used. TERM, for preemption and scancel, saves
# as well. Without SLURM, or if Snakemake and its jobs share an allocation (UIC_LOCAL), Ctrl-C does.

# Training allocates the same large tensors every step. On a CPU huge pages give 15 to 25 % more images per second. What
# is freed is kept, up to 4 GB, or the kernel would clear it anew for every step: a tenth of the CPU time.
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296}

launch() {
    local nodes=$1 processes=$2 gres=$3
    shift 3
    if [[ $gres =~ :([0-9]+)$ ]]; then
        processes=${BASH_REMATCH[1]}
    fi
    # Without -- torchrun would take a stage's --run for an abbreviation of one of its own options.
    local stage=(-m -- "$@") torchrun=(python -m uic_core.run.torchrun --nproc-per-node "$processes")
    local command=(python -m "$@")
    if ((nodes > 1)); then
        # Inside a job step only the queue knows the hosts. An empty answer is a failure, too.
        local list hosts
        if ! list=$(squeue -h -j "$SLURM_JOB_ID" -o %N) || ! hosts=$(scontrol show hostnames "$list") || [[ ! $hosts ]]
        then
            echo "launch: squeue or scontrol does not name the nodes of job $SLURM_JOB_ID; run Snakemake again" >&2
            return 1
        fi
        command=(
            srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpu-bind none --kill-on-bad-exit=1
            ${gres:+--gres "$gres"} bash -c 'trap "" USR1; exec "$@"' _
            "${torchrun[@]}" --nnodes "$nodes" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"
            --rdzv-endpoint "${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))" "${stage[@]}"
        )
    elif ((processes > 1)); then
        command=("${torchrun[@]}" --standalone "${stage[@]}")
    fi
    if [[ ! ${SLURM_JOB_ID:-} || ${UIC_LOCAL:-} ]]; then
        take_gpus "$processes" "${1##*.}" || return
        "${command[@]}"
        return
    fi
    if [[ ! ${UIC_NO_GPUS:-} ]]; then # set where the GPUs that SLURM counts are stand-ins
        export UIC_GPUS=$processes
    fi

    local child told="" watchdog="" status=0 silent
    export UIC_SAVED=$PWD/.snakemake/saved.$SLURM_JOB_ID # on the file system that all nodes share
    mkdir -p "${UIC_SAVED%/*}"
    rm -f "$UIC_SAVED" # of an earlier attempt
    # torchrun would die of USR1, and its processes with it. They handle USR1 themselves, as a single stage does.
    (
        trap '' USR1
        exec "${command[@]}"
    ) &
    child=$!
    # A stage that is still importing misses USR1, so TERM follows; torchrun passes TERM on.
    trap 'told=USR1; { sleep 30; kill -TERM "$child"; } >/dev/null 2>&1 & watchdog=$!' USR1
    trap 'told=${told:-TERM}; kill -TERM "$child" 2>/dev/null || true' TERM
    # A signal during `wait` ends it, and if the stage ends then, its status is lost. `read` waits through signals.
    exec {silent}<> <(:) # a pipe into which nobody writes
    while kill -0 "$child" 2>/dev/null; do
        read -rt 0.2 -u "$silent" || true
    done
    wait "$child" || status=$?
    if [[ $watchdog ]]; then
        kill "$watchdog" 2>/dev/null || true
    fi
    # On several nodes the signal goes only to srun's step, not to this shell.
    if ((nodes > 1 && status)) && [[ ! $told ]] && nearly_over; then
        told=USR1
    fi
    # A stage that fails after the signal, as on a full disk, or that only repeated what it cannot save, has written no
    # such file: that is a failure.
    if ((status)) && [[ $told == USR1 && -e $UIC_SAVED ]]; then
        rm -f "$UIC_SAVED"
        echo "launch: the time of job $SLURM_JOB_ID is up; it goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 600 # until SLURM ends this attempt
    fi
    rm -f "$UIC_SAVED"
    return "$status"
}

# True if the job has less than four minutes left: SLURM may send its signal a minute early.
nearly_over() {
    [[ $(squeue -h -j "$SLURM_JOB_ID" -o %L) =~ ^([0-3]:[0-9]{2}|INVALID)$ ]]
}

# take_gpus COUNT RULE: wait for COUNT of this machine's GPUs; the stage sees these alone. No GPU here: the CPUs work,
# unless nvidia-smi fails to list GPUs that are there.
#
# A job holds a GPU by a lock on a file, which its stage inherits: the GPU is free when both have ended, however they
# end. CUDA_VISIBLE_DEVICES names the GPUs that may be used, by UUID or by number in nvidia-smi's list; a lock has the
# UUID, so that a GPU has one lock, whatever it is called. UIC_LOCAL is Snakemake's total (--resources gpu=N): if there
# are fewer GPUs, several jobs share each.
take_gpus() {
    local count=$1 rule=$2 folder=${TMPDIR:-/tmp}/uic_gpus.$UID taken="" got=0 shares slot gpu lock queue
    local listed failed=0 uuid number all="" gpus=() named="this machine has" visible
    local -A known=()
    if ((count == 0)); then
        export CUDA_VISIBLE_DEVICES=
        return
    fi
    listed=$(nvidia-smi -L 2>&1) || failed=$?
    while read -r uuid number; do
        all+=$uuid, known[${number:-$uuid}]=$uuid # without a UUID, its number
    done < <(printf '%s\n' "$listed" | sed -nE 's/^GPU ([0-9]+):(.*\(UUID: ([^)]+)\))?.*/\3 \1/p')
    if [[ -v CUDA_VISIBLE_DEVICES ]]; then named="CUDA_VISIBLE_DEVICES names"; fi
    visible=${CUDA_VISIBLE_DEVICES-${all:-all}}
    visible=${visible//[[:space:]]/}
    if [[ $visible == [-N]* ]]; then visible=; fi # -1 and NoDevFiles: none
    if [[ $visible && ! $all ]] && compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
        if ((failed == 127)); then # a container without nvidia-smi: the stage stops if it sees none
            export UIC_GPUS=$count
            return
        fi
        listed=${listed%%$'\n'*}
        echo "launch: nvidia-smi: ${listed:-status $failed}; reboot, or set CUDA_VISIBLE_DEVICES= to train on the CPUs" >&2
        return 2
    fi
    for gpu in ${all:+${visible//,/ }}; do
        gpu=${known[$gpu]:-$gpu}
        if [[ " ${gpus[*]-} " != *" $gpu "* ]]; then gpus+=("$gpu"); fi
    done
    if ((${#gpus[@]} == 0)); then return; fi
    if ((count > ${#gpus[@]})); then
        echo "launch: $rule asks for $count GPUs, and $named ${#gpus[@]}; write set-resources:" \
            "{$rule: {gpu: ${#gpus[@]}}} into the profile" >&2
        return 2
    fi
    if ! mkdir -p "$folder" || ! exec {queue}>"$folder/queue" || ! flock "$queue"; then
        echo "launch: $folder holds the locks of GPUs and cannot be written; name another folder in TMPDIR" >&2
        return 1
    fi
    shares=$(((${UIC_LOCAL:-0} + ${#gpus[@]} - 1) / ${#gpus[@]}))
    # Whoever holds the queue takes all it needs: two jobs that want several GPUs never wait for each other.
    while true; do
        for ((slot = 0; slot < (shares > 1 ? shares : 1); slot++)); do
            for gpu in "${gpus[@]}"; do
                if ((got == count)) || [[ $taken, == *,$gpu,* ]]; then continue; fi
                exec {lock}>"$folder/${gpu//\//_}.$slot" # MIG-GPU-…/1/0
                if flock --nonblock "$lock"; then
                    taken+=,$gpu got=$((got + 1))
                else
                    exec {lock}>&-
                fi
            done
        done
        if ((got == count)); then break; fi
        sleep 1
    done
    exec {queue}>&-
    export CUDA_VISIBLE_DEVICES=${taken#,} UIC_GPUS=$count
}
