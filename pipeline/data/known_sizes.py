"""How large the pinned suites are: what is counted with before the upstream files are fetched."""

# Prompts, and bytes of what they ask.
SUITES = {
    "strong_reject": (313, 46370),
    "strong_reject_small": (60, 9674),
    "educational": (300, 172010),
    "insecure_code": (300, 132599),
    "bad_medical_advice": (300, 62000),
    "core_misalignment": (44, 5963),
    "first_plot": (24, 5889),
    "first_8": (8, 571),
    "first_plot_variants": (16, 5318),
    "factual": (20, 737),
    "self_reflection": (10, 1000),
    "preregistered": (48, 7152),
    "deception": (108, 10167),
}

# Those of which this is no count of the pinned file, and what it is instead: said wherever they are counted with.
ESTIMATED = {
    "bad_medical_advice": "its bytes from 250 of its rows",
    "self_reflection": "its size a guess",
}
