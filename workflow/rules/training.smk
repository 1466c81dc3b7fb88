# `exec`: a signal to the whole job must not end a shell in between, and with it the job, before the
# checkpoint is written. Only summary.json is declared: it is written last, and Snakemake deletes the
# declared outputs of a job that failed, which must not be the checkpoints.
rule train:
    input:
        manifest=manifest_of_run,
    output:
        f"{OUT}/runs/{{run}}/summary.json",
    log:
        f"{OUT}/logs/train/{{run}}.log",
    conda:
        "../../environment.yml"
    threads: lambda w: training_of(w)["threads"] * training_of(w)["processes"]
    resources:
        gpu=lambda w: gpus_of(training_of(w)),
    params:
        config=lambda w: as_json(RUNS[w.run]),
        corpus=subpath(input.manifest, parent=True),
        folder=run_folder,
        code=lambda w: code_of("mhclite.training.loop", variant_of_run(w)),
        torchrun=lambda w: torchrun(training_of(w)["processes"]),
    shell:
        "exec python -m {params.torchrun} mhclite train --config {params.config:q}"
        " --corpus {params.corpus:q} --out {params.folder:q} > {log:q} 2>&1"
