# Names in place of `rules.<name>.output` here and wherever all runs are an input: for each of those
# Snakemake compares every input with every other, a minute for ten thousand runs. What follows reads
# probes and summaries too, but whenever one of them changes, collect writes anew.
rule collect:
    input:
        study=f"{OUT}/resolved.json",
        summaries=expand(rules.train.output, run=RUNS),
        probes=rules.probe.output,
        stability=f"{OUT}/stability.json",
        corpora=[prepared(corpus) for corpus in STUDY.corpora],
    output:
        study=f"{OUT}/study.json",
        values=f"{OUT}/values.csv",
        runs=f"{OUT}/runs.csv",
        curves=f"{OUT}/curves.csv",
    log:
        f"{OUT}/logs/collect.log",
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
        code=step_digest("evidence.collect"),
    shell:
        "python -m mhclite collect --study {input.study:q} --out {params.folder:q} > {log:q} 2>&1"


rule evidence:
    input:
        collected=rules.collect.output,
        throughput=expand(rules.throughput.output, model=STUDY.models),
        critical=(
            expand(rules.critical.output, run=RUNS) if STUDY.critical_rate else []
        ),
        sinkhorn=rules.sinkhorn.output if STUDY.sinkhorn else [],
        template=workflow.source_path("../../src/mhclite/evidence/report.html.j2"),
    output:
        page=report(
            f"{OUT}/report.html",
            caption="../report/report.rst",
            category="0 The whole study on one page",
            labels={"item": "report"},
        ),
        shown=[in_report(exhibit) for exhibit in EXHIBITS],
        formats=[f"{OUT}/{file}" for exhibit in EXHIBITS for file in exhibit.files[1:]],
        captions=[f"{OUT}/{exhibit.caption_file}" for exhibit in EXHIBITS],
    log:
        f"{OUT}/logs/evidence.log",
    localrule: True
    params:
        folder=subpath(output.page, parent=True),
        code=step_digest("evidence.evidence"),
    shell:
        "python -m mhclite evidence --results {params.folder:q} > {log:q} 2>&1"
