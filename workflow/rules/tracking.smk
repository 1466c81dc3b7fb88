rule track:
    input:
        rules.evidence.output.page,
    output:
        f"{OUT}/mlflow.json",
    log:
        f"{OUT}/logs/track.log",
    localrule: True
    params:
        uri=(
            ""
            if STUDY.tracking.uri is None
            else f"--uri {shlex.quote(STUDY.tracking.uri)}"
        ),
        folder=subpath(output[0], parent=True),
        code=step_digest("tracking.track"),
    shell:
        "python -m mhclite track --results {params.folder:q} {params.uri} --receipt {output:q} > {log:q} 2>&1"
