"""Whether a study's results here are those that are committed."""

from pipeline.common.git import git
from pipeline.common.paths import ARTIFACTS, FIGURES


def compare_with_committed(study: str) -> str:
    """One line: equal to the committed bytes, or in how many files not. What git cannot say is said."""
    paths = ["dvc.lock", str(FIGURES / study), str(ARTIFACTS / study)]
    try:
        known = git("ls-tree", "-r", "--name-only", "HEAD", "--", *paths[1:])
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *paths)
    except OSError:
        return "There is no git here: not compared with committed results."
    if known.returncode or changed.returncode:
        return "This is no git repository with a commit: not compared with committed results."
    committed = known.stdout.splitlines()
    if not committed:
        return f"No results of study {study} are committed: nothing to compare with."
    if different := changed.stdout.splitlines():
        return (
            f"Differs from the committed results in {len(different)} files: git diff --stat, and see the report "
            f"{FIGURES / study / 'README.md'}"
        )
    return f"Equal to the committed bytes: {len(committed)} files of study {study}, and dvc.lock."
