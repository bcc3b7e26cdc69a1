"""Write k8s/edge/unitune.binpb: the public contract as Envoy reads it, to translate JSON.

python -m protos.edge_contract          # write it
python -m protos.edge_contract --check  # say whether it is fresh
"""

import sys

from protos.contract import ERROR_DETAILS, PUBLIC, compiled
from protos.generated_file import ROOT, write

FILE = ROOT / "k8s" / "edge" / "unitune.binpb"


def contract() -> bytes:
    """A FileDescriptorSet of the public services and all that they use, the details of errors, too."""
    # Not read and written again: the order of options then depends on what else is imported.
    return compiled([*PUBLIC, ERROR_DETAILS], "--include_imports")


if __name__ == "__main__":
    sys.exit(write(FILE, contract()))
