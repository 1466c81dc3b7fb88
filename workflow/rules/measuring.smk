# One process for all runs: importing torch takes longer than most probes. A probe that is still right
# is left alone, so a run that is added costs one. The files themselves are not declared: Snakemake
# deletes what is declared before it runs a job.
rule probe:
    input:
        runs=f"{OUT}/runs.txt",
        summaries=expand(rules.train.output, run=RUNS),
        corpora=[prepared(corpus) for corpus in STUDY.corpora],
    output:
        f"{OUT}/{jobs.PROBES.output}",
    log:
        f"{OUT}/{jobs.PROBES.log}",
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    resources:
        gpu=GPUS,
    params:
        arguments=lambda w, output: quoted(jobs.probes(STUDY)),
        made_of=made_of(jobs.probes(STUDY)),
    shell:
        "python -m mhclite probe {params.arguments} --run @{input.runs:q}"
        " --processes {threads} > {log:q} 2>&1"


SINKHORN = STUDY.sinkhorn and STUDY.sinkhorn.model_dump(mode="json")


rule sinkhorn:
    output:
        f"{OUT}/sinkhorn.json",
    log:
        f"{OUT}/logs/sinkhorn.log",
    threads: STUDY.training.threads
    params:
        settings=lambda w, output: as_json(SINKHORN),
        made_of=digest_of([SINKHORN, step_digest("measure.sinkhorn")]),
    shell:
        "python -m mhclite sinkhorn --settings {params.settings:q} --threads {threads}"
        " --out {output:q} > {log:q} 2>&1"


# Trains, but not the run itself, and on one GPU however many processes the run has.
rule critical:
    input:
        asked,
        corpus=corpus_of_run,
    output:
        f"{OUT}/{jobs.CRITICAL.output}",
    log:
        f"{OUT}/{jobs.CRITICAL.log}",
    threads: lambda w: training_of(w).threads
    resources:
        gpu=GPUS,
    params:
        memory=lambda w, output: KEEP_MEMORY,
        arguments=lambda w, output: quoted(jobs.critical(STUDY, RUNS[w.run])),
        made_of=lambda w: made_of(jobs.critical(STUDY, RUNS[w.run])),
    shell:
        "{params.memory} exec python -m mhclite critical {params.arguments} > {log:q} 2>&1"


# All cores: on one machine nothing else runs beside it.
rule throughput:
    input:
        asked,
    output:
        f"{OUT}/{jobs.THROUGHPUT.output}",
    log:
        f"{OUT}/{jobs.THROUGHPUT.log}",
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    resources:
        gpu=GPUS,
    params:
        memory=lambda w, output: KEEP_MEMORY,
        arguments=lambda w, output: quoted(jobs.throughput(STUDY, w.model)),
        made_of=lambda w: made_of(jobs.throughput(STUDY, w.model)),
    shell:
        "{params.memory} python -m mhclite throughput {params.arguments} --threads {threads} > {log:q} 2>&1"


STABILITY = STUDY.stability.model_dump(mode="json")


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
        settings=lambda w, output: as_json(STABILITY),
        folder=subpath(input.runs, parent=True),
        made_of=digest_of([STABILITY, step_digest("measure.stability")]),
    shell:
        "python -m mhclite stability --settings {params.settings:q} --runs {params.folder:q}/runs"
        " --run @{input.runs:q} --out {output:q} > {log:q} 2>&1"
