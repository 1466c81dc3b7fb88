# One process for all runs: importing torch takes longer than most probes. A probe that is still right
# is left alone, so a run that is added costs one. The files themselves are not declared: Snakemake
# deletes what is declared before it runs a job.
rule probe:
    input:
        runs=f"{OUT}/runs.txt",
        summaries=expand(rules.train.output, run=RUNS),
        manifests=[f"{corpus_folder(corpus)}/manifest.json" for corpus in STUDY.corpora],
    output:
        f"{OUT}/{jobs.PROBES.output}",
    log:
        f"{OUT}/{jobs.PROBES.log}",
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    resources:
        gpu=GPUS,
    params:
        arguments=quoted(jobs.probes(STUDY)),
        code=jobs.probes(STUDY).code,
    shell:
        "python -m mhclite probe {params.arguments} --run @{input.runs:q}"
        " --processes {threads} > {log:q} 2>&1"


rule sinkhorn:
    output:
        f"{OUT}/sinkhorn.json",
    log:
        f"{OUT}/logs/sinkhorn.log",
    threads: STUDY.training.threads
    params:
        settings=as_json(STUDY.sinkhorn and STUDY.sinkhorn.model_dump(mode="json")),
        code=step_digest("measure.sinkhorn"),
    shell:
        "python -m mhclite sinkhorn --settings {params.settings:q} --threads {threads}"
        " --out {output:q} > {log:q} 2>&1"


# Trains, but not the run itself, and on one GPU however many processes the run has.
rule critical:
    input:
        manifest=manifest_of_run,
    output:
        f"{OUT}/{jobs.CRITICAL.output}",
    log:
        f"{OUT}/{jobs.CRITICAL.log}",
    threads: lambda w: training_of(w).threads
    resources:
        gpu=GPUS,
    params:
        arguments=lambda w: quoted(jobs.critical(STUDY, RUNS[w.run])),
        code=lambda w: jobs.critical(STUDY, RUNS[w.run]).code,
    shell:
        "python -m mhclite critical {params.arguments} > {log:q} 2>&1"


# All cores: on one machine nothing else runs beside it.
rule throughput:
    output:
        f"{OUT}/{jobs.THROUGHPUT.output}",
    log:
        f"{OUT}/{jobs.THROUGHPUT.log}",
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    resources:
        gpu=GPUS,
    params:
        arguments=lambda w: quoted(jobs.throughput(STUDY, w.model)),
        code=lambda w: jobs.throughput(STUDY, w.model).code,
    shell:
        "python -m mhclite throughput {params.arguments} --threads {threads} > {log:q} 2>&1"


rule stability:
    input:
        runs=f"{OUT}/runs.txt",
        summaries=expand(rules.train.output, run=RUNS),
    output:
        f"{OUT}/stability.json",
    log:
        f"{OUT}/logs/stability.log",
    localrule: True
    params:
        settings=as_json(STUDY.stability.model_dump(mode="json")),
        folder=subpath(input.runs, parent=True),
        code=step_digest("measure.stability"),
    shell:
        "python -m mhclite stability --settings {params.settings:q} --runs {params.folder:q}/runs"
        " --run @{input.runs:q} --out {output:q} > {log:q} 2>&1"
