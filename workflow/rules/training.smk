# `exec`: a signal to the whole job must not end a shell in between, and with it the job, before the
# checkpoint is written. Only summary.json is declared: it is written last, and Snakemake deletes the
# declared outputs of a job that failed, which must not be the checkpoints.
rule train:
    input:
        manifest=manifest_of_run,
    output:
        f"{OUT}/{jobs.TRAIN.output}",
    log:
        f"{OUT}/{jobs.TRAIN.log}",
    threads: lambda w: training_of(w).threads * training_of(w).processes
    resources:
        gpu=lambda w: gpus_of(training_of(w)),
    params:
        arguments=lambda w: quoted(jobs.train(STUDY, RUNS[w.run])),
        code=lambda w: jobs.train(STUDY, RUNS[w.run]).code,
        torchrun=lambda w: " ".join(launcher(training_of(w).processes)),
    shell:
        "exec python -m {params.torchrun} mhclite train {params.arguments} > {log:q} 2>&1"
