"""Can this machine do a study: checks of the machine (machine.py), of the study (study.py), and the gate before it."""
