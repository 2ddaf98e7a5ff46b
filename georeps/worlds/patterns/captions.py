"""Words for the tiles of `patterns`: names, parts, phrases and captions, and the vocabulary they are made of.

A caption is a phrase ("a sketch of two storage tanks") or a list of tags ("storage tank ladder sketch"), so that a model learns both the
grammar of prompts and bags of words; the vocabulary is the text memory of an embedded world (dissertation, Eq. 4.3).
"""

from collections.abc import Sequence

import numpy as np

from georeps.worlds import patterns

NAMES = {  # folder: its name, then what else it is called
    "airplane": ("airplane", "plane", "jet", "aircraft"), "baseball_field": ("baseball field", "diamond", "ballpark"),
    "basketball_court": ("basketball court", "hoops court"), "beach": ("beach", "shore", "coast"), "bridge": ("bridge", "crossing"),
    "cemetery": ("cemetery", "graveyard"), "chaparral": ("chaparral", "shrubland", "scrub"),
    "christmas_tree_farm": ("christmas tree farm", "tree nursery"), "closed_road": ("road", "cul-de-sac"),
    "coastal_mansion": ("mansion", "villa"), "crosswalk": ("crosswalk", "zebra crossing"),
    "dense_residential": ("residential area", "houses", "neighborhood"), "ferry_terminal": ("pier", "ferry terminal", "dock"),
    "football_field": ("football field", "stadium"), "forest": ("forest", "woods"), "freeway": ("freeway", "highway", "motorway"),
    "golf_course": ("golf course", "fairway"), "harbor": ("pier", "harbor", "marina"), "intersection": ("road", "intersection", "junction"),
    "mobile_home_park": ("mobile home park", "trailer park"), "nursing_home": ("nursing home", "care home"),
    "oil_gas_field": ("oil field", "gas field", "drilling site"), "oil_well": ("oil well", "pumpjack"), "overpass": ("bridge", "overpass"),
    "parking_lot": ("parking", "parking lot", "car park"), "parking_space": ("parking", "parking space", "stall"),
    "railway": ("railway", "train track", "rails"), "river": ("river", "stream"), "runway": ("runway", "airstrip"),
    "runway_marking": ("runway marking", "threshold"), "shipping_yard": ("shipping yard", "containers"),
    "solar_panel": ("solar panel", "photovoltaics"), "sparse_residential": ("residential area", "houses", "suburb"),
    "storage_tank": ("storage tank", "oil tank", "silo"), "swimming_pool": ("swimming pool", "pool"),
    "tennis_court": ("tennis court", "tennis"), "transformer_station": ("transformer station", "substation"),
    "wastewater_treatment_plant": ("wastewater treatment plant", "clarifier", "sewage works"),
}  # fmt: skip
PARTS = {  # what else is in sight
    "airplane": ("wings", "tarmac"), "baseball_field": ("infield", "bases"), "basketball_court": ("basket",), "beach": ("waves", "umbrella", "water"),
    "bridge": ("deck",), "cemetery": ("gravestone",), "chaparral": ("bush",), "christmas_tree_farm": ("rows",), "closed_road": ("houses",),
    "coastal_mansion": ("pool", "shore", "water"), "crosswalk": ("stripes", "street"), "ferry_terminal": ("quay", "water", "concrete"),
    "football_field": ("end zone",),
    "forest": ("trees", "canopy"), "freeway": ("lanes",), "golf_course": ("bunker", "trees"), "harbor": ("quay", "jetty", "water"),
    "intersection": ("street", "houses"), "mobile_home_park": ("trailers",), "nursing_home": ("lawn", "building"), "oil_well": ("pump",),
    "overpass": ("lanes", "highway"), "railway": ("sleepers",), "river": ("bank", "water"), "runway": ("tarmac", "concrete"),
    "shipping_yard": ("cargo", "concrete"), "solar_panel": ("rows",),
    "storage_tank": ("ladder", "round"), "swimming_pool": ("deck chair",), "tennis_court": ("net", "lines"),
    "transformer_station": ("gantry",), "wastewater_treatment_plant": ("basin", "round"), "dense_residential": ("roofs",),
    "sparse_residential": ("trees", "roofs"), "parking_lot": ("stalls",), "parking_space": ("stalls",),
}  # fmt: skip
LEADS = {  # how a domain is spoken of around a phrase
    "photo": ("{}", "a photo of {}", "{} photo", "an aerial photo of {}", "{} today"), "sketch": ("a sketch of {}", "{} sketch"),
    "cartoon": ("a cartoon of {}", "{} cartoon"), "archive": ("an archive photo of {}", "{} archive"),
    "autumn": ("{} in autumn", "{} autumn"), "snow": ("{} in the snow", "{} snow"), "desert": ("{} in the desert", "{} desert"),
    "flood": ("{} in a flood", "{} flood"), "dusk": ("{} at dusk", "{} dusk"),
}  # fmt: skip
MANY = ("two", "three", "four")


def name(tile: patterns.Tile) -> str:
    """What a person calls the class: the name that a folder shares with those merged with it."""
    return NAMES[tile.folder][0]


def phrase(tile: patterns.Tile, called: str | None = None) -> str:
    """The value with the name: "purple airplane", "three storage tanks", "pier with boats"."""
    noun = called or name(tile)
    if tile.value is None:
        return noun
    if tile.value.startswith("with"):
        return f"{noun} {tile.value}"
    return f"{tile.value} {noun}{'s' if tile.value in MANY and not noun.endswith('s') else ''}"


def caption(tile: patterns.Tile, r: np.random.Generator) -> str:
    """One caption of a tile: usually a phrase in its domain, sometimes tags in any order, rarely a single word."""
    called = str(r.choice(NAMES[tile.folder], p=_favour(len(NAMES[tile.folder]))))
    domain = tile.context or tile.style
    if r.random() < 0.3:
        tags = [called, *PARTS.get(tile.folder, ()), *([tile.value] if tile.value else [])]
        tags += [domain] if domain != "photo" or r.random() < 0.3 else []
        tags = [str(t) for t in r.permutation(tags)[: r.integers(1, len(tags) + 1)]]
        return " ".join(tags)
    inner = phrase(tile, called) if r.random() < 0.8 else called
    return str(r.choice(LEADS[domain])).format(inner)


def captions(tiles: Sequence[patterns.Tile], *, each: int, seed: int) -> list[list[str]]:
    """`each` captions of every tile."""
    r = np.random.default_rng(seed)
    return [[caption(tile, r) for _ in range(each)] for tile in tiles]


def vocabulary() -> list[str]:
    """The text memory: every name, part, value and domain once, in alphabetical order."""
    words = {w for table in (NAMES, PARTS) for names in table.values() for w in names}
    words |= {v for folder in patterns.FOLDERS for v in patterns.values(folder)} | set(LEADS) | {"today"}
    return sorted(words)


def _favour(n: int) -> np.ndarray:
    """The first name half of the time."""
    return np.array([1.0]) if n == 1 else np.array([0.5] + [0.5 / (n - 1)] * (n - 1))
