# One rule executes a chapter for its page (seed 0), one a chapter and seed for the reference, one builds the book.
#
#   snakemake --cores all                                          the book, profile laptop
#   snakemake --cores all records                                  the reference of profile laptop, book/results/laptop: what is missing or stale
#   snakemake --cores all --config profile=gpu --resources gpu=4   on a machine with 4 GPUs, one job a GPU
#   snakemake --executor slurm --jobs 20 --config profile=gpu threads=8
#                                  on a cluster (pip install snakemake-executor-plugin-slurm); each chapter asks for one gpu
#   snakemake --cores all --config profile=paper data_root=/your/data
from glob import glob
from pathlib import Path
import os
import shlex
import sys

import yaml

PROFILE = config.get("profile", "laptop")
OUT = config.get("out", "_build")
DATA_ROOT = config.get("data_root") or ""
if DATA_ROOT and PROFILE != "paper":
    raise WorkflowError(f"data_root: a whole book on your own data is profile paper, found {PROFILE!r}; for one chapter: make run")
THREADS = int(config.get("threads", os.cpu_count()))  # of a job that may use the whole machine
BOOK = Path(workflow.basedir) / "book"
CHAPTERS = sorted(Path(p).stem for p in glob(str(BOOK / "chapters" / "*.ipynb")))
LAST = "14_claims"  # reads everybody's records
SPOKEN = ("08_composed", "09_domains", "10_prompts")  # ask a small CLIP
DRIVEN = "10_prompts"  # through the city, whose pictures all its seeds share
PLACED = ("11_geolocation", "12_density")  # places on Earth
MATCHED = "03_crossview"  # asks the city for pairs, off centre and at other moments too
STARTED = ("04_pretraining", "05_distribution")  # start from stage 1
PROBED = "01_worlds"  # asks every world
WORLDS = {  # its own settings of each world
    "city": lambda p: {**{k: tuple(v) if isinstance(v, list) else v for k, v in p["in_city"].items()}, "drive": p["driven"]},
    "earth": lambda p: {**p["on_earth"], "extent_km": p["extents_km"][-1]},
    "extents": lambda p: {**p["on_earth"], "extents_km": p["extents_km"]},
    "patterns": lambda p: p["of_patterns"],
}
AFTER = {"12_density": ["11_geolocation"], "05_distribution": ["04_pretraining"], LAST: [c for c in CHAPTERS if c != LAST]}  # whose records a page shows, and whose rendered worlds it finds stored
TIMED = ("02_search", "13_speed")  # measure the whole machine: alone on it
PYTHON = sys.executable
JUPYTER_BOOK = Path(sys.executable).with_name("jupyter-book")
PACKAGE = [p for p in glob("georeps/**/*.py", recursive=True)]
PARAMETERS = {c: yaml.safe_load((BOOK / "params" / f"{c}.yml").read_text()) for c in CHAPTERS}
for chapter, sets in PARAMETERS.items():
    if PROFILE not in sets:
        raise WorkflowError(f"profile: book/params/{chapter}.yml has {', '.join(sets)}; found {PROFILE!r}")


def seeds(chapter, profile):
    return range((PARAMETERS[chapter][profile] or {}).get("seeds", 1))


def searching(chapter, profile):
    return (PARAMETERS[chapter][profile] or {}).get("searching", len(seeds(chapter, profile)))


def notebook(chapter, profile=PROFILE):
    return f"book/runs/{profile}/{chapter}-s0.ipynb"


def recorded(chapter, seed, profile=PROFILE):
    return f"book/runs/reference/{profile}/{chapter}-s{seed}.done"


for chapter in CHAPTERS:  # what was made once and is gone is missing
    for seed in seeds(chapter, PROFILE):
        if not all(Path(f"book/results/{PROFILE}/{chapter}-s{seed}.{kind}").is_file() for kind in ("json", "npz")):
            Path(recorded(chapter, seed)).unlink(missing_ok=True)


def prepared(w):
    """What all runs of a chapter share, stored by content, and what else its code reads."""
    shared = {PROBED: [f"features-{world}" for world in WORLDS], DRIVEN: ["drives"], MATCHED: ["features-pairs"], **{c: ["features-pairs", "starts"] for c in STARTED}, **{c: ["clip"] for c in SPOKEN}, **{c: ["features-located"] for c in PLACED}} | {DRIVEN: ["drives", "clip"]}
    small = {**{f"features-{world}": ("smoke",) for world in WORLDS}, "features-located": ("smoke", "paper"), "features-pairs": ("smoke", "paper"), "starts": ("smoke", "paper"), "drives": ("smoke", "paper"), "clip": ("paper",)}
    done = [f"book/runs/{w.profile}/{name}.done" for name in shared.get(w.chapter, []) if w.profile not in small[name]]
    ledger = ["book/claims.yml", *glob("book/reference/*.csv")] if w.chapter not in ("01_worlds", "02_search") else []
    return [*done, f"book/chapters/{w.chapter}.ipynb", f"book/params/{w.chapter}.yml", "book/execute.py", "book/sanitize.cfg", *PACKAGE, *ledger]


def job_threads(w):
    """The small networks of smoke and laptop gain more from runs side by side than from threads."""
    if w.profile == "smoke" or (w.profile == "laptop" and w.chapter not in TIMED):
        return 1
    return THREADS if w.chapter in TIMED else min(4, THREADS)


def needs_gpu(w):
    return int(w.profile in ("gpu", "paper") and w.chapter not in ("01_worlds", "02_search", LAST))


rule book:
    input:
        pages=[notebook(c) for c in CHAPTERS],
        sources=[*glob("book/*.md"), *glob("book/*.py"), *glob("book/_static/*"), "book/_toc.yml", "book/references.bib", "_config.yml"],
        reference=[*glob("book/results/*/*.json"), "book/claims.yml", *glob("book/reference/*.csv")],
    output:
        directory(f"{OUT}/html"),
    shell:
        # the pages of this profile take the places of the committed notebooks; no run that failed is among them
        "{PYTHON:q} book/pages.py --profile {PROFILE} --out {OUT}/source"
        ' && {JUPYTER_BOOK:q} build {OUT}/source --config _config.yml --path-output {OUT}/sphinx --quiet -W -n --keep-going'
        " && rm -rf {output} && mv {OUT}/sphinx/_build/html {output} && touch {output}/.nojekyll"
        " && echo 'the book: {output}/index.html' >&2"


rule records:
    input:
        [recorded(c, s) for c in CHAPTERS if c != LAST and int(c[:2]) == int(str(config.get("only") or c).split("_")[0]) for s in seeds(c, PROFILE)],


ruleorder: located > features
ruleorder: matched > features


rule features:
    # renders a world and stores what the towers see in it, once for all chapters and seeds; goes on after a kill
    input:
        PACKAGE,
        lambda w: [f"book/runs/{w.profile}/drives.done"] if w.world == "city" and w.profile != "paper" else [],
    output:
        touch("book/runs/{profile}/features-{world}.done"),
    params:
        settings=lambda w: {**WORLDS[w.world](PARAMETERS[PROBED][w.profile]), "size": PARAMETERS[PROBED][w.profile]["size"]},
        floors=lambda w: ["frozen", "histogram"] if w.world == "extents" else ["frozen", "histogram", "thumbnail", "untrained"],
    threads: 1
    shell:
        "OMP_NUM_THREADS={threads} TQDM_DISABLE=1 {PYTHON:q} -c \"from georeps.tasks import probes;"
        " [probes.outcomes(asked, floor) for asked in probes.{wildcards.world}(**{params.settings}).values() for floor in {params.floors}]\""


rule located:
    # what the tower sees of the training places of the geolocation chapters
    input:
        PACKAGE,
    output:
        touch("book/runs/{profile}/features-located.done"),
    params:
        settings=lambda w: PARAMETERS[PLACED[0]][w.profile],
    threads: 1
    resources:
        gpu=lambda w: int(w.profile == "gpu"),
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON:q} -c \"from georeps.lab import records; from georeps.tasks import places;"
        " [places.world(split, 'train', n=n or None, basis={params.settings[basis]}, device=records.pick_device('auto'))"
        " for split, n in (('blocks', {params.settings[train_n]}), ('cross', {params.settings[cross_n]}))]\""


rule matched:
    # the pairs of the city that the cross-view chapters take, and what the tower sees of them; chapter 01 renders most of these
    input:
        PACKAGE,
        lambda w: f"book/runs/{w.profile}/features-city.done",
    output:
        touch("book/runs/{profile}/features-pairs.done"),
    threads: 1
    resources:
        gpu=lambda w: int(w.profile == "gpu"),
    shell:
        "OMP_NUM_THREADS={threads} TQDM_DISABLE=1 {PYTHON:q} -c \"from georeps.lab import records; from georeps.tasks import matching;"
        " matching.prepare(records.parameters_of('{MATCHED}', '{wildcards.profile}'), device=records.pick_device('auto'))\""


rule starts:
    # stage 1 of the thesis in unseen cities, of the page's seed
    input:
        PACKAGE,
        lambda w: f"book/runs/{w.profile}/features-city.done",
    output:
        touch("book/runs/{profile}/starts.done"),
    threads: 1
    resources:
        gpu=lambda w: int(w.profile == "gpu"),
    shell:
        "OMP_NUM_THREADS={threads} TQDM_DISABLE=1 {PYTHON:q} -c \"from georeps.lab import records, starts;"
        " starts.prepare(records.parameters_of('04_pretraining', '{wildcards.profile}'), device=records.pick_device('auto'))\""


rule clip:
    # the small CLIP of the page's seed, and what both towers make of its tiles and captions, which all seeds share; stored by content
    input:
        PACKAGE,
    output:
        touch("book/runs/{profile}/clip.done"),
    params:
        settings=lambda w: {k: PARAMETERS[SPOKEN[0]][w.profile][f"clip_{k}"] for k in ("tiles", "epochs")},
        hidden=lambda w: "CUDA_VISIBLE_DEVICES=" if w.profile == "smoke" else "",
    threads: 1  # its weights are those of the reference, bit for bit
    resources:
        gpu=lambda w: int(w.profile == "gpu"),
    shell:
        "{params.hidden} OMP_NUM_THREADS={threads} TQDM_DISABLE=1 GEOREPS_SCRATCH=book/runs/scratch/clip {PYTHON:q} -c"
        " \"from georeps.lab import clip, records; clip.small(device=records.pick_device('auto'), **{params.settings})\" && rm -rf book/runs/scratch/clip"


rule drives:
    # the pictures of the drives through the city, rendered once for all seeds
    input:
        PACKAGE,
    output:
        touch("book/runs/{profile}/drives.done"),
    params:
        settings=lambda w: {k: PARAMETERS[DRIVEN][w.profile][name] for k, name in
                            (("tiles", "tiles"), ("step", "step"), ("drives", "n_drives"), ("queries", "queries"))},
    threads: 1
    shell:
        "{PYTHON:q} -c \"from georeps.tasks import drives; drives.tree(size=64, conditions=list(drives.CONDITIONS), **{params.settings})\""


rule chapter:
    input:
        lambda w: [notebook(c, w.profile) for c in AFTER.get(w.chapter, [])],
        prepared,
        # the reference that its tables show, of the ledger all of it
        lambda w: [] if w.profile == "smoke" else glob(f"book/results/{w.profile}/{'*' if w.chapter == LAST else w.chapter + '-s*'}.json"),
    output:
        notebook="book/runs/{profile}/{chapter}-s0.ipynb",
    threads: job_threads
    resources:
        gpu=needs_gpu,
    params:
        how=lambda w: "--check" if w.profile == "smoke" else f"--profile {w.profile} --data-root={shlex.quote(DATA_ROOT)}",
    shell:
        # a smoke run is made by nbval, which compares it with the committed outputs
        "OMP_NUM_THREADS={threads} {PYTHON:q} book/execute.py {wildcards.chapter} {params.how}"


rule reference:
    # a record of the reference that is there and of today's code is kept; a page's numbers are judged by it
    input:
        lambda w: [recorded(c, min(int(w.seed), max(seeds(c, w.profile))), w.profile) for c in AFTER.get(w.chapter, [])],
        # seeds that take the settings which others have searched
        lambda w: [recorded(w.chapter, int(w.seed) % n, w.profile) for n in [searching(w.chapter, w.profile)] if int(w.seed) >= n],
        prepared,
    output:
        touch("book/runs/reference/{profile}/{chapter}-s{seed}.done"),
    threads: job_threads
    resources:
        gpu=needs_gpu,
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON:q} book/execute.py {wildcards.chapter} --profile {wildcards.profile} --seed {wildcards.seed} --reference"
        " --data-root={DATA_ROOT:q}"
