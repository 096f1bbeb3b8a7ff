"""emoe: emergent misalignment in Mixture-of-Experts models, as a pipeline that anyone can re-run.

data / toy world -> train@RUN -> sample@RUN -> judge@RUN -> probe@STUDY -> aggregate@STUDY -> paper_figures/STUDY/
"""
