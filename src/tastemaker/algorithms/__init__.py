"""The algorithms, one file a paper; `TABLE` is where names are looked up."""

TABLE = {
    "ddpo": "tastemaker.algorithms.ddpo:DDPO",
    "reinforce": "tastemaker.algorithms.reinforce:REINFORCE",
}
