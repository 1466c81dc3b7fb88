# The rules of a study with a `sweep`, which has no others but `prepare`. Trials are run folders that are
# not declared: Snakemake deletes the declared outputs of a job that failed. `exec`: as in `train`.
rule sweep:
    input:
        asked,
        corpus=lambda w: prepared(ARMS[w.arm][0].corpus),
    output:
        f"{OUT}/{jobs.SWEEP.output}",
    log:
        f"{OUT}/{jobs.SWEEP.log}",
    threads: lambda w: ARMS[w.arm][0].training.threads
    resources:
        gpu=GPUS,
    params:
        arguments=lambda w, output: quoted(jobs.sweep(STUDY, w.arm, ARMS[w.arm])),
        made_of=lambda w: made_of(jobs.sweep(STUDY, w.arm, ARMS[w.arm])),
    shell:
        "exec python -m mhclite sweep {params.arguments} > {log:q} 2>&1"


rule rates:
    input:
        expand(rules.sweep.output, arm=ARMS),
    output:
        f"{OUT}/{jobs.RATES}",
    log:
        f"{OUT}/logs/rates.log",
    localrule: True
    params:
        study=STUDY.name,
        code=step_digest("evidence.learning_rates"),
    shell:
        "python -m mhclite rates --study {params.study} --sweep {input:q} --out {output:q}"
        " > {log:q} 2>&1"
