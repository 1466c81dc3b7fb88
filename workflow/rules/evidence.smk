rule collect:
    input:
        study=rules.resolve_study.output.study,
        summaries=expand(rules.train.output, run=RUNS),
        probes=expand(rules.probe_mixing.output, run=RUNS),
        stability=rules.detect_instability.output,
        manifests=[f"{corpus_folder(corpus)}/manifest.json" for corpus in STUDY.corpora],
    output:
        study=f"{OUT}/study.json",
        runs=f"{OUT}/runs.csv",
        curves=f"{OUT}/curves.csv",
    log:
        f"{OUT}/logs/collect.log",
    conda:
        "../../environment.yml"
    params:
        folder=subpath(output[0], parent=True),
        code=code_of("mhclite.evidence.collect"),
    localrule: True
    shell:
        "python -m mhclite collect --study @{input.study:q} --out {params.folder:q} > {log:q} 2>&1"


def figure(name, heading):
    """A figure with its caption, under a heading of the report."""
    return report(
        f"{OUT}/figures/{name}.png",
        caption=f"../report/{name}.rst",
        category=heading,
        labels={"figure": name.replace("_", " ")},
    )


def table(name, heading):
    """A table with its caption, under a heading of the report."""
    return report(
        f"{OUT}/tables/{name}.html",
        caption=f"../report/{name}.rst",
        category=heading,
        labels={"figure": f"table: {name}"},
    )


rule figures:
    input:
        collected=rules.collect.output,
        probes=expand(rules.probe_mixing.output, run=RUNS),
        throughput=expand(rules.measure_throughput.output, model=STUDY.models),
    output:
        figure("validation_loss", "1 Loss"),
        figure("loss_vs_depth", "1 Loss"),
        figure("gradient_norm", "2 Stability"),
        figure("composite_gain", "2 Stability"),
        figure("row_sums", "3 Mixing matrices"),
        figure("sinkhorn_inputs", "3 Mixing matrices"),
        figure("identity_distance", "3 Mixing matrices"),
        figure("throughput", "4 Cost"),
        expand(
            f"{OUT}/figures/{{name}}.svg",
            name=[
                "validation_loss",
                "loss_vs_depth",
                "gradient_norm",
                "composite_gain",
                "row_sums",
                "sinkhorn_inputs",
                "identity_distance",
                "throughput",
            ],
        ),
    log:
        f"{OUT}/logs/figures.log",
    conda:
        "../../environment.yml"
    params:
        confidence=STUDY.statistics.confidence,
        folder=subpath(output[0], ancestor=2),
        code=code_of("mhclite.evidence.figures"),
    localrule: True
    shell:
        "python -m mhclite figures --results {params.folder:q} --confidence {params.confidence}"
        " > {log:q} 2>&1"


rule tables:
    input:
        collected=rules.collect.output,
        probes=expand(rules.probe_mixing.output, run=RUNS),
        throughput=expand(rules.measure_throughput.output, model=STUDY.models),
    output:
        table("results", "1 Loss"),
        table("stability", "2 Stability"),
        table("parameters", "4 Cost"),
        expand(
            f"{OUT}/tables/{{name}}.{{format}}",
            name=["results", "stability", "parameters"],
            format=["csv", "md", "tex"],
        ),
    log:
        f"{OUT}/logs/tables.log",
    conda:
        "../../environment.yml"
    params:
        confidence=STUDY.statistics.confidence,
        folder=subpath(output[0], ancestor=2),
        code=code_of("mhclite.evidence.tables"),
    localrule: True
    shell:
        "python -m mhclite tables --results {params.folder:q} --confidence {params.confidence}"
        " > {log:q} 2>&1"


rule report:
    input:
        rules.figures.output,
        rules.tables.output,
    output:
        report(
            f"{OUT}/report.html",
            caption="../report/report.rst",
            category="0 The whole study on one page",
            labels={"figure": "report"},
        ),
    log:
        f"{OUT}/logs/report.log",
    conda:
        "../../environment.yml"
    params:
        folder=subpath(output[0], parent=True),
        code=code_of("mhclite.evidence.report"),
    localrule: True
    shell:
        "python -m mhclite report --results {params.folder:q} > {log:q} 2>&1"
