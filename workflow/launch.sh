# launch NODES GPUS GRES MODULE ARGUMENT…: run a stage in as many processes as its job has GPUs.
#
# GRES is the GPU request on some clusters (gpu:4, gpu:a100:4); if it ends in a number, GPUS is ignored.
#
# Under SLURM a stage may take longer than a job's time limit. Two minutes before the limit SLURM sends USR1 to every
# process of the job (the rules' slurm_extra). The stage saves its state and ends with status 75. The job is requeued
# under the same number: Snakemake keeps waiting, and no retry is used. TERM, for preemption and scancel, saves as well.

launch() {
    local nodes=$1 processes=$2 gres=$3
    shift 3
    if [[ $gres =~ :([0-9]+)$ ]]; then
        processes=${BASH_REMATCH[1]}
    fi
    # Without -- torchrun would take a stage's --run for an abbreviation of one of its own options.
    local stage=(-m -- "$@") torchrun=(python -m torch.distributed.run --nproc-per-node "$processes")
    local command=(python -m "$@") saved=75
    if ((nodes > 1)); then
        # Inside a job step only the queue knows the hosts.
        local hosts
        hosts=$(scontrol show hostnames "$(squeue -h -j "$SLURM_JOB_ID" -o %N)")
        command=(
            srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpu-bind none --kill-on-bad-exit=1
            ${gres:+--gres "$gres"} bash -c 'trap "" USR1; exec "$@"' _
            "${torchrun[@]}" --nnodes "$nodes" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID"
            --rdzv-endpoint "${hosts%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))" "${stage[@]}"
        )
    elif ((processes > 1)); then
        command=("${torchrun[@]}" --standalone "${stage[@]}")
    fi
    if ((nodes > 1 || processes > 1)); then
        saved=1 # torchrun exits with 1 whatever the failure status of its processes
    fi
    if [[ ! ${SLURM_JOB_ID:-} ]]; then
        "${command[@]}"
        return
    fi

    local child told="" watchdog="" status
    # A stage that is still importing misses USR1, so TERM follows; torchrun passes TERM on.
    trap 'told=USR1; { sleep 30; kill -TERM "$child"; } >/dev/null 2>&1 & watchdog=$!' USR1
    trap 'told=${told:-TERM}; kill -TERM "$child" 2>/dev/null || true' TERM
    # torchrun would die of USR1, and its processes with it. They handle USR1 themselves, as a single stage does.
    (
        trap '' USR1
        exec "${command[@]}"
    ) &
    child=$!
    until
        wait "$child"
        status=$?
        ! kill -0 "$child" 2>/dev/null
    do :; done
    if [[ $watchdog ]]; then
        kill "$watchdog" 2>/dev/null || true
    fi
    # On several nodes the signal goes only to srun's step, not to this shell; srun may return any process's status.
    if ((nodes > 1 && status)) && [[ ! $told ]] && nearly_over; then
        told=USR1
        saved=$status
    fi
    if [[ $told == USR1 && $status == "$saved" ]]; then
        echo "launch: the time of job $SLURM_JOB_ID is up; it goes back into the queue"
        scontrol requeue "$SLURM_JOB_ID" && sleep 600 # until SLURM ends this attempt
    fi
    return "$status"
}

# True if the job has less than four minutes left: SLURM may send its signal a minute early.
nearly_over() {
    [[ $(squeue -h -j "$SLURM_JOB_ID" -o %L) =~ ^([0-3]:[0-9]{2}|INVALID)$ ]]
}
