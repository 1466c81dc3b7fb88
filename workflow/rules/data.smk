rule resolve:
    input:
        # Parsed above already: named so that Snakemake knows it, too.
        (STUDY.learning_rates and STUDY.learning_rates.file) or [],
    output:
        study=f"{OUT}/resolved.json",
        runs=f"{OUT}/runs.txt",
    log:
        f"{OUT}/logs/resolve.log",
    priority: 2  # first: it says what the results are of
    localrule: True
    params:
        made_of=digest_of([RESOLVED, step_digest("study.load")]),
    run:
        write_json(output.study, RESOLVED)
        write_text(output.runs, "\n".join(RUNS) + "\n")


# All cores, and first: every run of the corpus waits for it, and what it finds ends the rest. What is
# declared is a copy of the manifest: Snakemake deletes it when the job fails, even one that no
# cluster took, and before it runs again.
rule prepare:
    input:
        asked,
    output:
        f"results/corpora/{{corpus}}/{jobs.PREPARED}",
    log:
        "results/corpora/logs/{corpus}.log",
    priority: 1
    threads: workflow.resource_settings.cores or 1  # `snakemake --report` has none
    params:
        settings=lambda w, output: as_json(STUDY.corpus_settings(CORPORA[w.corpus])),
        made_of=lambda w: made_of_corpus(CORPORA[w.corpus]),
        folder=subpath(output[0], parent=True),
    shell:
        "python -m mhclite prepare --settings {params.settings:q} --out {params.folder:q}"
        " --processes {threads} > {log:q} 2>&1"
        " && cp {params.folder:q}/manifest.json {output:q}"
