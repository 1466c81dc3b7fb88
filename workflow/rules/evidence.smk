# Names in place of `rules.<name>.output` here and wherever all runs are an input: for each of those
# Snakemake compares every input with every other, a minute for ten thousand runs. What follows reads
# probes and summaries too, but whenever one of them changes, collect writes anew.
rule collect:
    input:
        study=f"{OUT}/resolved.json",
        summaries=expand(rules.train.output, run=RUNS),
        probes=expand(rules.probe.output, run=RUNS),
        stability=f"{OUT}/stability.json",
        manifests=[f"{corpus_folder(corpus)}/manifest.json" for corpus in STUDY.corpora],
    output:
        study=f"{OUT}/study.json",
        runs=f"{OUT}/runs.csv",
        curves=f"{OUT}/curves.csv",
    log:
        f"{OUT}/logs/collect.log",
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
        code=step_digest("evidence.collect"),
    shell:
        "python -m mhclite collect --study @{input.study:q} --out {params.folder:q} > {log:q} 2>&1"


rule figures:
    input:
        collected=rules.collect.output,
        throughput=expand(rules.throughput.output, model=STUDY.models),
        sinkhorn=rules.sinkhorn.output if STUDY.sinkhorn else [],
    output:
        [figure(name) for name in FIGURES],
        expand(f"{OUT}/figures/{{name}}.svg", name=FIGURES),
    log:
        f"{OUT}/logs/figures.log",
    localrule: True
    params:
        confidence=STUDY.statistics.confidence,
        folder=subpath(output[0], ancestor=2),
        code=step_digest("evidence.figures"),
    shell:
        "python -m mhclite figures --results {params.folder:q} --confidence {params.confidence}"
        " > {log:q} 2>&1"


rule tables:
    input:
        collected=rules.collect.output,
        throughput=expand(rules.throughput.output, model=STUDY.models),
        sinkhorn=rules.sinkhorn.output if STUDY.sinkhorn else [],
    output:
        [table(name) for name in TABLES],
        expand(
            f"{OUT}/tables/{{name}}.{{format}}",
            name=TABLES,
            format=["csv", "md", "tex"],
        ),
        f"{OUT}/tables/results_seeds.csv",
    log:
        f"{OUT}/logs/tables.log",
    localrule: True
    params:
        confidence=STUDY.statistics.confidence,
        folder=subpath(output[0], ancestor=2),
        code=step_digest("evidence.tables"),
    shell:
        "python -m mhclite tables --results {params.folder:q} --confidence {params.confidence}"
        " > {log:q} 2>&1"


rule report:
    input:
        rules.figures.output,
        rules.tables.output,
        template=workflow.source_path("../../src/mhclite/evidence/report.html.j2"),
    output:
        report(
            f"{OUT}/report.html",
            caption="../report/report.rst",
            category="0 The whole study on one page",
            labels={"item": "report"},
        ),
    log:
        f"{OUT}/logs/report.log",
    localrule: True
    params:
        folder=subpath(output[0], parent=True),
        code=step_digest("evidence.report"),
    shell:
        "python -m mhclite report --results {params.folder:q} > {log:q} 2>&1"
