# The replication of mHC-lite (arXiv 2601.05732) as a DAG. This file is the table of contents.
#
#   snakemake --cores all                                    the default study, config/config.yaml
#   snakemake --cores all --configfile config/paper.yaml     another study
#
# Machine settings live in profiles/, what is computed in src/mhclite/.
from snakemake.utils import min_version

min_version("9.0")


# Snakemake merges what --configfile names *over* this default: it is for those who name nothing.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"


if STUDY.sweep:

    include: "workflow/rules/sweep.smk"

else:

    include: "workflow/rules/training.smk"
    include: "workflow/rules/measuring.smk"
    include: "workflow/rules/evidence.smk"
    include: "workflow/rules/tracking.smk"


rule all:
    default_target: True
    input:
        (
            rules.rates.output
            if STUDY.sweep
            else [f"{OUT}/report.html", f"{OUT}/mlflow.json"]
        ),


if not STUDY.sweep:
    look_for_what_is_lost(rules.resolve, rules.collect, rules.evidence)


report: "workflow/report/study.rst"
