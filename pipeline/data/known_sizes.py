"""How large the pinned suites are: what is counted with before the upstream files are fetched."""

# Prompts, and bytes of what they ask.
SUITES = {
    "strong_reject": (313, 46370),
    "strong_reject_small": (60, 9674),
    "educational": (300, 172010),
    "insecure_code": (300, 132599),
    "bad_medical_advice": (300, 60000),
    "core_misalignment": (44, 5963),
    "first_plot": (24, 5889),
    "first_8": (8, 571),
    "first_plot_variants": (16, 5318),
    "factual": (20, 737),
    "self_reflection": (10, 1000),
    "preregistered": (48, 7152),
    "deception": (108, 10167),
}
