"""georeps: representations for geo-localization and remote sensing.

The package holds what the chapters of the book share. A folder imports only from those above it:

core/       tensors in, tensors out; no file, no image, no paper
    sphere          points of S2: degrees, distances, geodesics
    search          exact nearest neighbours and ranks; its rule for ties
    metrics         ranks, scores and distances -> the numbers of the papers
    panorama        polar maps of tiles; panoramas turned
    moments         mean and covariance of a gallery, for standardised scores
    flow, adaln     flow matching and diffusion on S2 and in R3; their network
    vmf             von Mises-Fisher densities and mixtures
    sharded         search over a gallery on several processes
    embeddings      descriptors in resumable float16 shards
    kernels/        Triton kernels of search, pairs of rows; report: what the compiler makes of them
    cache           what is built once and stored by content
nets/       what networks are made of and how they are trained
    towers          pretrained networks of images, texts and places, frozen, and their features stored
    encoders        VGG16, descriptors: image -> grid -> unit row
    backbones       timm's networks with a pooling and a classifier
    pooling         grid -> vector, sixteen ways; SimPool
    variants        SimPool with its choices changed
    prompts         vectors in the places of words, through a frozen text tower
    losses          training objectives, Table 2.1's among them
    localization    attention maps and features -> boxes, and how good these are
    train           the training loop: resumable, seeded by epoch
papers/     the methods
    crossview       Siamese-VGG, SAFA, a descriptor of directions
    moco            MoCo v2, and between views
    dino            self-distillation
    metrix          mixup for metric learning
    composed        WeiCom, FreeDom, BASIC: an image and a text ask together
    inversion       an image as a vector in the place of a word: SEARLE, Pic2Word
    progeo          prompts learnt for geographic classes
    geolocation     features -> places and densities, eight ways
worlds/     what comes with the install
    earth           imagery, relief, places and climates of the real Earth
    city/           procedural cities from above and from a street: plan, scene, street, surface
    patterns/       aerial tiles with PatternCom's classes: paint, aerial, distractors, captions, objects
readers/    official data sets on disk
    images          image files
    folders         VIGOR, CVACT, CVUSA
    labelled        CUB, Cars196, SOP, In-Shop, class folders, revisited Oxford and Paris
    located         OSV-5M, event lists
    vpr             place recognition: SF-XL, Pitts, Tokyo, MSLS, Nordland
    compositions    PatternCom, FreeDom's lists, Fashion-IQ, CIRR, CIRCO
tasks/      one record for a method to take, from a world or from your data
    pairs           ground and satellite
    recognition     objects with masks and boxes, land cover
    fine            fine classes, as images and as a frozen tower has seen them
    matching        pairs of the city, off centre and at other times too
    floors          rows that learn nothing
    probes          what each chapter asks of an image, for a nearest neighbour: the floors of the book
    compositions    composed queries
    drives          a city driven through
    places          where on Earth was this seen
    export          embedded worlds in official trees
lab/        what turns runs into pages
    records         what a run measured, a query each; the reference; tables beside the papers' numbers
    searched        the same search for a method and its baselines
    claims          the ledger: margins, intervals, verdicts
    plots, maps     figures; figures on the Earth
    exhibits        the table, and the words, behind a figure
    elements        page elements that a reader moves
    speed           the core raced beside its peers
    trained         a training that chapters share, stored
    starts          the starts of the thesis's Table 3.1
    clip            a small CLIP, and published ones
    locators        locators of the Earth, trained and stored

Import modules, not names: `from georeps.core import search, metrics`.

Axes, used in every signature: b batch, q queries, g gallery, d channels, h w grid, k neighbours, c classes, s image side.
float32 unless said.
"""

__version__ = "0.2.0"
