rule probe_mixing:
    input:
        summary=f"{OUT}/runs/{{run}}/summary.json",
        manifest=manifest_of_run,
    output:
        f"{OUT}/probes/{{run}}.json",
    log:
        f"{OUT}/logs/probe_mixing/{{run}}.log",
    conda:
        "../../environment.yml"
    threads: STUDY.training.threads
    resources:
        gpu=GPUS,
    params:
        folder=run_folder,
        corpus=subpath(input.manifest, parent=True),
        sequences=STUDY.probe.sequences,
        code=lambda w: code_of("mhclite.measure.probe", variant_of_run(w)),
    shell:
        "python -m mhclite probe --run {params.folder:q} --corpus {params.corpus:q}"
        " --sequences {params.sequences} --threads {threads} --out {output:q} > {log:q} 2>&1"


rule measure_sinkhorn:
    output:
        f"{OUT}/sinkhorn.json",
    log:
        f"{OUT}/logs/measure_sinkhorn.log",
    conda:
        "../../environment.yml"
    threads: STUDY.training.threads
    params:
        settings=as_json(STUDY.sinkhorn and STUDY.sinkhorn.model_dump(mode="json")),
        code=code_of("mhclite.measure.sinkhorn"),
    shell:
        "python -m mhclite sinkhorn --settings {params.settings:q} --threads {threads}"
        " --out {output:q} > {log:q} 2>&1"


# All cores: on one machine nothing else runs beside it.
rule measure_throughput:
    output:
        f"{OUT}/throughput/{{model}}.json",
    log:
        f"{OUT}/logs/measure_throughput/{{model}}.log",
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    resources:
        gpu=GPUS,
    params:
        config=lambda w: as_json(STUDY.throughput_config(w.model)),
        code=code_of("mhclite.measure.throughput", "residual", *STUDY.variants),
    shell:
        "python -m mhclite throughput --config {params.config:q} --threads {threads}"
        " --out {output:q} > {log:q} 2>&1"


rule detect_instability:
    input:
        runs=f"{OUT}/runs.txt",
        summaries=expand(rules.train.output, run=RUNS),
    output:
        f"{OUT}/stability.json",
    log:
        f"{OUT}/logs/detect_instability.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        settings=as_json(STUDY.stability.model_dump(mode="json")),
        folder=subpath(input.runs, parent=True),
        code=code_of("mhclite.measure.stability"),
    shell:
        "python -m mhclite stability --settings {params.settings:q} --runs {params.folder:q}/runs"
        " --run @{input.runs:q} --out {output:q} > {log:q} 2>&1"
