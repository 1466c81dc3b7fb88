rule resolve:
    output:
        study=f"{OUT}/resolved.json",
        runs=f"{OUT}/runs.txt",
    log:
        f"{OUT}/logs/resolve.log",
    localrule: True
    params:
        study=as_json(to_json(resolve(STUDY, CLAIMS))),
        code=step_digest("study.resolved"),
    run:
        write_json(output.study, to_json(resolve(STUDY, CLAIMS)))
        write_text(output.runs, "\n".join(RUNS) + "\n")


# All cores: every run of the corpus waits for it.
rule prepare:
    output:
        "results/corpora/{corpus}/manifest.json",
    log:
        "results/corpora/logs/{corpus}.log",
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    params:
        settings=lambda w: as_json(STUDY.corpus_settings(w.corpus.split("-")[0])),
        # Not as input: Snakemake reads braces in a path as wildcards.
        files=lambda w: as_json(text_of(w.corpus.split("-")[0])),
        folder=subpath(output[0], parent=True),
        lock=str(LOCK_FILE),
        code=digest_of_modules(PREPARATION),
    shell:
        "python -m mhclite prepare --settings {params.settings:q} --out {params.folder:q}"
        " --lock {params.lock:q} --processes {threads} > {log:q} 2>&1"
