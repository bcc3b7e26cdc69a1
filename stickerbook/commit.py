"""The commit that a program runs from, for its output files."""

import subprocess
from pathlib import Path


def commit(*changed: str) -> str:
    """The short commit, with "+" if files like `changed` (default: any) are uncommitted; empty without a repository."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", *changed], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
