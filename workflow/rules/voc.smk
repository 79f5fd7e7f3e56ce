# Checkpoint -> metrics after fine-tuning through OpenMMLab: Fast R-CNN detection and FCN segmentation on VOC.
#   in   results/runs/<run>/checkpoint.safetensors, results/protocols/<evaluation>.yaml, VOCdevkit
#   out  results/proposals/voc07_<split>.npz, results/metrics/<run>/{detection,segmentation}.json and _samples.npz


rule proposals:
    input:
        published_proposals,
        protocol=by_content("proposals/voc07_{split}.npz", "protocols/proposals.yaml"),
        checked=by_content("proposals/voc07_{split}.npz", "data/voc07.checked"),
    output:
        f"{RESULTS}/proposals/voc07_{{split}}.npz",
    log:
        f"{RESULTS}/logs/data/proposals_{{split}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/data/proposals_{{split}}.tsv"
    wildcard_constraints:
        split="trainval|test",
    conda:
        "../../envs/openmmlab.yaml"
    threads: 16
    resources:
        mem_mb=megabytes(16000),
        runtime=time_of("proposals"),
    params:
        root=voc07_root,
    shell:
        "python -m uic_core.openmmlab.proposals --protocol {input.protocol} --voc {params.root:q}"
        " --checked {input.checked} --split {wildcards.split} --threads {threads} --out {output} > {log} 2>&1"


rule detection:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "detection"),
        protocol=by_content("metrics/{run}/detection.json", "protocols/detection.yaml"),
        train=f"{RESULTS}/proposals/voc07_trainval.npz",
        test=f"{RESULTS}/proposals/voc07_test.npz",
    output:
        metrics=f"{RESULTS}/metrics/{{run}}/detection.json",
        samples=f"{RESULTS}/metrics/{{run}}/detection_samples.npz",
    log:
        f"{RESULTS}/logs/{{run}}/detection.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/detection.tsv"
    conda:
        "../../envs/openmmlab.yaml"
    threads: asked("detection").cpus
    resources:
        mem_mb=memory_of("detection"),
        runtime=time_of("detection"),
        gpu=asked("detection").gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    params:
        root=voc07_root,
        folder=f"{RESULTS}/runs/{{run}}/detection",
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.openmmlab.detection --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --protocol {input.protocol} --voc {params.root:q} --train-proposals {input.train}"
        f" --checked {RESULTS}/data/voc07.checked"
        " --test-proposals {input.test} --out {output.metrics} --samples {output.samples} --work-dir {params.folder}"
        " --threads {threads} > {log} 2>&1"


rule segmentation:
    input:
        checkpoint=lambda wildcards: evaluated(wildcards.run, "segmentation"),
        protocol=by_content("metrics/{run}/segmentation.json", "protocols/segmentation.yaml"),
        dataset=by_content("metrics/{run}/segmentation.json", "data/voc_segmentation.yaml"),
        checked=by_content("metrics/{run}/segmentation.json", "data/voc_segmentation.checked"),
    output:
        metrics=f"{RESULTS}/metrics/{{run}}/segmentation.json",
        samples=f"{RESULTS}/metrics/{{run}}/segmentation_samples.npz",
    log:
        f"{RESULTS}/logs/{{run}}/segmentation.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{run}}/segmentation.tsv"
    conda:
        "../../envs/openmmlab.yaml"
    threads: asked("segmentation").cpus
    resources:
        mem_mb=memory_of("segmentation"),
        runtime=time_of("segmentation"),
        gpu=asked("segmentation").gpus,
        gres="",
        nodes=1,
        slurm_extra=SIGNAL,
    params:
        folder=f"{RESULTS}/runs/{{run}}/segmentation",
    shell:
        "launch {resources.nodes} {resources.gpu} '{resources.gres}' uic_core.openmmlab.segmentation --run {wildcards.run} --checkpoint {input.checkpoint}"
        " --protocol {input.protocol} --dataset {input.dataset} --out {output.metrics} --samples {output.samples}"
        " --checked {input.checked} --work-dir {params.folder} --threads {threads} > {log} 2>&1"
