# `exec`: a signal to the whole job must not end a shell in between, and with it the job, before the
# checkpoint is written. Only summary.json is declared: it is written last, and Snakemake deletes the
# declared outputs of a job that failed, which must not be the checkpoints.
rule train:
    input:
        asked,
        corpus=corpus_of_run,
    output:
        f"{OUT}/{jobs.TRAIN.output}",
    log:
        f"{OUT}/{jobs.TRAIN.log}",
    threads: cpus_of
    resources:
        # On SLURM. Of each node, but `tasks` and `gpu`, which the plugin takes as numbers in all.
        cpus_per_task=cpus_of,  # `threads` is at most the profile's `cores`
        mem_mb=lambda w: 8000 + 8000 * share_of(w),
        nodes=nodes_of,  # said for one too: SLURM may spread a request of several GPUs
        gpu=lambda w: gpus_of(w) if nodes_of(w) == 1 else 0,
        gres=over_nodes(lambda w: f"gpu:{gpus_of(w)}" if gpus_of(w) else None),
        # The plugin leaves srun to jobs with `mpi`; torchrun is one task on each node.
        mpi=over_nodes(lambda w: "srun"),
        tasks=over_nodes(nodes_of),
        tasks_per_gpu=over_nodes(lambda w: 0),  # or it takes `tasks` for that
    params:
        arguments=lambda w, output: quoted(jobs.train(STUDY, RUNS[w.run])),
        made_of=lambda w: made_of(jobs.train(STUDY, RUNS[w.run])),
        torchrun=torchrun_of,
        memory=lambda w, output: KEEP_MEMORY,
    shell:
        "{params.memory} exec python -m {params.torchrun} mhclite train {params.arguments} > {log:q} 2>&1"
