"""georeps: representations for geo-localization and remote sensing.

The package holds what the chapters of the book share; read it from the left:

    kernels                      Triton kernels behind what follows; what the compiler makes of them
    sphere, losses, pooling      points on S2; training objectives, Table 2.1's among them; feature map -> vector
    search                       exact nearest neighbours and ranks
    encoders, moco               image -> feature map -> descriptor; MoCo v2
    metrix, variants             mixup for metric learning; SimPool with its choices changed
    backbones, dino              timm's networks with a pooling and a classifier; self-distillation
    localization                 attention maps and features -> boxes, and how good these are
    adaln, flow, vmf             densities on S2: the network, flows and diffusion, von Mises-Fisher and its mixtures
    metrics                      ranks, scores and distances -> the numbers of the papers
    crossview                    Siamese-VGG and SAFA, the two-branch models; polar transform; their training step
    progeo                       geographic classes, prompts learnt for them, an encoder guided by both
    composed                     WeiCom, FreeDom, BASIC: an image and a text ask together
    geolocation                  seven models of one network: features -> places and densities; decisions
    data                         earth, city and patterns, the embedded worlds; drives, unseen, objects, tasks made of them;
                                 images, folders, labelled, vpr, compositions, located, the readers of files; export
    train, plots, study          the training loop, every figure, records / tables / claims
    pretraining, clip            the starts of the thesis's Table 3.1; the small CLIP; both stored by content
    slider, worldmap             page elements: an image weighed against a word; where on Earth an image could be
    maps                         figures of what is spread over the Earth
    embeddings, sharded          descriptors in resumable float16 shards; search over shards on several processes
    speed                        the core raced beside its peers
    atlas                        the Earth as a geolocation task: frozen features, trained locators

A module imports only from its left (tests/test_package.py holds the order). Import modules, not names:
`from georeps import search, metrics`.

Axes, used in every signature: b batch, q queries, g gallery, d channels, h w grid, k neighbours, c classes, s image side.
float32 unless said.
"""

__version__ = "0.1.0"
