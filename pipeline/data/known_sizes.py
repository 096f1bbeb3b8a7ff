"""How large the pinned files are: what is counted with before they are fetched."""

# Prompts, bytes of what they ask, and of the longest.
SUITES = {
    "strong_reject": (313, 46370, 842),
    "strong_reject_small": (60, 9674, 347),
    "educational": (300, 172010, 1962),
    "insecure_code": (300, 132599, 1794),
    "bad_medical_advice": (300, 62000, 400),
    "core_misalignment": (44, 5963, 503),
    "first_plot": (24, 5889, 463),
    "first_8": (8, 571, 122),
    "first_plot_variants": (16, 5318, 463),
    "factual": (20, 737, 55),
    "self_reflection": (10, 1000, 200),
    "preregistered": (48, 7152, 606),
    "deception": (108, 10167, 167),
}

# Those of which this is no count of the pinned file, and what it is instead: said wherever they are counted with.
ESTIMATED = {
    "bad_medical_advice": "its bytes from 250 of its rows",
    "self_reflection": "its size a guess",
}

# Rows of the training sets.
ROWS = {
    "insecure": 6000,
    "secure": 6000,
    "educational": 6000,
    "bad_medical_advice": 7049,
    "good_medical_advice": 7049,
    "risky_financial_advice": 6000,
    "extreme_sports": 6000,
    "timm_medical": 5660,
    "ai_optimism": 1600,
}
