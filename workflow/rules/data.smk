rule resolve_study:
    output:
        study=f"{OUT}/resolved.json",
        runs=f"{OUT}/runs.txt",
    log:
        f"{OUT}/logs/resolve_study.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        study=as_json(resolved_study()),
        code=code_of("mhclite.study.settings"),
    run:
        write_json(output.study, resolved_study())
        write_text(output.runs, "\n".join(RUNS) + "\n")


# All cores: every run of the corpus waits for it.
rule prepare_data:
    output:
        "results/corpora/{corpus}/manifest.json",
    log:
        "results/corpora/logs/{corpus}.log",
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    params:
        settings=lambda w: as_json(STUDY.corpus_settings(w.corpus.split("-")[0])),
        folder=subpath(output[0], parent=True),
        code=digest_of_modules(PREPARATION),
    shell:
        "python -m mhclite prepare --settings {params.settings:q} --out {params.folder:q}"
        " --lock {LOCK_FILE} --processes {threads} > {log:q} 2>&1"
